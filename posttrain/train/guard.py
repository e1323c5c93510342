"""Training steps that survive a full memory, bad losses and signals, for all of trl's trainers.

A subclass of the trainer (trl's own, or the one that Unsloth puts in its place on a GPU) runs each
micro-batch in parts that fit the memory, reports it to the Watch, which checks the loss before the
optimizer step, and lets a signal end a step in the middle. The loss and gradient of the parts are
those of the micro-batch; a metric is the mean over the parts.
"""

import copy
from typing import Any

from posttrain.model import adapter, runtime
from posttrain.train.arguments import refused_by
from posttrain.train.micro_batches import Batch, Part


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the memory of the GPU or of the machine is full."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and (
        "CUBLAS_STATUS_ALLOC_FAILED" in message or "DefaultCPUAllocator: can't allocate" in message
    )


def ordered_by_epoch(sampler: Any, seed: int) -> Any:
    """The sampler, whose order now depends on the seed and the epoch alone, not on the epochs
    before, which a resumed run does not draw."""
    sampler.set_epoch = lambda epoch: sampler.generator.manual_seed(seed + epoch)
    return sampler


def guarded(trainer_class: Any) -> Any:
    """The part of the subclass that all trainers share. How a micro-batch is divided differs: see
    trainers.py and grpo_trainer.py."""

    class Guarded(trainer_class):  # type: ignore[misc]  # known only at run time
        watch: Any = None  # the watch.Watch to report to; None switches all of this off
        rows_at_once: int | None = None  # rows of a micro-batch that fit the memory; None is all
        _stepping = False  # in a training step, not in an evaluation
        _batch: Batch | None = None  # the current micro-batch, once it is prepared
        _parts: list[Part]
        _next = 0  # index of the part to run
        _grads: list[tuple[Any, Any]]  # (weight, its gradient) before the micro-batch
        _logged: dict[str, list[float]]  # metrics before it
        _tokens: int  # trl's count of them before it

        def __init__(self, model: Any, args: Any, **others: Any) -> None:
            refused = refused_by(trainer_class.__name__)
            with adapter.without_copy(model), runtime.full_precision(model, args), refused:
                super().__init__(model=model, args=args, **others)

        def create_model_card(self, *arguments: Any, **options: Any) -> None:
            """trl's card of a checkpoint is not written: a run has its own, and trl reads its
            template in the encoding of the locale, which may be ASCII."""

        def _track_num_input_tokens(self, inputs: Any) -> None:
            """Nothing is added for include_num_input_tokens_seen: trl's count is in the same
            field of the trainer state, and the sum of both would be twice the tokens."""

        @property
        def _total_train_tokens(self) -> int:
            """trl's count of tokens, kept in the trainer state, which a checkpoint saves."""
            return int(self.state.num_input_tokens_seen)

        @_total_train_tokens.setter
        def _total_train_tokens(self, count: int) -> None:
            self.state.num_input_tokens_seen = count

        def learnable(self, batch: Batch) -> Any:
            """Above 0 if the micro-batch has something to learn from, as replies and pairs have."""
            return batch["input_ids"].new_ones(())

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            if self.watch is None:
                return super().training_step(model, inputs, num_items_in_batch)
            self._batch, self._stepping = None, True
            try:
                with self.watch.interruptible(self.state.global_step):
                    loss = self._until_it_fits(model, inputs, num_items_in_batch)
            finally:
                batch, self._batch, self._stepping = self._batch, None, False
            self.watch.after_micro_batch(loss, batch, self.accelerator.sync_gradients)
            return loss

        def _until_it_fits(self, model: Any, inputs: Any, num_items_in_batch: Any) -> Any:
            while True:
                try:
                    return self._run_parts(model, inputs, num_items_in_batch)
                except RuntimeError as error:
                    if self._batch is None or not is_out_of_memory(error):
                        raise
                    rows = max(self.count(part.inputs) for part in self._parts)
                # Outside of `except`: the error holds the tensors of the failed attempt.
                for weight, grad in self._grads:
                    weight.grad = None if grad is None else grad.clone()
                self._metrics["train"] = copy.deepcopy(self._logged)
                self._total_train_tokens = self._tokens
                self.watch.halve("training", rows, self.divisible())

        def _run_parts(self, model: Any, inputs: Any, num_items_in_batch: Any) -> Any:
            self._next, total = 0, 0
            while self._next == 0 or self._next < len(self._parts):
                if self._next > 0:
                    self._before_next_part()
                total = total + super().training_step(model, inputs, num_items_in_batch)
                self._next += 1
            self._grads, self._logged = [], {}
            return total

        def _prepare_inputs(self, inputs: Any) -> Any:
            """transformers calls this at the start of a training step; returns the next part."""
            if not self._stepping:
                return super()._prepare_inputs(inputs)
            if self._batch is None:
                self._batch = super()._prepare_inputs(inputs)
                # What a failed attempt would change.
                self._grads = [
                    (weight, None if weight.grad is None else weight.grad.clone())
                    for weight in self.watch.weights
                ]
                self._logged = copy.deepcopy(self._metrics["train"])
                self._tokens = self._total_train_tokens
            if self._next == 0:
                # rows_at_once may come from a run with another loss, that this one resumes.
                rows, count = self.rows_at_once, self.count(self._batch)
                divided = rows is not None and rows < count and self.divisible()
                self._parts = self.split(self._batch, rows) if divided else [Part(self._batch)]
            return self._parts[self._next].inputs

        def _before_next_part(self) -> None:
            pass

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if self.rows_at_once is not None:
                logs["rows_at_once"] = self.rows_at_once
            super().log(logs, start_time)

    return Guarded
