"""A run: what its folder holds, and what follows from it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from eval.gsm8k import ScoredReply
from eval.measures import Change, Judged, headline
from eval.replies import PromptReply
from eval.rewarded import RewardedReply
from eval.stats import Difference, Measure
from posttrain.run.results import Environment, Exported, HealthEvent, Validated

SIDES = ("before", "after")
Settings = Mapping[str, Any]
"""config.yaml, which may be of an earlier version."""
Logged = Mapping[str, object]
"""A row of metrics.jsonl or samples.jsonl: its names are the trainer's and the rewards'."""
Scored = ScoredReply | RewardedReply | PromptReply
"""A reply to one of the problems of SFT or GRPO, or of DPO's prompts."""


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
        """The measures that were compared, the headline first.

        Where what the run sets out to raise was not measured, the first that was is the headline.
        """
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
