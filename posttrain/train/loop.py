"""Run a trainer: checkpoints, metrics, and where a run stops early."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.base.disk import disk_full_error, is_disk_full
from posttrain.base.errors import HealthError
from posttrain.base.files import append_rows, jsonl_rows, keep_rows_until
from posttrain.base.progress import Clock
from posttrain.run.checkpoint import Score
from posttrain.run.folder import RunFolder
from posttrain.settings import Training, TrainingSettings
from posttrain.train.callback import Callback
from posttrain.train.guard import is_out_of_memory
from posttrain.train.stop import StepAbandoned, StopRequest
from posttrain.train.validation import Validation, Validator, last_step
from posttrain.train.view import TrainingView
from posttrain.train.watch import Watch

# Which checkpoint is the best: logged anyway, no evaluation needed. The margin of DPO would not do,
# because on training pairs it grows throughout training.
BEST_BY = {"sft": "-loss", "dpo": "rewards/accuracies", "grpo": "reward"}


def train(
    trainer: Any,
    settings: TrainingSettings,
    run: RunFolder,
    shown: dict[str, str],
    checkpoint: Path | None,
    identity: dict[str, Any],
    validator: Validator | None = None,
) -> dict[str, Any]:
    """Train from the start or from a checkpoint.

    `shown` maps the trainer's metric names to the labels they get in the view, the one to watch
    first; `identity` goes into every checkpoint; with a `validator` the policy ends as it was at
    its best. Returns steps, seconds, which adapter validation kept and, if it ended early, the
    reason; if a signal or the time limit did that, also the exit code.

    Raises:
        CheckpointError: the disk is full, and the earlier checkpoints are complete; or the best
            checkpoint is damaged.
        HealthError: the run was stopped for its health, or does not fit the memory.
    """
    from transformers import PrinterCallback

    training = settings.training
    if training.max_steps == 0:  # transformers would read 0 as "no limit" and train for an epoch
        print("training.max_steps is 0: nothing is trained")
        return {"steps": 0, "seconds": 0.0}
    clock = Clock(_seconds_until(run, checkpoint))
    if validator is not None:
        shown = {**shown, f"validation/{validator[1]}": "validation"}
    view = TrainingView(shown, settings.health.every)
    with StopRequest(settings.run.max_minutes) as stop, view:
        trainer.remove_callback(PrinterCallback)
        score = Score(BEST_BY[settings.method])
        trainer.add_callback(RunCallback(run, view, clock, stop, identity, training, score))
        watch = Watch(trainer, settings, run, stop)
        validation = Validation(validator, trainer, settings, run, stop) if validator else None
        try:
            _fit(watch, checkpoint, validation)
        except HealthError as error:
            ended = {"steps": trainer.state.global_step, "seconds": clock.seconds()}
            reason = str(error).split("\n")[0]
            run.amend({"trained": {**ended, "exit_code": error.exit_code, "reason": reason}})
            raise
        finally:
            shutil.rmtree(run.checkpoints.staging, ignore_errors=True)
    result = {"steps": trainer.state.global_step, "seconds": clock.seconds()}
    if stop.exit_code is not None:
        result |= {"exit_code": stop.exit_code, "reason": stop.reason}
    elif validation is not None:
        if validation.exhausted():
            result["reason"] = f"validations without a better one: {settings.run.patience}"
            print(f"Training ended at step {result['steps']}; {result['reason']} (run.patience)")
        result["kept"] = validation.keep_best(result["steps"])
    return result


def _fit(watch: Watch, checkpoint: Path | None, validation: Validation | None) -> None:
    """Train up to the last step or a signal; raises as `train`."""
    trainer, run = watch.trainer, watch.run
    try:
        if checkpoint is not None and validation is not None:
            validation.catch_up(checkpoint)
        if checkpoint is not None and _is_done(trainer, checkpoint, validation):
            _drop_later(run, trainer.state.global_step)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except StepAbandoned:
        watch.save_last_step()
    except HealthError:
        raise
    except Exception as error:
        if is_out_of_memory(error):  # where no smaller part can help
            watch.no_room("training", None)
        if is_disk_full(error, run.path):
            raise disk_full_error(run.path) from error
        raise


def _is_done(trainer: Any, checkpoint: Path, validation: Validation | None) -> bool:
    """Whether nothing is left to train after a checkpoint; the trainer then takes its weights.
    transformers would take one step more."""
    step = int(checkpoint.name[5:])
    if step < last_step(trainer) and not (validation is not None and validation.exhausted()):
        return False
    print(f"Training was already done at step {step}")
    trainer._load_from_checkpoint(str(checkpoint))
    trainer.state.global_step = step
    return True


def _seconds_until(run: RunFolder, checkpoint: Path | None) -> float:
    """Seconds of training up to the checkpoint that a run resumes from, by its metrics."""
    if checkpoint is None or not run.metrics.exists():
        return 0.0
    rows = [
        row for row in jsonl_rows(run.metrics, []) if row.get("step", 0) <= int(checkpoint.name[5:])
    ]
    return float(rows[-1].get("seconds", 0.0)) if rows else 0.0


def _drop_later(run: RunFolder, step: int) -> None:
    """Drop what the run wrote after the step that it resumes from: another future is made now."""
    for path in (run.metrics, run.samples, run.health):
        keep_rows_until(path, step)
    run.checkpoints.set_aside_after(step)


def _follow_schedule(scheduler: Any, optimizer: Any, peak: float) -> None:
    """Give the optimizer the learning rate that the schedule of this run has at this step. That of
    a checkpoint differs if its run had another length or peak."""
    scheduler = getattr(scheduler, "scheduler", scheduler)  # accelerate wraps it
    if hasattr(scheduler, "lr_lambdas"):
        scheduler.base_lrs = [peak] * len(scheduler.lr_lambdas)
        rates = [peak * scale(scheduler.last_epoch) for scale in scheduler.lr_lambdas]
        scheduler._last_lr = rates
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


@dataclass(eq=False)
class RunCallback(Callback):
    """Writes metrics.jsonl and sealed checkpoints, keeps the view up to date, stops early."""

    run: RunFolder
    view: TrainingView
    clock: Clock
    stop: StopRequest
    identity: dict[str, Any]
    training: Training
    score: Score

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        _drop_later(self.run, state.global_step)
        # A resumed run has the checkpoint's intervals, not those of its settings.
        state.compute_steps(args, state.max_steps)
        if state.global_step:
            _follow_schedule(more["lr_scheduler"], more["optimizer"], args.learning_rate)
        self.view.start(state.max_steps, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.stop.wanted() and self.training.safe_to_save(state.global_step):
            control.should_save = True
            control.should_training_stop = True
        control.should_log |= control.should_save  # a resumed run no longer has what came before
        if not control.should_log:  # else its metrics come first
            self.view.update(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step, keep = state.global_step, self.training.save_total_limit
        written = self.run.checkpoints.staging / f"checkpoint-{step}"
        self.run.checkpoints.publish(written, step, self.identity, keep, self.score.take())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        row = {"step": state.global_step, "seconds": self.clock.seconds(), **logs}
        append_rows(self.run.metrics, [row])
        self.score.add(logs)
        self.view.log(row)
        if "loss" in row:  # a validation comes before its step's own metrics
            self.view.update(state.global_step)
