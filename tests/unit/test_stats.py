"""eval.stats against scipy, against exact values, and at its limits."""

import math
import tracemalloc
from itertools import combinations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from eval import measures
from eval.stats import (
    Difference,
    Measure,
    bootstrap_interval,
    compare,
    mcnemar_exact,
    mean,
    pass_at_k,
    proportion,
    unvaried_interval,
    wilson_interval,
)


@pytest.mark.parametrize("n", [1, 2, 7, 50, 250, 1319])
def test_wilson_agrees_with_scipy(n: int) -> None:
    for successes in sorted({0, 1, n // 3, n // 2, n - 1, n}):
        expected = scipy_stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
        low, high = wilson_interval(successes, n)
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert 0 <= low <= successes / n <= high <= 1


def test_wilson_takes_halves() -> None:
    low, high = wilson_interval(2.5, 10)
    assert wilson_interval(2, 10)[0] < low < wilson_interval(3, 10)[0]
    assert wilson_interval(2, 10)[1] < high < wilson_interval(3, 10)[1]


@pytest.mark.parametrize(
    ("b", "c"),
    [(0, 1), (1, 0), (5, 5), (3, 9), (0, 30), (40, 71), (200, 289), (600, 719), (0, 600)],
)
def test_mcnemar_agrees_with_scipy(b: int, c: int) -> None:
    expected = scipy_stats.binomtest(b, b + c, 0.5).pvalue
    assert mcnemar_exact(b, c) == pytest.approx(expected, rel=1e-9)
    assert mcnemar_exact(c, b) == mcnemar_exact(b, c)


def test_mcnemar_at_any_size() -> None:
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(1, 5) == 2 * (1 + 6) / 64
    assert mcnemar_exact(0, 10_000) == 0.0  # 2**-9999 is below the smallest float
    assert mcnemar_exact(0, 1000) == 2.0**-999
    assert mcnemar_exact(5000, 5000) == 1.0
    expected = scipy_stats.binomtest(4900, 10_000, 0.5).pvalue
    assert mcnemar_exact(4900, 5100) == pytest.approx(expected, rel=1e-9)


def test_bootstrap_agrees_with_scipy() -> None:
    values = np.random.default_rng(7).lognormal(5, 1, 400)  # skewed
    rng = np.random.default_rng(1)
    result = scipy_stats.bootstrap((values,), np.mean, method="percentile", rng=rng)
    expected = result.confidence_interval
    width = expected.high - expected.low
    interval = bootstrap_interval(values.tolist())
    # Two sets of resamples differ by their own chance: about 2% of the width.
    assert interval == pytest.approx((expected.low, expected.high), abs=0.05 * width)


def test_bootstrap_is_deterministic_and_seeded() -> None:
    values = [float(i % 7) for i in range(100)]
    assert bootstrap_interval(values) == bootstrap_interval(values, seed=0)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=0)
    assert bootstrap_interval(values, resamples=10) != bootstrap_interval(values, resamples=11)
    assert bootstrap_interval([0.0] * 20) == (0.0, 0.0)
    assert bootstrap_interval([3.0]) == (3.0, 3.0)


def test_a_difference_without_spread_has_the_width_of_its_few_rows() -> None:
    """Where the truth is that 98% of pairs change, 36 of 100 samples of 50 show no other."""
    two, ten, fifty = (wilson_interval(0, n)[1] for n in (2, 10, 50))
    assert unvaried_interval(0.5, [0.5] * 50) == (0.5 - fifty, 0.5) and fifty > 0.02
    assert unvaried_interval(0.0, [0.0, 1.0]) == (-two, two)
    rows = {"strict": [0.0] * 10, "mean_tokens": [1.0] * 10}
    strict, tokens = measures.compare(rows, rows).values()
    assert (strict.low, strict.high) == (0, ten)
    assert (tokens.low, tokens.high) == (0, 0)  # no bound on what they could be


def test_bootstrap_in_bounded_memory() -> None:
    values = [float(i % 2) for i in range(10_000)]
    tracemalloc.start()
    try:
        low, high = bootstrap_interval(values)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0.489 < low < 0.491 and 0.509 < high < 0.511
    assert peak < 64e6  # the full draw would be 800 MB


def test_proportion_and_mean() -> None:
    measure = proportion([1.0, 0.0, 1.0, 1.0, 0.5])
    assert measure == Measure(0.7, 5, *wilson_interval(3.5, 5))
    values = [100.0, 200.0, 300.0]
    assert mean(values) == Measure(200.0, 3, *bootstrap_interval(values))
    # Plain numbers, which JSON takes.
    for result in (compare([0.0, 1.0], [1.0, 1.0]), measure, mean(values)):
        assert {type(value) for value in vars(result).values()} <= {float, int}
    assert proportion([1.0] * 10).high == 1.0
    assert proportion([0.0] * 10).low == 0.0
    for bad in ([1.5], [-0.1, 0.5]):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            proportion(bad)


def test_compare() -> None:
    before = [0.0] * 60 + [1.0] * 40
    after = [0.0] * 40 + [1.0] * 20 + [0.0] * 5 + [1.0] * 35
    result = compare(before, after)
    assert result.difference == pytest.approx(0.15)
    assert result.n == 100
    assert result.p_value == mcnemar_exact(20, 5)
    assert 0.0 < result.low < 0.15 < result.high < 0.3
    assert compare([0.5, 0.2, 1.0], [0.5, 9.9, 0.0]).p_value == mcnemar_exact(1, 1)  # ties drop
    assert compare([1.0, 0.0], [1.0, 0.0]) == Difference(0.0, 0.0, 0.0, 1.0, 2)
    back = compare(after, before)
    assert back.difference == -result.difference
    assert back.p_value == result.p_value


@pytest.mark.parametrize("values", [[], [math.nan], [1.0, math.inf], [[1.0], [2.0]]])
def test_what_has_no_mean_or_is_not_paired_is_refused(values: list[float]) -> None:
    for function in (bootstrap_interval, mean, proportion):
        with pytest.raises(ValueError, match="finite"):
            function(values)
    with pytest.raises(ValueError, match="3 and 2"):
        compare([1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"finite|non-empty"):
        compare(values, values)


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_k_counts_every_draw(n: int) -> None:
    for c in range(n + 1):
        for k in range(1, n + 1):
            draws = list(combinations(range(n), k))
            right = sum(min(draw) < c for draw in draws)
            assert pass_at_k(n, c, k) == right / len(draws)


def test_pass_at_k_of_many() -> None:
    assert pass_at_k(200, 50, 1) == 0.25
    assert pass_at_k(100_000, 1, 10) == pytest.approx(1e-4)
