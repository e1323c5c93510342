"""The checkpoint that a run resumes from, and the scores that it then keeps."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from posttrain.model import trust
from posttrain.run.checkpoint import check_same_run, only_length
from posttrain.run.folder import RunFolder
from posttrain.settings import Training, TrainingSettings

T = TypeVar("T")


class Resume:
    """Where a run begins: at a checkpoint, or with None at the start."""

    def __init__(self, run: RunFolder, settings: TrainingSettings, resume: str) -> None:
        """`resume` is that of the command line; raises as `RunFolder.checkpoint`."""
        self.checkpoint = run.checkpoint(resume)
        self._run = run
        self._settings = settings
        self._changes: list[str] = []

    def check(self, identity: dict[str, Any], anyway: bool) -> None:
        """Raise ConfigError if the checkpoint cannot be trusted or, unless `anyway`, is of a run
        with another identity; lists every difference."""
        if self.checkpoint:
            trust.check_checkpoint(self.checkpoint)
            self._changes = check_same_run(self.checkpoint, identity, anyway)

    def kept_scores(self, read: Callable[[], T | None]) -> T | None:
        """What `read` returns of the scores that an interrupted run took before its first step;
        None from the start, or on resuming with other settings than the length."""
        if self.checkpoint is None:
            return None
        scores = read() if only_length(self._changes) else None
        training = self._settings.training
        note = resuming_from(self.checkpoint, training, self._run)
        if self._settings.run.score:
            kept = "taken again" if scores is None else "kept"
            note += f"; the scores from before training are {kept}"
        print(note)
        if self._changes and training.lr_scheduler_type != "constant":
            print(
                f"The learning rate follows the {training.lr_scheduler_type} schedule of the new "
                "settings from here on, which may be far from where it ended"
            )
        return scores


def resuming_from(checkpoint: Path, training: Training, run: RunFolder) -> str:
    """`Resuming from step 3 of 12 (checkpoints/step-000003)`."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    total = training.max_steps if training.max_steps >= 0 else state["max_steps"]
    epochs = math.ceil(training.num_train_epochs)
    if training.max_steps < 0 and state.get("num_train_epochs", epochs) != epochs:
        total = f"{training.num_train_epochs:g} epochs"
    inside = checkpoint.is_relative_to(run.path)
    shown = checkpoint.relative_to(run.path) if inside else checkpoint
    return f"Resuming from step {state['global_step']} of {total} ({shown})"
