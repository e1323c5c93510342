"""How sure a score is that was measured over several training seeds.

Every seed answers the same questions, so seeds and questions are crossed, and both vary: other
seeds would train other models, other questions would find them harder or easier. With three to five
seeds a bootstrap does not show how far a seed moves the score (resampling three values shows too
little spread, whatever is done to the questions), so these intervals are Student's t. Their
coverage is simulated in tests/unit/test_seeds.py; docs/statistics.md has the formulas.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval.stats import mcnemar_exact

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SMALLEST_P = 1e-12  # a p-value below it is given as this


@dataclass(frozen=True)
class SeedMean:
    """A measure of each seed; their mean, standard deviation (n - 1) and 95% t interval."""

    values: list[float]
    mean: float
    sd: float
    low: float
    high: float


@dataclass(frozen=True)
class SeedDifference:
    """The mean change over seeds and questions, its 95% interval and two-sided p-value."""

    mean: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class SeedChange:
    """A measure over seeds: each side's mean and t interval, and the difference, whose interval is
    over seeds and questions."""

    before: SeedMean
    after: SeedMean
    difference: SeedDifference


@dataclass(frozen=True)
class Repeated:
    """What a repeat over seeds writes: seeds.json."""

    seeds: list[int]
    measures: dict[str, SeedChange]


def mean_over_seeds(values: Sequence[float]) -> SeedMean:
    """Mean and 95% interval of a measure over seeds: mean +- t(n - 1) sd / sqrt(n) (Student, 1908),
    for the mean over more seeds on the *same* questions. Raises ValueError for fewer than two
    seeds, or a value that is not finite."""
    import numpy as np
    from scipy.special import stdtrit

    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size < 2 or not np.isfinite(array).all():
        raise ValueError("need one finite value a seed, of two seeds or more")
    mean, sd = math.fsum(array) / array.size, float(array.std(ddof=1))
    margin = float(stdtrit(array.size - 1, 0.975)) * sd / math.sqrt(array.size)
    return SeedMean(array.tolist(), mean, sd, low=mean - margin, high=mean + margin)


def difference_over_seeds(
    before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]
) -> SeedDifference:
    """The mean of `after - before`, with an interval that covers other seeds and other questions.

    `before` and `after` have one row a seed and, in each, one score a question in the same order:
    S x Q. The differences are taken as mean + seed + question + rest, each part random. The mean's
    variance is then (MS_seed + MS_question - MS_rest) / (S Q) from the mean squares of a two-way
    table without replicates (Searle, Casella and McCulloch, Variance Components, 1992, section
    4.3). A mean square below that of the rest does not mean a negative variance: its part is then
    taken as zero. Seeds and questions have their own degrees of freedom; the quantile is that of
    each, weighed by the variance it stands for (Cochran, Biometrics 20, 1964). Where nothing varies
    at all there is no width, and p is that of the sign test over questions. Raises ValueError for
    fewer than two seeds or questions, rows of different lengths, or a value that is not finite.
    """
    first, second = _table(before), _table(after)
    if first.shape != second.shape:
        raise ValueError(f"scores before and after differ: {first.shape} and {second.shape}")
    difference = second - first
    seeds, questions = difference.shape
    mean = math.fsum(difference.ravel()) / difference.size
    by_seed, by_question = difference.mean(axis=1) - mean, difference.mean(axis=0) - mean
    rest = difference - mean - by_seed[:, None] - by_question
    of_seeds = questions * float(by_seed @ by_seed) / (seeds - 1)
    of_questions = seeds * float(by_question @ by_question) / (questions - 1)
    of_rest = float((rest * rest).sum()) / ((seeds - 1) * (questions - 1))
    from_seeds = max(of_seeds - of_rest, 0.0)
    variance = max(from_seeds + of_questions, of_seeds) / difference.size
    if variance < 1e-24:  # nothing varies but by rounding
        signs = difference.mean(axis=0).round(12)
        p_value = mcnemar_exact(int((signs > 0).sum()), int((signs < 0).sum()))
        return SeedDifference(mean, mean, mean, p_value)
    weight = from_seeds / (from_seeds + of_questions) if from_seeds else 0.0
    error = math.sqrt(variance)
    margin = error * _quantile(0.05, weight, seeds, questions)
    p_value = _p_value(abs(mean) / error, weight, seeds, questions)
    return SeedDifference(mean, mean - margin, mean + margin, p_value)


def _quantile(p: float, weight: float, seeds: int, questions: int) -> float:
    """What |t| exceeds with probability `p`: `weight` times that of the seeds, the rest theirs."""
    from scipy.special import stdtrit

    t_seeds, t_questions = stdtrit([seeds - 1, questions - 1], 1 - p / 2)
    return float(weight * t_seeds + (1 - weight) * t_questions)


def _p_value(t: float, weight: float, seeds: int, questions: int) -> float:
    """The p at which the interval's edge is at 0, by bisection: the quantile falls as p grows."""
    low, high = math.log(SMALLEST_P), 0.0
    for _ in range(60):
        middle = (low + high) / 2
        if _quantile(math.exp(middle), weight, seeds, questions) > t:
            low = middle
        else:
            high = middle
    return math.exp(high)


def _table(rows: Sequence[Sequence[float]]) -> "npt.NDArray[np.float64]":
    """Rows of scores as an array, S x Q."""
    import numpy as np

    lengths = [len(row) for row in rows]
    if len(rows) < 2 or min(lengths) < 2 or len(set(lengths)) > 1:
        raise ValueError(f"need two or more seeds with the same two or more questions: {lengths}")
    table = np.asarray(rows, dtype=np.float64)
    if not np.isfinite(table).all():
        raise ValueError("need finite scores")
    return table
