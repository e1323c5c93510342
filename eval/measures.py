"""Named measures and how they changed, from one score a row: a pair, a reply, a problem.

A measure without a row to take it on is not measurable: its value is None and its n is 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from eval import stats

Scores = Mapping[str, Sequence[float]]
"""Per measure, one score a row; before and after, the same rows in the same order."""

# Scores that are right or wrong, or half: their interval is Wilson's. The others' is a bootstrap.
SHARES = {
    *("reward_accuracy", "length_controlled_accuracy"),
    *("french_share", "language_share", "ended_share"),
    *("french_share_without_system", "language_share_without_system"),
}
NOT_MEASURABLE: dict[str, Any] = {"value": None, "n": 0, "low": None, "high": None}
NO_DIFFERENCE: dict[str, Any] = {
    "difference": None,
    "low": None,
    "high": None,
    "p_value": None,
    "n": 0,
}


def summarise(scores: Scores) -> dict[str, dict[str, Any]]:
    """`{"value", "n", "low", "high"}` for every measure."""
    return {name: _summary(name, values) for name, values in scores.items()}


def compare(before: Scores, after: Scores) -> dict[str, dict[str, Any]]:
    """Both summaries and, per measure, the paired difference with its interval and p-value.

    Raises:
        ValueError: the two sides have not the same measures on the same number of rows.
    """
    if list(before) != list(after):
        raise ValueError(f"measures differ: {list(before)} and {list(after)}")
    return {
        name: {
            "before": _summary(name, before[name]),
            "after": _summary(name, after[name]),
            **(stats.compare(before[name], after[name]) if before[name] else NO_DIFFERENCE),
        }
        for name in before
    }


def _summary(name: str, values: Sequence[float]) -> dict[str, Any]:
    if not values:
        return {**NOT_MEASURABLE}
    return {**(stats.proportion(values) if name in SHARES else stats.mean(values))}
