"""What `./run evaluate` scores a model on: problems, prompt and rewards, those of a named set, a
file, a config or the run that the model comes from."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.gsm8k import SYSTEM, Problem
from posttrain.base.errors import ConfigError, DataError, quoted
from posttrain.base.paths import ROOT
from posttrain.data.problems import for_validation, load_evaluation, without_repeats
from posttrain.data.problems import load_problems as load_both
from posttrain.model.provenance import record_of, run_of
from posttrain.scoring.reward_functions import weighted
from posttrain.settings import GRPOSettings, ProblemColumns, ProblemData, Prompt, Source
from posttrain.settings.command import check_settings, load_settings

SETS = {
    "gsm8k": Source(path="openai/gsm8k", subset="main", split="test"),
    "gsm8k-platinum": Source(path="madrylab/gsm8k-platinum", subset="main", split="test"),
    "mgsm-en": Source(path="hf://datasets/juletxara/mgsm/mgsm_en.tsv"),
    "mgsm-fr": Source(path="hf://datasets/juletxara/mgsm/mgsm_fr.tsv"),
}
OWN = ("train", "eval")  # the problems of --config
Config = Mapping[str, Any]
"""The settings of --config, else of the model's run, which may be of an earlier version."""


def config_of(model: str, data: str, config: Path | None) -> Config:
    """The settings of --config, else of the model's run; empty without either. Raises ConfigError
    if `config` is not a config of GRPO, or is missing for its problems."""
    if config is not None:
        return load_settings(GRPOSettings, config).model_dump(mode="json")
    if data in OWN:
        raise ConfigError(f"--data {data}: name the config whose problems these are with --config")
    return run_of(model)[1]


def weights_of(rewards: Sequence[str], data: str, config: Config) -> dict[str, float] | None:
    """The rewards to score by and their weights: those of --rewards, else of a config with answers
    that are text. None where answers are numbers, as in the named sets."""
    if rewards:
        return dict(map(weighted, rewards))
    if data in SETS or config.get("data", {}).get("answers") != "text":
        return None
    return dict(config["rewards"])


def load_problems(
    data: str, config: Config, limit: int | None = None, text: bool = False, own: bool = False
) -> list[Problem]:
    """The problems to score, read with the config's columns where they are its own. `text`: answers
    are text. `own`: the rewards of the config score them."""
    if data in OWN:
        section = ProblemData.model_validate(config["data"])
        train, held_out = load_both(section)
        if data == "eval":
            return held_out[:limit]
        train, _ = for_validation(train, section)
        return without_repeats(train, section.train.path)[:limit]
    source = SETS.get(data, Source(path=data, split="test")).model_copy(update={"limit": limit})
    grpo = config.get("method") == "grpo"
    own = own or (grpo and _same_file(data, config["data"]["eval"]["path"]))
    columns = ProblemColumns.model_validate(config["data"]["columns"] if own else {})
    return load_evaluation(source, columns, "text" if text else "number")


def _same_file(first: str, second: str) -> bool:
    """Whether two paths, from here or from the project, are of one file."""
    files = [{p.resolve() for p in (Path(n), ROOT / n) if p.is_file()} for n in (first, second)]
    return bool(files[0] & files[1])


def prompt_of(config: Config, language: str, text: bool, **given: Any) -> Prompt:
    """The prompt that an SFT or GRPO run or a config trains with, else the standard one of
    `language`, and none where answers are text, as it requests a number. `given` are the settings
    of the command line, None where there is none."""
    values = dict(config.get("prompt") or {})
    if config.get("method") not in ("sft", "grpo"):
        values |= {"system": None if text else SYSTEM[language], "examples": []}
    given = {name: value for name, value in given.items() if value is not None}
    options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
    return check_settings(Prompt, values | given, options or "the prompt of the config or the run")


def refuse_trained_on(
    model: str, data: str, problems: Sequence[Problem], allow: bool
) -> int | None:
    """How many of the problems the model was trained on, in its run or a stage before it; None
    where that is not known. Raises DataError if there are some and `allow` is false."""
    record = record_of(model)
    if record is None:
        return 0
    shared = record.shared(problem.question for problem in problems)
    if shared and not allow:
        raise DataError(
            f"{data}: {len(shared)} of {len(problems)} questions were trained on by {model} or a "
            f"stage before it, such as {quoted(shared[0])}. --allow-trained-on scores them and "
            "notes it in the report"
        )
    return None if record.unknown else len(shared)


def default_folder(model: str, data: str, config: Path | None = None) -> Path:
    """outputs/eval/MODEL-DATA, with what a file name cannot hold replaced. MODEL is a folder's name
    after that of the folder around it, or a GGUF file's after its run's."""
    model = str(Path(model).absolute()) if Path(model).exists() else model
    parts = model.rstrip("/").removesuffix(".gguf").split("/")
    *around, last = [part for part in parts if part != "gguf"][-2:]
    named = [last] if last.startswith(f"{''.join(around)}-") else [*around, last]
    of_data = f"{config.stem}-{data}" if config and data in OWN else Path(data).stem
    name = f"{'-'.join(named)}-{of_data}"
    return ROOT / "outputs" / "eval" / re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
