"""Where a model folder comes from: its run's settings, and what it was trained on."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from posttrain.base.errors import ConfigError, DataError, PostTrainError, first_line, quoted
from posttrain.base.paths import is_url
from posttrain.data.demonstrations import load_demonstrations
from posttrain.data.pairs import load_pair_set
from posttrain.data.prompted import user_turns
from posttrain.data.sources import read_rows
from posttrain.data.text import normalise
from posttrain.model import pretrained
from posttrain.model.llama_server import is_gguf
from posttrain.settings import PairData, ProblemData, Prompt, ReplyData
from posttrain.settings.adapters import find_adapter
from posttrain.settings.strict_yaml import read_yaml


def run_of(model: str) -> tuple[Path | None, dict[str, Any]]:
    """The run whose adapter, export or checkpoint this folder is: its folder and settings, if there
    is one."""
    if is_url(model):
        return None, {}
    at = Path(model).resolve() if is_gguf(model) else Path(pretrained.local_or_hub(model))
    for folder in list(at.parents)[:2] if at.exists() else []:
        path = folder / "config.yaml"
        settings = read_yaml(path) if path.is_file() else {}
        if {"model", "data", "training"} <= set(settings):
            return folder, settings
    return None, {}


def refuse_earlier_stages(adapter: str | None, questions: Iterable[str]) -> None:
    """Raise DataError if a scored question was trained on by a stage before (`model.adapter`)."""
    scored = {normalise(question): question for question in questions}
    for stage, trained_on in earlier_questions(adapter):
        shared = [scored[key] for key in {normalise(q): None for q in trained_on} if key in scored]
        if shared:
            raise DataError(
                f"{len(shared)} of the held-out questions were trained on by {stage}, which this "
                f"run starts from, such as {quoted(shared[0])}; hold out other rows"
            )


def earlier_questions(adapter: str | None) -> Iterator[tuple[str, list[str]]]:
    """Name and training questions of each stage behind `model.adapter`, the last one first.

    A stage whose run or data is not on this machine is printed, as it cannot be checked.
    """
    while adapter is not None:
        try:
            run, trained = run_of(str(find_adapter(adapter)))
        except ConfigError:
            run, trained = None, {}
        if run is None:
            print(f"note: {adapter} has no run folder here, so what it was trained on is unknown")
            return
        try:
            yield run.name, trained_questions(trained)
        except (PostTrainError, ValueError) as error:  # also of settings that are no longer valid
            print(f"note: cannot check what {run.name} was trained on: {first_line(error)}")
        adapter = trained["model"].get("adapter")


def trained_questions(trained: dict[str, Any]) -> list[str]:
    """The questions of a GRPO run, or every user turn of the prompts of another."""
    method = trained.get("method")
    if method not in ("sft", "dpo", "grpo"):
        raise ConfigError(
            "the config.yaml of the model's run names no method; add 'method: grpo', 'method: dpo' "
            "or 'method: sft' to it"
        )
    if method == "grpo":
        problems = ProblemData.model_validate(trained["data"])
        return [row.text(problems.columns.question) for row in read_rows(problems.train)]
    prompt = Prompt.model_validate(trained["prompt"])
    if method == "dpo":
        return user_turns(load_pair_set(PairData.model_validate(trained["data"]), prompt).train)
    rows = load_demonstrations(ReplyData.model_validate(trained["data"]), prompt)
    return user_turns([*rows.train, *rows.validation])
