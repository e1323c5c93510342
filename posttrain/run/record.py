"""A run folder as it is found: whole, unfinished, or with files missing or damaged."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from eval.gsm8k import ScoredReply
from eval.replies import PromptReply
from eval.rewarded import TOTAL, RewardedReply
from posttrain.base.errors import ConfigError, PostTrainError
from posttrain.base.files import jsonl_rows, rows_of
from posttrain.run.measures import HEADLINES, headline
from posttrain.settings.strict_yaml import read_yaml

SIDES = ("before", "after")
TRACES = ("config.yaml", "environment.json", "metrics.jsonl", "eval")
Row = dict[str, Any]
T = TypeVar("T")
Scored = ScoredReply | RewardedReply | PromptReply
"""A reply to one of GRPO's problems, or of DPO's prompts."""


@dataclass(frozen=True)
class Record:
    """What a run folder holds; what it does not hold is empty."""

    path: Path
    config: Row
    environment: Row
    metrics: list[Row]
    samples: list[Row]
    before: dict[str, Row]
    after: dict[str, Row]
    comparison: dict[str, Row]
    health: list[Row] | None
    """Events of health.jsonl; None where nothing was watched."""
    exports: Row
    data_report: Row | None
    unreadable: list[str] = field(default_factory=list)
    """What was there and could not be read, one sentence each."""
    replies: dict[str, list[Scored]] = field(default_factory=lambda: {side: [] for side in SIDES})
    """Scored replies `before` and `after`."""
    validation: list[Row] = field(default_factory=list)
    """Validations while training: `{"step", "measures"}` each."""
    adapter_16bit: Row = field(default_factory=dict)
    """The score of the adapter of a 4-bit policy on 16-bit weights, as in export.json."""

    label: str = ""
    """What tells it from other runs whose folder has the same name; empty alone."""

    @property
    def name(self) -> str:
        return self.label or self.path.name

    @property
    def method(self) -> str:
        """`GRPO` or `DPO`; empty where the run's config does not tell."""
        return str(self.config.get("method", "")).upper()

    @property
    def text_answers(self) -> bool:
        """Whether its problems have text for an answer, so that rewards scored the replies."""
        return section(self.config, "data").get("answers") == "text"

    @property
    def main_measure(self) -> str:
        """What the run sets out to raise, whether it was measured or not."""
        if self.method == "SFT" and not section(self.config, "data").get("problems"):
            return "reply_loss"
        return TOTAL if self.text_answers else HEADLINES.get(self.method, "")

    @property
    def finished(self) -> bool:
        return bool(self.comparison)

    @property
    def steps(self) -> int:
        return max((int(number(row.get("step")) or 0) for row in self.metrics), default=0)

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run; without training.max_steps, guessed from the epochs done."""
        training = section(self.config, "training")
        steps = training.get("max_steps")
        if isinstance(steps, int) and steps >= 0:
            return steps
        epochs = number(training.get("num_train_epochs"))
        done = [(row["step"], number(row.get("epoch"))) for row in self.metrics if "step" in row]
        step, epoch = done[-1] if done else (0, None)
        return math.ceil(step * epochs / epoch) if epochs and epoch else None

    @property
    def seconds(self) -> float:
        """Seconds of training, over all sessions of a run that was resumed."""
        total = last = 0.0
        for row in self.metrics:
            now = number(row.get("seconds")) or 0.0
            total += now - last if now >= last else now  # a resumed run's clock starts over
            last = now
        return max(total, number(section(self.environment, "trained").get("seconds")) or 0.0)

    @property
    def kept(self) -> Row:
        """Which adapter was kept: `{"step", "by", "value", "validations"}`; empty without
        validation."""
        return section(self.environment, "kept")

    @property
    def written(self) -> datetime | None:
        """When the newest metrics were written."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return None
        return datetime.fromtimestamp(path.stat().st_mtime).astimezone()

    def measures(self) -> dict[str, Row]:
        """`{measure: {before, after, difference, low, high, p_value, n}}`, as far as it goes.

        The headline, which the run is judged by, comes first.
        """
        found = {}
        for name, values in self.comparison.items():
            before, after = self.before.get(name), self.after.get(name)
            if before is not None and after is not None:
                found[name] = {"before": before, "after": after, **values}
        first = headline(self.method, found)
        return found if first is None else {first: found[first], **found}


def read_runs(paths: Sequence[Path], finished: bool = False) -> list[Record]:
    """The records of several run folders. Those of a repeat are all named seed-N: where two have
    the same name, that of the folder around is told too, or else the whole path.

    Raises:
        ConfigError: as `read_run`.
    """
    records = [read_run(path, finished) for path in paths]
    for parts in (1, 2, None):
        labels = [str(Path(*found.path.parts[-parts if parts else 0 :])) for found in records]
        if len(set(labels)) == len({found.path for found in records}):
            break
    return [replace(found, label=label) for found, label in zip(records, labels, strict=True)]


def read_run(path: Path, finished: bool = False) -> Record:
    """The record of a run folder.

    Raises:
        ConfigError: there is no trace of a run in it, or with `finished` no whole comparison.
    """
    path = path.resolve()
    unreadable: list[str] = []

    def one(name: str) -> Row | None:
        return _read(path / name, _object, unreadable)

    def many(name: str) -> list[Row] | None:
        damaged: list[int] = []
        rows = _read(path / name, lambda file: jsonl_rows(file, damaged), unreadable)
        if damaged:
            what = "lines left out because they are no JSON object"
            unreadable.append(f"{path / name}: {what}: {len(damaged)}")
        return rows

    def replies(name: str, kind: type[Scored]) -> list[Scored]:
        rows = many(name) or []
        return _read(path / name, lambda file: rows_of(kind, rows, file), unreadable) or []

    if finished:
        for name in ("before", "after", "comparison"):
            if not (path / "eval" / f"{name}.json").exists():
                missing = path / "eval" / f"{name}.json"
                raise ConfigError(f"{path}: no finished run there ({missing} is missing)")
    elif not any((path / name).exists() for name in TRACES):
        raise ConfigError(f"{path}: no run there (it holds none of {', '.join(TRACES)})")
    exported = one("export.json") or {}
    found = Record(
        path=path,
        config=_read(path / "config.yaml", read_yaml, unreadable) or {},
        environment=one("environment.json") or {},
        metrics=many("metrics.jsonl") or [],
        samples=many("samples.jsonl") or [],
        before=figures(one("eval/before.json")),
        after=figures(one("eval/after.json")),
        comparison=figures(one("eval/comparison.json")),
        health=many("health.jsonl"),
        exports=section(exported, "exports"),
        adapter_16bit=section(exported, "adapter_16bit"),
        data_report=one("data/report.json"),
        validation=many("eval/validation.jsonl") or [],
        unreadable=unreadable,
    )
    for side in SIDES:
        if found.method in ("GRPO", "SFT"):
            kind = RewardedReply if found.text_answers else ScoredReply
            found.replies[side] = replies(f"eval/{side}.jsonl", kind)
        elif found.method == "DPO":
            found.replies[side] = replies(f"eval/{side}_replies.jsonl", PromptReply)
    if finished and not found.measures():
        raise ConfigError(f"{path}: no scores there to compare. {' '.join(unreadable)}")
    return found


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def section(values: Row, name: str) -> Row:
    """A mapping inside a mapping; empty where there is none."""
    inner = values.get(name)
    return inner if isinstance(inner, dict) else {}


def figures(values: Row | None) -> dict[str, Row]:
    """Measures with nothing but finite numbers in them; anything else is None."""
    return {
        name: {
            key: value if isinstance(value, int) else number(value) for key, value in inner.items()
        }
        for name, inner in (values or {}).items()
        if isinstance(inner, dict)
    }


def _object(path: Path) -> Row:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def _read(path: Path, parse: Callable[[Path], T], unreadable: list[str]) -> T | None:
    """What is in a file; None where it is not there, or cannot be read, which is then told."""
    try:
        return parse(path) if path.exists() else None
    except PostTrainError as error:  # it names the file
        unreadable.append(str(error))
    except (OSError, ValueError) as error:
        unreadable.append(f"{path}: {error}")
    return None
