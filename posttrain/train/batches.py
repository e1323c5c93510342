"""Rows of trl's preference trainer as batches: none of them cut, and of like length together."""

from typing import Any

from posttrain.base.errors import DataError


def pair_lengths(rows: Any) -> list[int]:
    """Tokens of each pair's prompt and longer reply: the width that the pair needs in a batch."""
    columns = (rows[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    return [len(p) + max(len(c), len(r)) for p, c, r in zip(*columns, strict=True)]


def check_whole(trainer: Any, pairs: int) -> None:
    """Check that trl left no pair out and will cut none: it would do both without a word.

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
    """Let the trainer draw batches of like length, the same ones in a run that was resumed.

    The rule is transformers' own, which does not fit here as it is: it looks for a column that trl
    has removed, and draws from the global random state, which a resumed run has lost at the start
    of its epoch. Here the order follows from the seed and the epoch alone.
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
