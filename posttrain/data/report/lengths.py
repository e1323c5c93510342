"""Figures on the lengths of pairs, and how well length alone tells chosen from rejected."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from eval.stats import proportion
from posttrain.data.lengths import Lengths

NOT_MEASURABLE = "not measurable"


def tokens(lengths: Sequence[Lengths], limit: int) -> dict[str, Any]:
    """Smallest, median, 95th percentile and largest number of tokens, and how many are over."""
    parts = {
        "prompt": [length.prompt for length in lengths],
        "chosen": [length.chosen for length in lengths],
        "rejected": [length.rejected for length in lengths],
        "whole": [length.whole for length in lengths],
    }
    over = sum(whole > limit for whole in parts["whole"])
    return {
        "limit": limit,
        "over_limit": {"pairs": over, "of": len(lengths), "share": over / len(lengths)},
        **{name: _quantiles(values) for name, values in parts.items()},
    }


def _quantiles(values: Sequence[int]) -> dict[str, int]:
    """Quantiles by nearest rank, so that each is the length of some row."""
    ordered = sorted(values)
    ranks = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
    return {
        name: ordered[max(0, math.ceil(share * len(ordered)) - 1)] for name, share in ranks.items()
    }


def length_bias(lengths: Sequence[Lengths], train: int) -> dict[str, Any]:
    """How often the longer reply is the chosen one. The pairs after the first `train` are held out.

    Length-controlled accuracy is the accuracy on held-out pairs whose chosen reply is the shorter
    one. Without such pairs it cannot be measured.
    """
    if not lengths:
        return {"pairs": 0, "length_controlled_accuracy": NOT_MEASURABLE}
    longer, equal = ([_sign(x) == sign for x in lengths] for sign in (1, 0))
    controlled = sum(_sign(length) < 0 for length in lengths[train:])
    return {
        "pairs": len(lengths),
        "chosen_longer": sum(longer),
        "same_length": sum(equal),
        "chosen_shorter": len(lengths) - sum(longer) - sum(equal),
        "chosen_longer_share": asdict(proportion([float(x) for x in longer])),
        "prefer_the_longer_accuracy": asdict(proportion([(1 + _sign(x)) / 2 for x in lengths])),
        "length_controlled_accuracy": (
            f"measurable on {controlled} held-out pairs" if controlled else NOT_MEASURABLE
        ),
    }


def _sign(length: Lengths) -> int:
    return (length.chosen > length.rejected) - (length.chosen < length.rejected)
