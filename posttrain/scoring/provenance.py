"""Where a model folder comes from: its run's settings, and what it was trained on."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from posttrain.base.errors import ConfigError, DataError, quoted
from posttrain.base.paths import is_gguf, is_url, shown
from posttrain.data.text import text_key
from posttrain.model import pretrained
from posttrain.run.folder import RunFolder
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
    scored = {text_key(question): question for question in questions}
    for stage, keys in earlier_stages(adapter):
        if shared := scored.keys() & keys:
            raise DataError(
                f"{len(shared)} of the held-out questions were trained on by {stage}, which this "
                f"run starts from, such as {quoted(scored[min(shared)])}; hold out other rows"
            )


def earlier_stages(adapter: str | None) -> Iterator[tuple[str, set[str]]]:
    """Each stage behind `model.adapter`, the last one first: its name and the keys of the questions
    that it trained on. A stage without a record of them here is printed."""
    while adapter is not None:
        try:
            run, trained = run_of(str(find_adapter(adapter)))
        except ConfigError:
            run, trained = None, {}
        if run is None:
            print(f"note: {adapter} has no run folder here, so what it was trained on is unknown")
            return
        yield run.name, trained_on(run)
        adapter = trained["model"].get("adapter")


def trained_on(run: Path) -> set[str]:
    """The keys of the questions that a run trained on; where it kept none, a note is printed."""
    keys = RunFolder(run).trained_on()
    if keys is None:
        print(f"note: {shown(run)} has no trained_on.txt, so what it was trained on is unknown")
    return keys or set()
