"""Score rows that were set aside from the training data while a run trains; keep its best adapter.

Small models are often at their best before their last step. The best step is chosen on training
rows, picked by a hash, that are not trained on. The held-out rows of the test set are scored before
and after training only, so the choice does not flatter what they show of the kept adapter.

A checkpoint is written with every validation, and the best one of them is not deleted.
"""

import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval import figures
from eval.measures import kind
from eval.stats import Measure
from posttrain.base.errors import CheckpointError
from posttrain.base.files import append_rows, jsonl_rows, keep_rows_until
from posttrain.base.progress import Clock, say
from posttrain.run.checkpoint import verify
from posttrain.run.folder import RunFolder
from posttrain.run.results import Kept, Validated, from_json
from posttrain.settings import TrainingSettings
from posttrain.train.callback import Callback, random_states
from posttrain.train.stop import StepAbandoned, StopRequest

Measures = dict[str, Measure]
Validator = tuple[Callable[[], Measures], str]
"""What scores the policy as it is, and the measure whose best value decides."""


def last_step(trainer: Any) -> int:
    """The last step that a trainer will make, as transformers counts them."""
    if trainer.args.max_steps > 0:
        return int(trainer.args.max_steps)
    return int(
        trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]
    )


class Validation(Callback):
    """The validations of one run, in eval/validation.jsonl: `{"step", "measures"}` a row. Creating
    it attaches it to the trainer, after the Watch, which has to see a step first."""

    def __init__(
        self,
        validator: Validator,
        trainer: Any,
        settings: TrainingSettings,
        run: RunFolder,
        stop: StopRequest,
    ) -> None:
        self._measure, self.by = validator
        self.rows: list[Validated] = []
        self._folder = run
        self._settings = settings
        self._trainer = trainer
        self._stop = stop
        trainer.add_callback(self)
        self._path = run.path / "eval" / "validation.jsonl"

    def begin(self, step: int) -> None:
        """Read the validations up to `step`, where training begins."""
        if step == 0:
            self._path.unlink(missing_ok=True)
        keep_rows_until(self._path, step)
        rows = jsonl_rows(self._path) if self._path.exists() else []
        self.rows = [from_json(Validated, row) for row in rows]
        self._rank()

    def due(self, step: int, last: int) -> bool:
        """Whether a validation belongs after `step` of `last` and was not made yet."""
        every = self._settings.evaluation.every
        wanted = step == 0 or step >= last or (every is not None and step % every == 0)
        return wanted and not any(row.step == step for row in self.rows)

    def take(self, step: int) -> dict[str, float | None]:
        """Score the policy after `step`. Returns what to log: each measure, and the seconds."""
        clock, restore = Clock(), random_states()  # a reward may draw random numbers
        try:
            row = Validated(step, self._measure())
        finally:
            restore()
        append_rows(self._path, [asdict(row)])
        self.rows.append(row)
        self._rank()
        say(f"validation at step {step}: {self.describe(row)}")
        values = {f"validation/{name}": each.value for name, each in row.measures.items()}
        return {**values, "validation/seconds": clock.seconds()}

    def describe(self, row: Validated) -> str:
        """`strict accuracy 45.0% [38.3%, 51.8%]`: the measure that decides."""
        return f"{figures.label(self.by)} {figures.value(self.by, row.measures[self.by])}"

    def _rank(self) -> None:
        """Let the checkpoints be ranked by validation, not by what training itself logged."""
        self._folder.checkpoints.values = {row.step: self._rating(row) for row in self.rows}

    def _rating(self, row: Validated) -> float:
        """The value that decides, so that higher is better."""
        value = row.measures[self.by].value
        assert value is not None  # the scripts refuse what they cannot score
        return -value if kind(self.by).better < 0 else value

    def exhausted(self) -> bool:
        """Whether the last `run.patience` validations were no better than one before them."""
        values, patience = [self._rating(row) for row in self.rows], self._settings.run.patience
        if patience is None or not values:
            return False
        return len(values) - 1 - values.index(max(values)) >= patience

    def catch_up(self, checkpoint: Path) -> None:
        """Make the validation of a checkpoint if a signal or a crash came before it."""
        from transformers import TrainerState

        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        self.begin(state.global_step)
        self._trainer.state = state  # for a signal meanwhile
        if self.due(state.global_step, last_step(self._trainer)):
            self._trainer._load_from_checkpoint(str(checkpoint))
            self.run(state)

    def run(self, state: Any) -> None:
        """Make a validation and log it as a trainer's metrics; StepAbandoned if a signal comes."""
        trainer = self._trainer
        with self._stop.interruptible(self._settings.training.safe_to_save(state.global_step)):
            logs = self.take(state.global_step)
        own = copy.copy(trainer.control)  # on_log marks in it that the step was logged
        trainer.callback_handler.on_log(trainer.args, state, own, logs)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self.begin(0)
            self.run(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._stop.decided or not self.due(state.global_step, state.max_steps):
            return
        control.should_save = control.should_log = True
        try:
            self.run(state)
        except StepAbandoned:  # the step itself has ended: it is logged and saved
            control.should_training_stop = True
            return
        control.should_training_stop |= self.exhausted()

    def keep_best(self, step: int) -> dict[str, Any]:
        """Give the policy the adapter of its best validation, after training ended at `step`; as
        `kept` of environment.json. Raises CheckpointError if the best checkpoint is damaged."""
        path = None if self._settings.run.keep == "last" else self._folder.checkpoints.best()
        kept = step if path is None else int(path.name[5:])
        row = next(row for row in self.rows if row.step == kept)
        if path is not None and kept != step:
            if problem := verify(path):
                raise CheckpointError(
                    f"{path}, the best by validation, is damaged: {problem}. run.keep=last "
                    "keeps the adapter of the last step instead"
                )
            self._trainer._load_from_checkpoint(str(path))
            print(
                f"Kept the adapter of step {kept}, the best of {len(self.rows)} validations: "
                f"{self.describe(row)}; at step {step}: {self.describe(self.rows[-1])}"
            )
        first, value = self.rows[0], row.measures[self.by].value
        before = first.measures[self.by].value
        if first.step or first is row or self._rating(first) <= self._rating(row):
            before = None
        else:
            print(f"warning: before training the same rows had {self.describe(first)}")
        return asdict(Kept(kept, self.by, value, len(self.rows), path is not None, before))
