"""Watch a run while it trains: check its health and write health.jsonl.

The trainer (posttrain/train/guard.py) reports its micro-batches and where memory ran out.
transformers' callbacks report its steps and metrics.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from posttrain.base.errors import HealthError
from posttrain.base.files import append_rows, jsonl_rows, write_text
from posttrain.base.progress import say
from posttrain.model.device import free_memory
from posttrain.run.folder import RunFolder
from posttrain.run.results import HealthEvent
from posttrain.settings import GRPOSettings, GRPOTraining, TrainingSettings
from posttrain.train.callback import Callback, random_states
from posttrain.train.health import RuleWatcher, UpdateCheck, rules_for
from posttrain.train.stop import StopRequest

SIZES = {  # kind of event -> the attribute of the trainer that it halves
    "out_of_memory_training": "rows_at_once",
    "out_of_memory_generation": "prompts_at_once",
    "out_of_memory_scoring": "scored_at_once",
}


class Watch(Callback):
    """Checks the health of one run. Creating it attaches it to the trainer."""

    def __init__(
        self, trainer: Any, settings: TrainingSettings, run: RunFolder, stop: StopRequest
    ) -> None:
        self.trainer = trainer
        self.settings = settings
        self.run = run
        self.stop = stop
        health = settings.health
        rewards = settings.rewards if isinstance(settings, GRPOSettings) else ()
        rules = rules_for(health, getattr(settings.training, "beta", 0.0), rewards)
        self.rules = RuleWatcher(rules, health.patience, getattr(health, "stop_on", []))
        self.updates = UpdateCheck(health.max_skipped_steps, health.max_still_steps)
        self._step: list[tuple[Any, Any]] = []  # (loss, micro-batch) of the current step
        self._last: list[Any] = []  # micro-batches of the last finished step
        self._learnable = True
        self._learning_rate = 0.0
        # Restores the RNG states of the last finished step, and the count of tokens then.
        self._after_step: tuple[Callable[[], None], int] | None = None
        trainer.watch = self
        trainer.add_callback(self)

    @cached_property
    def weights(self) -> list[Any]:
        """The trained tensors. Read this only once training has begun."""
        return [weight for weight in self.trainer.model.parameters() if weight.requires_grad]

    # Called by the trainer.

    def interruptible(self, step: int) -> AbstractContextManager[None]:
        """Let a signal end the step after `step` at once, if a run can resume from `step`."""
        return self.stop.interruptible(step > 0 and self.settings.training.safe_to_save(step))

    def after_micro_batch(self, loss: Any, batch: Any, is_last: bool) -> None:
        """Keep a micro-batch. After the last one of a step, check the losses of all, before the
        optimizer step. Only this check waits for the device, once a step."""
        import torch

        self._step.append((loss, batch))
        if not is_last:
            return
        step, self._step = self._step, []
        learnable = [self.trainer.learnable(batch) for _, batch in step]
        values = torch.stack([*(loss for loss, _ in step), *learnable]).float().tolist()
        losses = values[: len(step)]
        self._last = [batch for _, batch in step]
        bad = [i for i, value in enumerate(losses) if not math.isfinite(value)]
        self._learnable = any(values[len(step) :])
        if bad:
            number = self.trainer.state.global_step + 1
            where = self._write_batches(number, [self._last[i] for i in bad], losses)
            message = (
                f"the loss is {losses[bad[0]]}. Its rows are in {where}. Lower "
                "training.learning_rate, or train in bf16 or float32; if one row alone causes it, "
                "remove it from the data"
            )
            self.record(HealthEvent(number, "loss_not_finite", message, action="stopped"))

    def halve(self, what: str, rows: int, divisible: bool = True) -> None:
        """Have the trainer try half of `rows` at once, with which memory ran out. HealthError where
        that cannot help: for a single row, or a loss that is not a sum over rows (`divisible`)."""
        free_memory()
        if rows == 1 or not divisible:
            self.no_room(what, rows)
        fewer = (rows + 1) // 2
        setattr(self.trainer, SIZES[f"out_of_memory_{what}"], fewer)
        message = (
            f"out of memory in {what} with {self._count(what, rows)} at once; continuing with "
            f"{fewer}, the effective batch unchanged"
        )
        step = self.trainer.state.global_step + 1
        self.record(HealthEvent(step, f"out_of_memory_{what}", message, fewer, rows, "halved"))

    def no_room(self, what: str, rows: int | None) -> None:
        """Raise HealthError: memory ran out, and smaller parts cannot help."""
        model, training = self.settings.model, self.settings.training
        advice = []
        if rows is not None and rows > 1:
            advice.append(f"training.per_device_train_batch_size below {rows}")
        if isinstance(training, GRPOTraining):
            advice.append(f"training.max_completion_length below {training.max_completion_length}")
        advice.append(f"model.max_seq_length below {model.max_seq_length}")
        if not training.gradient_checkpointing:
            advice.append("training.gradient_checkpointing: true")
        if not model.load_in_4bit:
            advice.append("model.load_in_4bit: true")
        size = "" if rows is None else f" with {self._count(what, rows)} at once"
        message = (
            f"out of memory in {what}{size}, and smaller parts cannot help. What can help: "
            + "; ".join(advice)
        )
        step = self.trainer.state.global_step + 1
        self.record(HealthEvent(step, f"out_of_memory_{what}", message, rows, None, "stopped"))

    def _count(self, what: str, rows: int) -> str:
        units = {"sft": ("reply", "replies"), "dpo": ("pair", "pairs")}
        one, several = units.get(self.settings.method, ("completion", "completions"))
        if what == "generation":
            one, several = "prompt", "prompts"
        return f"{rows} {one if rows == 1 else several}"

    # Called by transformers.

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Read metrics up to the checkpoint, for the rules, and the batch sizes that fit memory."""
        for row in _read(self.run.metrics):
            if "loss" in row:
                self.rules.observe(row["step"], row)
        self.rules.resume_after(state.global_step)
        for event in _read(self.run.health):
            if event["action"] == "halved":
                setattr(self.trainer, SIZES[event["kind"]], int(event["value"]))

    def on_pre_optimizer_step(self, *_: Any, optimizer: Any, **__: Any) -> None:
        self._learning_rate = max(group["lr"] for group in optimizer.param_groups)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Check the weights after a step, before they can be saved in a checkpoint."""
        import torch

        step = state.global_step
        weights = [weight.detach() for weight in self.weights]
        norms = torch.stack(torch._foreach_norm(weights, 2, dtype=torch.float64)).tolist()
        skipped = bool(self.trainer.accelerator.optimizer_step_was_skipped)
        event = self.updates.observe(step, norms, self._learning_rate, skipped, self._learnable)
        if event is not None:
            if event.kind == "weights_not_finite":
                where = self._write_batches(step, self._last, [])
                event = replace(event, message=f"{event.message}. The step's rows are in {where}")
            self.record(event)
        self._last = []
        self._after_step = random_states(), state.num_input_tokens_seen

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "loss" in logs:  # not the totals after the last step
            for event in self.rules.observe(state.global_step, logs):
                self.record(event)

    # Act on events.

    def record(self, event: HealthEvent) -> None:
        """Write an event to health.jsonl and print it, or raise HealthError if it stops the run."""
        append_rows(self.run.health, [asdict(event)])
        if event.action != "stopped":
            label = "warning" if event.action == "warned" else "note"
            say(f"{label}: step {event.step}: {event.message}")
            return
        advice = "There is no checkpoint yet: the same command starts over"
        if kept := self.run.checkpoints.steps():
            advice = (
                f"Newest checkpoint, from before this: {kept[-1]}\n       With changed settings, "
                '"--resume-anyway" resumes from it and "--resume never" starts over (the old '
                "folder is moved aside)"
            )
        raise HealthError(f"step {event.step}: {event.message}\n       {advice}")

    def _write_batches(self, step: int, batches: list[Any], losses: list[float]) -> Path:
        """Write a step's rows for a person to read, one a line. NaN and infinity become text."""

        def text(value: Any) -> str:
            return to_json(value, inf_nan_mode="strings").decode()

        rows = ",\n".join(text(r) for batch in batches for r in self.trainer.rows_as_text(batch))
        path = self.run.path / "health" / f"step-{step:06d}" / "batch.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, f'{{"step": {step}, "losses": {text(losses)}, "rows": [\n{rows}\n]}}\n')
        return path

    def save_last_step(self) -> None:
        """Write the checkpoint of the last finished step, after a signal ended the next one."""
        trainer = self.trainer
        kept = self.run.checkpoints.folder / f"step-{trainer.state.global_step:06d}"
        if kept.exists() or self._after_step is None:  # or no step was trained since the resume
            return
        restore, trainer.state.num_input_tokens_seen = self._after_step
        restore()
        trainer._save_checkpoint(trainer.model, None)
        trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)


def _read(path: Path) -> list[dict[str, Any]]:
    return jsonl_rows(path) if path.exists() else []
