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


def paired(
    main: str,
    pairs: Sequence[tuple[float | None, float | None]],
    found: Mapping[str, Any],
    compared: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """How a file made of a model compares with that model, by its `main` measure.

    Args:
        pairs: the scores of model and file on each row; a row that one could not score is not
            counted.
        found: the file's measures.
        compared: `compare` of model and file.

    `right` are the rows that the model gets right, None where scores are not right or wrong.
    `gained` and `lost` are the rows on which the file does better and worse.
    """
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    return {
        "main": main,
        "n": len(known),
        "right": None if main == "total_reward" else sum(a == 1.0 for a, _ in known),
        "gained": sum(b > a for a, b in known),
        "lost": sum(b < a for a, b in known),
        "p_value": compared[main]["p_value"],
        "measures": dict(found),
        "against_adapter": {
            name: {key: value for key, value in each.items() if key not in ("before", "after")}
            for name, each in compared.items()
        },
    }
