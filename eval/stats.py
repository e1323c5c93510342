"""How sure a score is: intervals, paired tests and pass@k, for scores read off a few questions.

Intervals are two-sided 95%; p-values are exact and two-sided. Everything is deterministic. Scores
that are empty, not finite or of different lengths raise ValueError.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

TAIL = (1 - 0.95) / 2  # beyond each end of an interval
_DRAWS_AT_ONCE = 1 << 20  # resampled values held in memory: 16 MB with their indices


@dataclass(frozen=True)
class Measure:
    """A score over `n` questions with its 95% interval; without a value it is not measurable."""

    value: float | None = None
    n: int = 0
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference:
    """A mean paired difference (after minus before) over `n` questions, in the scores' own unit,
    with its 95% interval and two-sided p-value; without a difference it is not measurable."""

    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    n: int = 0


NOT_MEASURABLE = Measure()


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """The score interval of a proportion (Wilson, 1927): sound near 0 and 1 and for few questions.
    `successes` is in [0, n] and may be fractional, where a tie counts one half."""
    z = NormalDist().inv_cdf(1 - TAIL)
    p = successes / n
    centre = p + z * z / (2 * n)
    margin = z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    scale = 1 + z * z / n
    # Rounding must not leave the bound of an all-wrong or all-right score beside 0 or 1.
    low = 0.0 if successes == 0 else (centre - margin) / scale
    high = 1.0 if successes == n else (centre + margin) / scale
    return low, high


def mcnemar_exact(b: int, c: int) -> float:
    """The two-sided exact McNemar p-value of `b` pairs changed one way and `c` the other way.

    Twice the smaller tail of Binomial(b + c, 1/2), at most 1; 1.0 where no pair changed. Summed in
    integers, so it is correct to the last bit at any size.
    """
    n = b + c
    term = tail = 1  # C(n, 0)
    for i in range(min(b, c)):
        term = term * (n - i) // (i + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << n))


def bootstrap_interval(
    values: Sequence[float], resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean (Efron, 1979) of paired differences or plain
    values. The same seed gives the same interval; values that are all equal, one of no width."""
    import numpy as np  # late: it takes longer to load than a wrong key takes to find

    array = _finite(values)
    generator = np.random.default_rng(seed)
    rows = max(1, _DRAWS_AT_ONCE // array.size)
    means = np.empty(resamples)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        picked = generator.integers(array.size, size=(stop - start, array.size))
        means[start:stop] = array[picked].mean(axis=1)
    low, high = np.quantile(means, [TAIL, 1 - TAIL])
    return float(low), float(high)


def proportion(values: Sequence[float]) -> Measure:
    """The mean of scores in [0, 1] (0/1, or 1/2 for a tie) with its 95% Wilson interval."""
    array = _finite(values)
    if array.min() < 0 or array.max() > 1:
        raise ValueError(f"a proportion needs scores in [0, 1], got {array.min()} to {array.max()}")
    successes = math.fsum(array)
    low, high = wilson_interval(successes, array.size)
    return Measure(successes / array.size, array.size, low, high)


def mean(values: Sequence[float]) -> Measure:
    """The mean of any values, in their own unit, with its 95% bootstrap interval."""
    array = _finite(values)
    low, high = bootstrap_interval(values)
    return Measure(math.fsum(array) / array.size, array.size, low, high)


def compare(before: Sequence[float], after: Sequence[float]) -> Difference:
    """The mean of `after - before` over the same questions in the same order.

    With its 95% paired bootstrap interval and the p-value of the exact sign test, which drops ties:
    on 0/1 scores that is the exact McNemar test.
    """
    if len(before) != len(after):
        raise ValueError(f"paired scores differ in length: {len(before)} and {len(after)}")
    difference = _finite(after) - _finite(before)
    low, high = bootstrap_interval(difference.tolist())
    p_value = mcnemar_exact(int((difference > 0).sum()), int((difference < 0).sum()))
    return Difference(math.fsum(difference) / difference.size, low, high, p_value, difference.size)


def unvaried_interval(difference: float, before: Sequence[float]) -> tuple[float, float]:
    """The interval of a paired difference of shares where every row changed by as much, of which a
    bootstrap has no width: as many rows as Wilson's interval of 0 in n leaves open may have changed
    as far as 0 or 1."""
    others = wilson_interval(0, len(before))[1]
    low, high = -max(before), 1 - min(before)
    return difference + others * (low - difference), difference + others * (high - difference)


def pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased estimate that at least one of `k` samples is right, `c` of `n` drawn being so.

    1 - C(n-c, k) / C(n, k), in exact integers (Chen et al., 2021, arXiv:2107.03374, equation 1).
    """
    draws = math.comb(n, k)
    return (draws - math.comb(n - c, k)) / draws


def _finite(values: Sequence[float]) -> "npt.NDArray[np.float64]":
    import numpy as np

    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError("need a non-empty flat sequence of finite values")
    return array
