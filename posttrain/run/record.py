"""A run: what its folder holds, be it complete, unfinished, or with files missing or damaged, and
what follows from it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from eval.gsm8k import ScoredReply
from eval.measures import Change, Judged, headline
from eval.rewarded import RewardedReply
from eval.stats import Difference, Measure
from posttrain.base.errors import ConfigError, PostTrainError
from posttrain.base.files import jsonl_rows, model_fingerprint, read_object, rows_of
from posttrain.run.results import (
    Environment,
    Exported,
    HealthEvent,
    PromptReply,
    Stage,
    Validated,
    from_json,
)
from posttrain.settings.strict_yaml import read_yaml

TRACES = ("config.yaml", "environment.json", "metrics.jsonl", "eval")
SIDES = ("before", "after")
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
        last: Logged = next((row for row in reversed(self.metrics) if row.get("epoch")), {})
        step, epoch = number(last.get("step")), number(last.get("epoch"))
        return math.ceil(step * epochs / epoch - 1e-6) if step and epochs and epoch else None

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
        """The measures that were compared, the headline first: what the run sets out to raise, or
        where that was not measured, the first that was."""
        changes = {
            name: Change(**vars(change), before=self.before[name], after=self.after[name])
            for name, change in self.comparison.items()
            if name in self.before and name in self.after
        }
        comparable = [name for name, change in changes.items() if change.difference is not None]
        main = self.main_measure if self.main_measure in comparable else None
        first = main or next(iter(comparable), None)
        return changes if first is None else {first: changes[first], **changes}

    @property
    def headline(self) -> str | None:
        """The measure that the run is judged by; None where nothing can be compared."""
        name, change = next(iter(self.changes().items()), (None, None))
        return name if change and change.difference is not None else None


def number(value: object) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def section(values: Settings, name: str) -> Settings:
    """A mapping inside a mapping; empty where there is none."""
    inner = values.get(name)
    return inner if isinstance(inner, dict) else {}


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Several run folders; raises as `read_run`. Where two have the same name, as those of a
    repeat, all called seed-N, the folder around is part of the name, or else the complete path."""
    runs = [read_run(path) for path in paths]
    for parts in (1, 2, None):
        labels = [str(Path(*run.path.parts[-parts if parts else 0 :])) for run in runs]
        if len(set(labels)) == len({run.path for run in runs}):
            break
    return [replace(run, label=label) for run, label in zip(runs, labels, strict=True)]


def read_run(path: Path) -> Run:
    """A run folder; ConfigError if it holds nothing of a run."""
    path = path.resolve()
    if not any((path / name).exists() for name in TRACES):
        raise ConfigError(f"{path}: no run there (it holds none of {', '.join(TRACES)})")
    unreadable: list[str] = []

    def parsed(name: str, parse: Callable[[Path], T]) -> T | None:
        try:
            return parse(path / name) if (path / name).exists() else None
        except PostTrainError as error:  # it names the file
            unreadable.append(str(error))
        except (OSError, ValueError) as error:
            unreadable.append(f"{path / name}: {error}")
        return None

    def rows(name: str) -> list[dict[str, Any]] | None:
        damaged: list[int] = []
        read = parsed(name, lambda file: jsonl_rows(file, damaged))
        if damaged:
            what = "lines left out because they are not a JSON object"
            unreadable.append(f"{path / name}: {what}: {len(damaged)}")
        return read

    def replies(name: str, kind: type[Scored]) -> list[Scored]:
        read = rows(name) or []
        return parsed(name, lambda file: rows_of(kind, read, file)) or []

    exported = parsed("export.json", read_object) or {}
    health = rows("health.jsonl")
    run = Run(
        path=path,
        config=parsed("config.yaml", read_yaml) or {},
        environment=from_json(Environment, parsed("environment.json", read_object)),
        metrics=[*(rows("metrics.jsonl") or [])],
        samples=[*(rows("samples.jsonl") or [])],
        before=from_json(dict[str, Measure], parsed("eval/before.json", read_object)),
        after=from_json(dict[str, Measure], parsed("eval/after.json", read_object)),
        comparison=from_json(dict[str, Difference], parsed("eval/comparison.json", read_object)),
        health=None if health is None else [from_json(HealthEvent, row) for row in health],
        exports=from_json(dict[str, Exported], exported.get("exports")),
        adapter_16bit=from_json(Exported, exported.get("adapter_16bit")),
        data_report=parsed("data/report.json", read_object),
        validation=[from_json(Validated, row) for row in rows("eval/validation.jsonl") or []],
        unreadable=unreadable,
    )
    for side in SIDES:
        if run.method == "DPO":
            run.replies[side] = replies(f"eval/{side}_replies.jsonl", PromptReply)
        elif run.method:
            kind = RewardedReply if run.text_answers else ScoredReply
            run.replies[side] = replies(f"eval/{side}.jsonl", kind)
    return run


def chain_of(adapter: Path) -> list[Stage]:
    """The stages behind an adapter folder, the first one first. One that was not scored has no
    measure."""
    stage = Stage(adapter.name, model_fingerprint(adapter))
    of_checkpoint = adapter.parent.name == "checkpoints"
    folder = adapter.parent.parent if of_checkpoint else adapter.parent
    if not (of_checkpoint or adapter.name == "adapter") or not (folder / "config.yaml").is_file():
        return [stage]
    run = read_run(folder)
    trained, data = run.environment.trained, run.environment.data
    stage = replace(stage, name=folder.name, method=run.method.lower(), data=data)
    if of_checkpoint:  # which was not scored
        step = adapter.name.rpartition("-")[2]
        stage = replace(stage, steps=int(step) if step.isdigit() else None)
    else:
        stage = replace(stage, steps=trained.steps if trained else None)
        if (main := run.headline) is not None:
            change = run.changes()[main]
            stage = replace(stage, measure=main, before=change.before, after=change.after)
    return [*run.environment.stages, stage]
