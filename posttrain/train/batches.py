"""Batches of trl's trainers: no pair is cut, and a resumed run has the same order of rows."""

from typing import Any

from posttrain.base.errors import DataError


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

    transformers' own cannot be used directly: it reads a column that trl removes, and its RNG is
    in a resumed run not what it was at the start of the epoch.
    """
    import torch
    from transformers.trainer_pt_utils import LengthGroupedSampler

    size = args.per_device_train_batch_size * args.gradient_accumulation_steps
    lengths, generator = pair_lengths(rows), torch.Generator()
    sampler = LengthGroupedSampler(size, lengths=lengths, generator=generator)
    return ordered_by_epoch(sampler, args.seed if args.data_seed is None else args.data_seed)


def ordered_by_epoch(sampler: Any, seed: int) -> Any:
    """The sampler, whose order now depends on the seed and the epoch alone, not on the epochs
    before, which a resumed run does not draw."""
    sampler.set_epoch = lambda epoch: sampler.generator.manual_seed(seed + epoch)
    return sampler
