"""Split micro-batches of trl's trainers into parts whose losses add up.

A micro-batch is a dictionary of tensors with the rows in the first dimension: in DPO B chosen rows
stacked on B rejected ones, in GRPO one completion a row, in SFT one prompt and reply.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Batch = dict[str, Any]
NOT_SCORED = -100  # the label of a token without a loss, in transformers and trl

# The losses that can be divided, and what each is a mean over. No other is divided: aot sorts the
# pairs of a micro-batch, and a loss that a later trl adds may mix rows too.
PAIR_LOSSES = {
    **dict.fromkeys(("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust"), "pairs"),
    **dict.fromkeys(("bco_pair", "sppo_hard", "apo_zero", "apo_down"), "pairs"),
    **dict.fromkeys(("discopop", "sigmoid_norm"), "pairs"),
    "sft": "chosen tokens",
}
COMPLETION_LOSSES = {
    **dict.fromkeys(("grpo", "sapo", "dr_grpo", "luspo"), "completions"),
    "bnpo": "tokens",
    # A sum over the token count of the generation, which every part has.
    **dict.fromkeys(("dapo", "cispo", "vespo"), "generation"),
}
REPLY_LOSSES = ("nll", "dft")


@dataclass
class Part:
    """Some rows of a micro-batch, and their weight in its loss."""

    inputs: Batch
    weight: float = 1.0  # factor of the part's loss
    loss_weights: list[float] = field(default_factory=list)
    """DPO only: the weight of each loss in training.loss_type; empty for the trainer's own."""


def pair_count(batch: Batch) -> int:
    """Pairs in a DPO micro-batch."""
    return len(batch["input_ids"]) // 2


def scored_tokens(batch: Batch) -> int:
    """Tokens of an SFT micro-batch that have a loss."""
    return int((batch["labels"][:, 1:] != NOT_SCORED).sum())


def split_pairs(
    batch: Batch, rows: int, loss_types: list[str], loss_weights: list[float]
) -> list[Part]:
    """Parts of at most `rows` pairs; KeyError if a loss is not in PAIR_LOSSES."""
    parts = [Part(inputs) for inputs in _cut(batch, rows, pair_count(batch))]
    pairs = [pair_count(part.inputs) for part in parts]
    masks = [part.inputs["completion_mask"][:, 1:] for part in parts]  # of what is scored
    tokens = [int(mask[:count].sum()) for mask, count in zip(masks, pairs, strict=True)]
    shares = {"pairs": _shares(pairs), "chosen tokens": _shares(tokens)}
    for loss, weight in zip(loss_types, loss_weights, strict=True):
        for part, share in zip(parts, shares[PAIR_LOSSES[loss]], strict=True):
            part.loss_weights.append(weight * share)
    return parts


def split_completions(batch: Batch, rows: int, loss_type: str) -> list[Part]:
    """Parts of at most `rows` completions; KeyError if the loss is not in COMPLETION_LOSSES."""
    parts = [Part(inputs) for inputs in _cut(batch, rows, len(batch["completion_ids"]))]
    if (over := COMPLETION_LOSSES[loss_type]) != "generation":
        masks = [part.inputs["completion_mask"] for part in parts]
        counts = [len(mask) if over == "completions" else int(mask.sum()) for mask in masks]
        for part, share in zip(parts, _shares(counts), strict=True):
            # It may hold nothing but completions that were cut and are masked for that.
            part.weight = max(share, 1e-9)
    return parts


def split_replies(batch: Batch, rows: int) -> list[Part]:
    """Parts of at most `rows` rows of an SFT micro-batch. Their losses are sums over tokens with
    one divisor, so they need no weight."""
    return [Part(inputs) for inputs in _cut(batch, rows, len(batch["input_ids"]))]


def _cut(batch: Batch, rows: int, count: int) -> Iterator[Batch]:
    """At most `rows` of the `count` rows or stacked pairs at a time, with flags that trl adds."""
    import torch

    for start in range(0, count, rows):
        some = slice(start, start + rows)
        part = {}
        for key, value in batch.items():
            if not isinstance(value, torch.Tensor) or value.ndim == 0:
                part[key] = value
            elif len(value) == 2 * count:
                part[key] = torch.cat([value[:count][some], value[count:][some]])
            else:
                part[key] = value[some]
        yield part


def _shares(counts: list[int]) -> list[float]:
    total = max(sum(counts), 1)
    return [count / total for count in counts]
