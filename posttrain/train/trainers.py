"""The guarded subclasses of trl's SFTTrainer and DPOTrainer: how each divides its micro-batches.

In DPO no pair is cut, and a resumed run has the same order of rows.
"""

from typing import Any

from posttrain.base.errors import DataError
from posttrain.model.fewer_tokens import WithoutPadding
from posttrain.train import micro_batches
from posttrain.train.guard import guarded, ordered_by_epoch
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


def pair_lengths(rows: Any) -> list[int]:
    """The width of each pair in a batch: tokens of its prompt and of its longer reply."""
    columns = (rows[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    return [len(p) + max(len(c), len(r)) for p, c, r in zip(*columns, strict=True)]


def check_full_batches(trainer: Any, pairs: int) -> None:
    """Raise DataError if trl has dropped a pair or will cut one. It does both without a message."""
    lengths, limit = pair_lengths(trainer.train_dataset), trainer.args.max_length
    long = sum(length > limit for length in lengths) + pairs - len(lengths)
    if long:
        raise DataError(
            f"{long} of {pairs} pairs take over {limit} tokens as trl splits them, and it would "
            "cut the ends of their replies. Raise model.max_seq_length"
        )


def grouped_by_length(rows: Any, args: Any) -> Any:
    """A sampler that puts rows of similar length in a batch, in an order that a resume keeps.
    transformers' own reads a column that trl removes, and its RNG is in a resumed run not what it
    was at the start of the epoch."""
    import torch
    from transformers.trainer_pt_utils import LengthGroupedSampler

    size = args.per_device_train_batch_size * args.gradient_accumulation_steps
    lengths, generator = pair_lengths(rows), torch.Generator()
    sampler = LengthGroupedSampler(size, lengths=lengths, generator=generator)
    return ordered_by_epoch(sampler, args.seed if args.data_seed is None else args.data_seed)


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
