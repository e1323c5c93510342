"""A run folder as it was left: complete, unfinished, or with files missing or damaged."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from eval.gsm8k import ScoredReply
from eval.measures import Change, Judged, headline
from eval.replies import PromptReply
from eval.rewarded import RewardedReply
from eval.stats import Difference, Measure
from posttrain.base.errors import ConfigError, PostTrainError
from posttrain.base.files import jsonl_rows, rows_of
from posttrain.run.lenient import from_json, mapping_of
from posttrain.run.results import Environment, Exported, HealthEvent, Kept, Validated
from posttrain.settings.strict_yaml import read_yaml

SIDES = ("before", "after")
TRACES = ("config.yaml", "environment.json", "metrics.jsonl", "eval")
Settings = Mapping[str, Any]
"""config.yaml, which may be of an earlier version."""
Logged = Mapping[str, object]
"""A row of metrics.jsonl or samples.jsonl: its names are the trainer's and the rewards'."""
Scored = ScoredReply | RewardedReply | PromptReply
"""A reply to one of the problems of SFT or GRPO, or of DPO's prompts."""
T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """What a run folder holds; what it does not hold is empty."""

    path: Path
    config: Settings
    environment: Environment
    metrics: list[Logged]
    samples: list[Logged]
    before: dict[str, Measure]
    after: dict[str, Measure]
    comparison: dict[str, Difference]
    health: list[HealthEvent] | None
    """None where nothing was watched."""
    exports: dict[str, Exported]
    adapter_16bit: Exported
    """The adapter of a 4-bit policy on 16-bit weights; only its score is known."""
    data_report: Settings | None
    validation: list[Validated]
    unreadable: list[str]
    """Why a file that is there could not be read, one sentence each."""
    replies: dict[str, list[Scored]] = field(default_factory=lambda: {side: [] for side in SIDES})
    """Scored replies `before` and `after`."""
    label: str = ""
    """Its name among runs whose folders have the same name; empty alone."""

    @property
    def name(self) -> str:
        return self.label or self.path.name

    @property
    def method(self) -> str:
        """`SFT`, `DPO` or `GRPO`; empty without a config that names it."""
        return str(self.config.get("method", "")).upper()

    @property
    def judged_by(self) -> Judged:
        """What its held-out rows are scored by."""
        data = self.section("data")
        if self.method == "DPO":
            return "pairs"
        if self.method == "SFT" and not data.get("problems"):
            return "losses"
        return "rewards" if data.get("answers") == "text" else "numbers"

    @property
    def text_answers(self) -> bool:
        """Whether its problems have text for an answer, so that rewards scored the replies."""
        return self.judged_by == "rewards"

    @property
    def main_measure(self) -> str:
        """What the run sets out to raise, whether it was measured or not."""
        return headline(self.judged_by)

    @property
    def finished(self) -> bool:
        return bool(self.comparison)

    @property
    def steps(self) -> int:
        return max((int(number(row.get("step")) or 0) for row in self.metrics), default=0)

    @property
    def total_steps(self) -> int | None:
        """Steps of the complete run; without training.max_steps, estimated from the epochs done."""
        training = self.section("training")
        steps = training.get("max_steps")
        if isinstance(steps, int) and steps >= 0:
            return steps
        epochs = number(training.get("num_train_epochs"))
        done = [(number(row["step"]), number(row.get("epoch"))) for row in self.metrics
                if "step" in row]  # fmt: skip
        step, epoch = done[-1] if done else (0, None)
        return math.ceil(step * epochs / epoch) if step and epochs and epoch else None

    @property
    def seconds(self) -> float:
        """Seconds of training, over all sessions of a run that was resumed."""
        total = last = 0.0
        for row in self.metrics:
            now = number(row.get("seconds")) or 0.0
            total += now - last if now >= last else now  # a resumed run's clock starts at 0
            last = now
        trained = self.environment.trained
        return max(total, (trained and trained.seconds) or 0.0)

    @property
    def kept(self) -> Kept | None:
        """Which adapter was kept; None without validation."""
        return self.environment.kept

    @property
    def written(self) -> datetime | None:
        """When the newest metrics were written."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return None
        return datetime.fromtimestamp(path.stat().st_mtime).astimezone()

    def section(self, name: str) -> Settings:
        """A section of the settings; empty where there is none."""
        return section(self.config, name)

    def changes(self) -> dict[str, Change]:
        """The measures that were compared, the headline first.

        Where what the run sets out to raise was not measured, the first that was is the headline.
        """
        names = [name for name in self.comparison if name in self.before and name in self.after]
        found = {
            name: Change(
                **vars(self.comparison[name]), before=self.before[name], after=self.after[name]
            )
            for name in names
        }
        comparable = [name for name in names if found[name].difference is not None]
        main = self.main_measure if self.main_measure in comparable else None
        first = main or next(iter(comparable), None)
        return found if first is None else {first: found[first], **found}

    @property
    def headline(self) -> str | None:
        """The measure that the run is judged by; None where nothing can be compared."""
        name, change = next(iter(self.changes().items()), (None, None))
        return name if change and change.difference is not None else None


def read_runs(paths: Sequence[Path], finished: bool = False) -> list[Run]:
    """Several run folders. Where two have the same name, as those of a repeat, which are all called
    seed-N, the folder around is part of the name, or else the complete path.

    Raises:
        ConfigError: as `read_run`.
    """
    runs = [read_run(path, finished) for path in paths]
    for parts in (1, 2, None):
        labels = [str(Path(*run.path.parts[-parts if parts else 0 :])) for run in runs]
        if len(set(labels)) == len({run.path for run in runs}):
            break
    return [replace(run, label=label) for run, label in zip(runs, labels, strict=True)]


def read_run(path: Path, finished: bool = False) -> Run:
    """A run folder.

    Raises:
        ConfigError: there is no trace of a run in it, or with `finished` no complete comparison.
    """
    path = path.resolve()
    _check(path, finished)
    unreadable: list[str] = []

    def parsed(name: str, parse: Callable[[Path], T]) -> T | None:
        return _read(path / name, parse, unreadable)

    def rows(name: str) -> list[dict[str, Any]] | None:
        damaged: list[int] = []
        found = parsed(name, lambda file: jsonl_rows(file, damaged))
        if damaged:
            what = "lines left out because they are not a JSON object"
            unreadable.append(f"{path / name}: {what}: {len(damaged)}")
        return found

    def replies(name: str, kind: type[Scored]) -> list[Scored]:
        found = rows(name) or []
        return parsed(name, lambda file: rows_of(kind, found, file)) or []

    exported = parsed("export.json", _object) or {}
    health = rows("health.jsonl")
    run = Run(
        path=path,
        config=parsed("config.yaml", read_yaml) or {},
        environment=from_json(Environment, parsed("environment.json", _object)),
        metrics=[*(rows("metrics.jsonl") or [])],
        samples=[*(rows("samples.jsonl") or [])],
        before=mapping_of(Measure, parsed("eval/before.json", _object)),
        after=mapping_of(Measure, parsed("eval/after.json", _object)),
        comparison=mapping_of(Difference, parsed("eval/comparison.json", _object)),
        health=None if health is None else [from_json(HealthEvent, row) for row in health],
        exports=mapping_of(Exported, exported.get("exports")),
        adapter_16bit=from_json(Exported, exported.get("adapter_16bit")),
        data_report=parsed("data/report.json", _object),
        validation=[from_json(Validated, row) for row in rows("eval/validation.jsonl") or []],
        unreadable=unreadable,
    )
    for side in SIDES:
        if run.method in ("GRPO", "SFT"):
            kind = RewardedReply if run.text_answers else ScoredReply
            run.replies[side] = replies(f"eval/{side}.jsonl", kind)
        elif run.method == "DPO":
            run.replies[side] = replies(f"eval/{side}_replies.jsonl", PromptReply)
    if finished and not run.changes():
        raise ConfigError(f"{path}: no scores there to compare. {' '.join(unreadable)}")
    return run


def _check(path: Path, finished: bool) -> None:
    """Refuse a folder that is not a run's, or not a finished run's."""
    for name in ("before", "after", "comparison") if finished else ():
        file = path / "eval" / f"{name}.json"
        if not file.exists():
            raise ConfigError(f"{path}: no finished run there ({file} is missing)")
    if not finished and not any((path / name).exists() for name in TRACES):
        raise ConfigError(f"{path}: no run there (it holds none of {', '.join(TRACES)})")


def number(value: object) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def section(values: Settings, name: str) -> Settings:
    """A mapping inside a mapping; empty where there is none."""
    inner = values.get(name)
    return inner if isinstance(inner, dict) else {}


def _object(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def _read(path: Path, parse: Callable[[Path], T], unreadable: list[str]) -> T | None:
    """The content of a file; None where it is missing, or cannot be read (see `unreadable`)."""
    try:
        return parse(path) if path.exists() else None
    except PostTrainError as error:  # it names the file
        unreadable.append(str(error))
    except (OSError, ValueError) as error:
        unreadable.append(f"{path}: {error}")
    return None
