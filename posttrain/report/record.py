"""A run folder as it is found: whole, unfinished, or with files missing or damaged."""

import json
import math
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from posttrain.base.errors import ConfigError
from posttrain.base.files import jsonl_rows
from posttrain.settings.strict_yaml import read_yaml

SIDES = ("before", "after")
TRACES = ("config.yaml", "environment.json", "metrics.jsonl", "eval")
Row = dict[str, Any]


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
    replies: dict[str, list[Row]]
    """Scored replies `before` and `after`: of problems, or of DPO's prompts."""
    health: list[Row] | None
    """Events of health.jsonl; None where nothing was watched."""
    exports: Row
    data_report: Row | None
    unreadable: list[str] = field(default_factory=list)
    """What was there and could not be read, one sentence each."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def method(self) -> str:
        """`GRPO`, `DPO`, or empty where nothing tells."""
        keys = {*self.config, *(key for row in self.metrics[:1] for key in row)}
        if keys & {"rewards", "reward"}:
            return "GRPO"
        return "DPO" if keys & {"training", "rewards/margins"} else ""

    @property
    def things(self) -> str:
        """What it is scored on."""
        return {"GRPO": "problems", "DPO": "pairs"}.get(self.method, "rows")

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
    def written(self) -> datetime | None:
        """When the newest metrics were written."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return None
        return datetime.fromtimestamp(path.stat().st_mtime).astimezone()

    def measures(self) -> dict[str, Row]:
        """`{measure: {before, after, difference, low, high, p_value, n}}`, as far as it goes."""
        found = {}
        for name, values in self.comparison.items():
            before, after = self.before.get(name), self.after.get(name)
            if before is not None and after is not None:
                found[name] = {"before": before, "after": after, **values}
        return found


def read(path: Path) -> Record:
    """The record of a run folder.

    Raises:
        ConfigError: there is no trace of a run in it.
    """
    path = path.resolve()
    if not any((path / name).exists() for name in TRACES):
        raise ConfigError(f"{path}: no run there (it holds none of {', '.join(TRACES)})")
    unreadable: list[str] = []

    def one(name: str) -> Row:
        return _json(path / name, unreadable) or {}

    def many(name: str) -> list[Row] | None:
        return _rows(path / name, unreadable)

    replies = {}
    for side in SIDES:
        answers = many(f"eval/{side}_replies.jsonl")
        replies[side] = (many(f"eval/{side}.jsonl") if answers is None else answers) or []
    return Record(
        path=path,
        config=_config(path / "config.yaml", unreadable),
        environment=one("environment.json"),
        metrics=many("metrics.jsonl") or [],
        samples=many("samples.jsonl") or [],
        before=_figures(one("eval/before.json")),
        after=_figures(one("eval/after.json")),
        comparison=_figures(one("eval/comparison.json")),
        replies=replies,
        health=many("health.jsonl"),
        exports=section(one("export.json"), "exports"),
        data_report=_json(path / "data/report.json", unreadable),
        unreadable=unreadable,
    )


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def section(values: Row, name: str) -> Row:
    """A mapping inside a mapping; empty where there is none."""
    inner = values.get(name)
    return inner if isinstance(inner, dict) else {}


def _figures(values: Row) -> dict[str, Row]:
    """Measures with nothing but finite numbers in them; anything else is None."""
    return {
        name: {
            key: value if isinstance(value, int) else number(value) for key, value in inner.items()
        }
        for name, inner in values.items()
        if isinstance(inner, dict)
    }


def _config(path: Path, unreadable: list[str]) -> Row:
    if not path.exists():
        return {}
    try:
        return read_yaml(path)
    except (ConfigError, OSError) as error:
        unreadable.append(str(error))
        return {}


def _json(path: Path, unreadable: list[str]) -> Row | None:
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        unreadable.append(f"{path}: {error}")
        return None
    if not isinstance(found, dict):
        unreadable.append(f"{path}: not a JSON object")
        return None
    return found


def _rows(path: Path, unreadable: list[str]) -> list[Row] | None:
    """Rows of a JSONL file. The last line may still be being written, and is then left out."""
    if not path.exists():
        return None
    damaged: list[int] = []
    try:
        rows = jsonl_rows(path, damaged)
    except OSError as error:
        unreadable.append(f"{path}: {error}")
        return None
    if damaged:
        count = len(damaged)
        unreadable.append(f"{path}: lines left out because they are no JSON object: {count}")
    return rows


def read_exports(run: Path) -> dict[str, dict[str, Any]]:
    """The exports of a run by name, as export.json tells; empty if there are none."""
    path = run / "export.json"
    if not path.exists():
        return {}
    exports: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["exports"]
    return exports


def read_run(run: Path) -> dict[str, dict[str, Any]]:
    """A run's measures: `{measure: {before, after, difference, low, high, p_value, n}}`.

    Raises:
        ConfigError: the folder holds no finished evaluation.
    """
    folder = run / "eval"
    try:
        before, after, comparison = (
            json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            for name in ("before", "after", "comparison")
        )
    except FileNotFoundError as error:
        raise ConfigError(f"{run}: no finished run there ({error.filename} is missing)") from None
    return {
        name: {"before": before[name], "after": after[name], **comparison[name]}
        for name in comparison
    }
