"""Intervals of eval.stats and eval.seeds in simulated experiments: how often they cover the truth.

Each is made 2,000 times from a world whose truth is known. An interval that says 95% may cover it
in 93 to 97% of them; chance alone moves that figure by half a point (one standard deviation).
"""

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats as scipy_stats

from eval.seeds import SMALLEST_P, SeedDifference, difference_over_seeds, mean_over_seeds
from eval.stats import bootstrap_interval, mcnemar_exact, wilson_interval

EXPERIMENTS = 2_000
Table = npt.NDArray[np.float64]


def simulated_runs(
    random: np.random.Generator, seeds: int, questions: int, effect: float, spread: float
) -> tuple[Table, Table]:
    """Right and wrong answers before and after, seeds x questions; the true effect is `effect`.

    A question has a chance of being answered before, the same model in every seed. Training adds
    `effect` to it, and what is this question's own and this seed's own (sd `spread`). Seven in ten
    answers keep the luck they had before, as answers of one model family do.
    """
    chance = random.uniform(0.3, 0.5, questions)
    luck = random.random(questions)
    before = np.tile(luck < chance, (seeds, 1)).astype(float)
    keep = random.random((seeds, questions)) < 0.7
    kept = np.where(keep, luck, random.random((seeds, questions)))
    own = random.uniform(-0.1, 0.1, questions)
    after = kept < chance + effect + own + random.normal(0, spread, (seeds, 1))
    return before, after.astype(float)


def of_experiments(seeds: int, questions: int, effect: float, spread: float) -> Table:
    """Mean, low, high and p-value of each of the simulated experiments."""
    random = np.random.default_rng([seeds, questions, round(1000 * effect), round(1000 * spread)])
    result = [
        difference_over_seeds(*simulated_runs(random, seeds, questions, effect, spread))
        for _ in range(EXPERIMENTS)
    ]
    return np.array([list(vars(each).values()) for each in result])


def coverage(result: Table, truth: float) -> float:
    return float(((result[:, 1] <= truth) & (truth <= result[:, 2])).mean())


def test_coverage_of_wilson() -> None:
    n, random = 20, np.random.default_rng(20)
    truth = random.uniform(0.05, 0.95, EXPERIMENTS)
    intervals = [wilson_interval(int(k), n) for k in random.binomial(n, truth)]
    covered = [low <= p <= high for (low, high), p in zip(intervals, truth, strict=True)]
    assert 0.93 <= np.mean(covered) <= 0.97


def test_coverage_of_the_paired_bootstrap() -> None:
    random = np.random.default_rng(0)
    covered = []
    for seed in range(EXPERIMENTS):
        before, after = simulated_runs(random, 1, 200, effect=0.1, spread=0.0)
        low, high = bootstrap_interval((after - before)[0].tolist(), resamples=500, seed=seed)
        covered.append(low <= 0.1 <= high)
    assert 0.93 <= np.mean(covered) <= 0.97


@pytest.mark.parametrize("seeds", [2, 5])
def test_coverage_of_the_mean_over_seeds(seeds: int) -> None:
    random = np.random.default_rng(seeds)
    result = [mean_over_seeds(random.normal(0.5, 0.02, seeds).tolist()) for _ in range(EXPERIMENTS)]
    covered = [each.low <= 0.5 <= each.high for each in result]
    assert 0.93 <= np.mean(covered) <= 0.97


@pytest.mark.parametrize("spread", [0.0, 0.03])
@pytest.mark.parametrize(("seeds", "questions"), [(3, 300), (20, 200)])
def test_coverage_of_the_difference_over_seeds(seeds: int, questions: int, spread: float) -> None:
    result = of_experiments(seeds, questions, effect=0.1, spread=spread)
    assert abs(result[:, 0].mean() - 0.1) < 0.005  # the simulated world is as described
    assert 0.93 <= coverage(result, 0.1) <= 0.97


@pytest.mark.parametrize("spread", [0.0, 0.03])
@pytest.mark.parametrize("seeds", [3, 20])
def test_without_an_effect_one_in_twenty_is_significant(seeds: int, spread: float) -> None:
    result = of_experiments(seeds, 200, effect=0.0, spread=spread)
    assert 0.03 <= (result[:, 3] < 0.05).mean() <= 0.07
    # p and interval say the same: 0 is outside where p is below 0.05
    assert ((result[:, 3] < 0.05) == ((result[:, 1] > 0) | (result[:, 2] < 0))).all()


def test_the_mean_over_seeds_is_scipys() -> None:
    values = [0.48, 0.52, 0.47]
    expected = scipy_stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    result = mean_over_seeds(values)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high))
    assert result.sd == pytest.approx(np.std(values, ddof=1))
    assert result.values == values
    for one in ([], [0.5], [0.5, math.nan]):
        with pytest.raises(ValueError, match="two seeds"):
            mean_over_seeds(one)


def test_where_questions_or_seeds_are_alike_it_is_scipys_t_interval() -> None:
    """Over seeds where all questions gain the same, over paired questions where all seeds do."""
    changes = [0.1, 0.25, 0.13, 0.2]
    random = np.random.default_rng(0)
    before, after = random.random(80), random.random(80) + 0.1
    for result, expected in (
        (
            difference_over_seeds([[0.0] * 50] * 4, [[change] * 50 for change in changes]),
            scipy_stats.ttest_1samp(changes, 0.0),
        ),
        (
            difference_over_seeds([before.tolist()] * 3, [after.tolist()] * 3),
            scipy_stats.ttest_rel(after, before),
        ),
    ):
        interval = expected.confidence_interval(0.95)
        assert (result.low, result.high) == pytest.approx((interval.low, interval.high))
        assert result.p_value == pytest.approx(expected.pvalue)


def test_questions_that_vary_less_than_the_rest_narrow_no_interval() -> None:
    """Mean squares by hand: 4 of the seeds, 0 of the questions, 1 of the rest; 4 / 4 is the mean's
    variance, not (4 + 0 - 1) / 4. One degree of freedom: t is 12.706."""
    result = difference_over_seeds([[0.0, 0.0]] * 2, [[2.5, 1.5], [-0.5, 0.5]])
    assert (result.mean, result.high) == pytest.approx((1.0, 1.0 + 12.7062), abs=1e-4)


def test_where_nothing_varies_the_signs_of_questions_are_tested() -> None:
    result = difference_over_seeds([[0.0] * 9] * 3, [[1.0] * 9] * 3)
    assert result == SeedDifference(1.0, 1.0, 1.0, mcnemar_exact(9, 0))
    same = difference_over_seeds([[0.3] * 9] * 2, [[0.3] * 9] * 2)
    assert same == SeedDifference(0.0, 0.0, 0.0, 1.0)
    # A tiny p-value is given as the smallest.
    before = np.random.default_rng(2).normal(0, 0.01, (3, 500))
    tiny = difference_over_seeds(before.tolist(), (before + 1 + before[0]).tolist())
    assert tiny.p_value == pytest.approx(SMALLEST_P)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ([[0.0, 1.0]], [[0.0, 1.0]], "two or more seeds"),
        ([[0.0], [1.0]], [[0.0], [1.0]], "two or more questions"),
        ([[0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0], [1.0]], "same two or more"),
        ([[0.0] * 3] * 2, [[0.0] * 2] * 2, "scores before and after differ"),
        ([[0.0, math.inf], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]], "finite"),
    ],
)
def test_what_is_not_a_table_is_refused(
    before: list[list[float]], after: list[list[float]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        difference_over_seeds(before, after)
