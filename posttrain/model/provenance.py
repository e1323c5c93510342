"""Where a model folder comes from: its run's settings, and all that it was trained on.

trained_on.json beside a run's or an export's files holds a hash of each question that the model was
trained or validated on, those of the stages before included, so that none of them is scored.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from posttrain.base.errors import ConfigError, DataError, quoted
from posttrain.base.files import read_object, write_json
from posttrain.base.paths import here_or_project, is_url
from posttrain.data.text import text_key
from posttrain.settings import Model
from posttrain.settings.adapters import find_adapter
from posttrain.settings.strict_yaml import read_yaml

RECORD = "trained_on.json"


@dataclass(frozen=True)
class TrainedOn:
    """What a model was trained and validated on."""

    questions: set[str]  # their keys (data.text.text_key)
    unknown: list[str] = field(default_factory=list)  # stages that left no record

    def __or__(self, other: "TrainedOn | None") -> "TrainedOn":
        if other is None:
            return self
        unknown = dict.fromkeys([*self.unknown, *other.unknown])
        return TrainedOn(self.questions | other.questions, [*unknown])

    def shared(self, questions: Iterable[str]) -> list[str]:
        """Those of the questions that are in it, each once; a note is printed of unknown stages."""
        for stage in self.unknown:
            print(f"note: {stage} has no {RECORD}, so what it was trained on is unknown")
        return [text for text in dict.fromkeys(questions) if text_key(text) in self.questions]


def write_record(folder: Path, record: TrainedOn) -> None:
    """Write the record of a run or an export."""
    content = {"questions": sorted(record.questions), "unknown": record.unknown}
    write_json(folder / RECORD, content)


def read_record(folder: Path) -> TrainedOn | None:
    """The record in a folder, None without one; DataError if it is damaged."""
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        content = TypeAdapter(dict[str, list[str]]).validate_python(read_object(path))
        return TrainedOn(set(content["questions"]), content["unknown"])
    except (ConfigError, ValidationError, KeyError):
        raise DataError(
            f"{path} is damaged, so what this model was trained on is unknown; delete it to score "
            "the model without that check"
        ) from None


def run_of(model: str) -> tuple[Path | None, dict[str, Any]]:
    """Folder and settings of the run whose adapter, export or checkpoint this is, if of any."""
    for folder in _around(model):
        path = folder / "config.yaml"
        settings = read_yaml(path) if path.is_file() else {}
        if all(isinstance(settings.get(name), dict) for name in ("model", "data", "training")):
            return folder, settings
    return None, {}


def record_of(model: str) -> TrainedOn | None:
    """What a model folder or file was trained on; None if it comes from no run."""
    for folder in _around(model):
        if record := read_record(folder):
            return record
    run, _ = run_of(model)
    return TrainedOn(set(), [run.name]) if run else None


def _around(model: str) -> list[Path]:
    """The two folders around a local model; none around a hub's or a server's."""
    if is_url(model):
        return []
    at = here_or_project(model).resolve()
    return list(at.parents)[:2] if at.exists() else []


def record_before(model: Model) -> TrainedOn | None:
    """What the adapter or the model that a run starts from was trained on; None without a run."""
    if model.adapter is None:
        return record_of(model.name)
    return record_of(str(find_adapter(model.adapter))) or TrainedOn(set(), [model.adapter])


def refuse_earlier_stages(model: Model, questions: Iterable[str]) -> None:
    """Raise DataError if a scored question was trained on by what the run starts from."""
    record = record_before(model)
    if record and (shared := record.shared(questions)):
        start = model.adapter or model.name
        raise DataError(
            f"{len(shared)} of the held-out questions were trained on by {start} or a stage before "
            f"it, such as {quoted(shared[0])}; hold out other rows"
        )
