"""Batches of trl's DPO trainer: check that no row is cut, and group rows of similar length."""

from typing import Any

from posttrain.base.errors import DataError


def pair_lengths(rows: Any) -> list[int]:
    """The width of each pair in a batch: tokens of its prompt and of its longer reply."""
    columns = (rows[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    return [len(p) + max(len(c), len(r)) for p, c, r in zip(*columns, strict=True)]


def check_full_batches(trainer: Any, pairs: int) -> None:
    """Check that trl has dropped no pair and will cut none. It does both without a message.

    Raises:
        DataError: a pair is longer than the limit.
    """
    lengths, limit = pair_lengths(trainer.train_dataset), trainer.args.max_length
    long = sum(length > limit for length in lengths) + pairs - len(lengths)
    if long:
        raise DataError(
            f"{long} of {pairs} pairs take over {limit} tokens as trl splits them, and it would "
            "cut the ends of their replies. Raise model.max_seq_length"
        )


def group_by_length(trainer: Any) -> None:
    """Let the trainer put rows of similar length in a batch, in an order that a resume keeps.

    transformers' own sampler cannot be used directly: it reads a column that trl removes, and it
    uses the global RNG, which in a resumed run is not what it was at the start of the epoch. Here
    the order depends only on the seed and the epoch.
    """
    import torch
    from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices

    args = trainer.args

    class EpochSampler(LengthGroupedSampler):  # type: ignore[misc]  # transformers is not followed
        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Any:
            seed = args.seed if args.data_seed is None else args.data_seed
            generator = torch.Generator().manual_seed(seed + self.epoch)
            order = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
            return iter(order)

    lengths = pair_lengths(trainer.train_dataset)
    trainer.train_sampler = EpochSampler(
        args.per_device_train_batch_size * args.gradient_accumulation_steps, lengths=lengths
    )
