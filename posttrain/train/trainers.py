"""The guarded subclasses of trl's SFTTrainer and DPOTrainer: how each divides its micro-batches."""

from typing import Any

from posttrain.train.guard import guarded
from posttrain.train.micro_batches import (
    PAIR_LOSSES,
    PAIR_METRICS,
    REPLY_LOSSES,
    Batch,
    Part,
    pair_count,
    pairs_as_text,
    replies_as_text,
    scored_tokens,
    split_pairs,
    split_replies,
)


class CountsTokens:
    """trl's count of tokens, kept in the trainer state, which a checkpoint saves."""

    state: Any
    _tokens = 0

    @property
    def _total_train_tokens(self) -> int:
        return int(self.state.num_input_tokens_seen)

    @_total_train_tokens.setter
    def _total_train_tokens(self, count: int) -> None:
        self.state.num_input_tokens_seen = count

    def _save_before_attempt(self) -> None:
        super()._save_before_attempt()  # type: ignore[misc]
        self._tokens = self._total_train_tokens

    def _undo_attempt(self) -> None:
        super()._undo_attempt()  # type: ignore[misc]
        self._total_train_tokens = self._tokens


def guarded_sft(trainer_class: Any) -> Any:
    """The guarded subclass of an SFTTrainer."""

    class GuardedSFT(CountsTokens, guarded(trainer_class)):  # type: ignore[misc]
        def count(self, batch: Batch) -> int:
            return len(batch["input_ids"])

        def split(self, batch: Batch, rows: int) -> list[Part]:
            return split_replies(batch, rows)

        def divisible(self) -> bool:
            """Whether the loss is a sum over tokens."""
            return self.args.loss_type in REPLY_LOSSES and not self.aux_loss_enabled

        def metric_kind(self, name: str) -> str:
            return "tokens"  # entropy and mean_token_accuracy

        def rows_as_text(self, batch: Batch) -> list[dict[str, Any]]:
            return replies_as_text(batch, self.processing_class.decode)

        def compute_loss(self, model: Any, inputs: Any, **options: Any) -> Any:
            """Divide the sum over a part's tokens by the tokens of the step or, if these are not
            counted, of the micro-batch."""
            divided = self._batch is not None and len(self._parts) > 1
            if divided and options.get("num_items_in_batch") is None:
                options["num_items_in_batch"] = scored_tokens(self._batch)
            return super().compute_loss(model, inputs, **options)

    return GuardedSFT


def guarded_dpo(trainer_class: Any) -> Any:
    """The guarded subclass of a DPOTrainer."""

    class GuardedDPO(CountsTokens, guarded(trainer_class)):  # type: ignore[misc]
        loss_weights: list[float]
        train_sampler: Any = None
        """Draws the training rows; None is transformers' own choice."""

        def _get_train_sampler(self, *rows: Any) -> Any:
            if self.train_sampler is not None:
                return self.train_sampler
            return super()._get_train_sampler(*rows)

        def _get_eval_sampler(self, rows: Any) -> Any:
            """In their order, where transformers would group by a column that trl removes."""
            return None if self.train_sampler is not None else super()._get_eval_sampler(rows)

        def count(self, batch: Batch) -> int:
            return pair_count(batch)

        def split(self, batch: Batch, rows: int) -> list[Part]:
            return split_pairs(batch, rows, self.loss_types, self.loss_weights)

        def divisible(self) -> bool:
            """Whether the loss is a sum over pairs or tokens. Weighted, sft mixes both."""
            return set(self.loss_types) <= set(PAIR_LOSSES) and not (
                ("sft" in self.loss_types and self.use_weighting) or self.aux_loss_enabled
            )

        def metric_kind(self, name: str) -> str:
            return PAIR_METRICS.get(name, "pairs")

        def rows_as_text(self, batch: Batch) -> list[dict[str, Any]]:
            return pairs_as_text(batch, self.processing_class.decode)

        def compute_loss(self, model: Any, inputs: Any, **options: Any) -> Any:
            own = self.loss_weights
            if self._batch is not None:
                self.loss_weights = list(self._parts[self._next].loss_weights) or own
            try:
                return super().compute_loss(model, inputs, **options)
            finally:
                self.loss_weights = own

    return GuardedDPO
