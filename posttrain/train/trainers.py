"""The guarded subclasses of trl's SFTTrainer and DPOTrainer: how each divides its micro-batches."""

from typing import Any

from posttrain.model.fewer_tokens import WithoutPadding
from posttrain.train import micro_batches
from posttrain.train.batches import grouped_by_length
from posttrain.train.guard import guarded
from posttrain.train.micro_batches import Batch, Part, pair_count


def guarded_sft(trainer_class: Any) -> Any:
    """The guarded subclass of an SFTTrainer."""

    class GuardedSFT(guarded(trainer_class)):  # type: ignore[misc]
        def count(self, batch: Batch) -> int:
            return len(batch["input_ids"])

        def split(self, batch: Batch, rows: int) -> list[Part]:
            return micro_batches.split_replies(batch, rows)

        def divisible(self) -> bool:
            """Whether the loss is a sum over tokens."""
            return self.args.loss_type in micro_batches.REPLY_LOSSES and not self.aux_loss_enabled

        def rows_as_text(self, batch: Batch) -> list[dict[str, Any]]:
            """Prompt and reply of each row."""
            decode = self.processing_class.decode
            reply = batch["labels"] != micro_batches.NOT_SCORED
            read = batch["attention_mask"].bool() if "attention_mask" in batch else True
            return [
                {"prompt": decode(ids[before]), "reply": decode(ids[after])}
                for ids, before, after in zip(batch["input_ids"], ~reply & read, reply, strict=True)
            ]

        def compute_loss(self, model: Any, inputs: Any, **options: Any) -> Any:
            """Divide the sum over a part's tokens by the tokens of the step or, if these are not
            counted, of the micro-batch."""
            divided = self._batch is not None and len(self._parts) > 1
            if divided and options.get("num_items_in_batch") is None:
                options["num_items_in_batch"] = micro_batches.scored_tokens(self._batch)
            return super().compute_loss(model, inputs, **options)

    return GuardedSFT


def guarded_dpo(trainer_class: Any) -> Any:
    """The guarded subclass of a DPOTrainer."""

    class GuardedDPO(guarded(trainer_class)):  # type: ignore[misc]
        loss_weights: list[float]

        def _get_train_sampler(self, *rows: Any) -> Any:
            if self.args.train_sampling_strategy == "group_by_length":
                return grouped_by_length(self.train_dataset, self.args)
            return super()._get_train_sampler(*rows)

        def count(self, batch: Batch) -> int:
            return pair_count(batch)

        def split(self, batch: Batch, rows: int) -> list[Part]:
            return micro_batches.split_pairs(batch, rows, self.loss_types, self.loss_weights)

        def divisible(self) -> bool:
            """Whether the loss is a sum over pairs or tokens. Weighted, sft mixes both."""
            return set(self.loss_types) <= set(micro_batches.PAIR_LOSSES) and not (
                ("sft" in self.loss_types and self.use_weighting) or self.aux_loss_enabled
            )

        def rows_as_text(self, batch: Batch) -> list[dict[str, Any]]:
            """Prompt, chosen and rejected of each pair."""
            decode, count = self.processing_class.decode, pair_count(batch)
            ids, reply = batch["input_ids"], batch["completion_mask"].bool()
            prompt = ~reply & batch["attention_mask"].bool()
            return [
                {
                    "prompt": decode(ids[i][prompt[i]]),
                    "chosen": decode(ids[i][reply[i]]),
                    "rejected": decode(ids[count + i][reply[count + i]]),
                }
                for i in range(count)
            ]

        def compute_loss(self, model: Any, inputs: Any, **options: Any) -> Any:
            own = self.loss_weights
            if self._batch is not None:  # not in an evaluation, which may call the model for more
                self.loss_weights = self._parts[self._next].loss_weights or own
                if model.device.type == "cpu":
                    model = WithoutPadding(model)
            try:
                return super().compute_loss(model, inputs, **options)
            finally:
                self.loss_weights = own

    return GuardedDPO
