"""The bootstrap against scipy's, its coverage, and its edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from planish.gate.resample import bootstrap, expanded_tail, ratio_of_medians


def mean(sums: np.ndarray) -> np.ndarray:
    return np.asarray(sums[..., 0] / sums[..., 1])


def rows_of(values: np.ndarray) -> np.ndarray:
    return np.stack([values, np.ones_like(values)], axis=1)


RESAMPLES = 20_000
DRAW = 0.12
"""What two draws of 20,000 resamples may differ by, in standard errors of the estimate: a bound is the resamples' 2 %
quantile, which has a standard error of sqrt(0.02 * 0.98 / 20,000) / 0.048 = 0.020 of theirs, the difference of two
0.029, and four times that leaves one failure in 16,000."""


@pytest.mark.parametrize("n", [24, 60])
def test_bca_is_scipys_up_to_the_draw(n: int) -> None:
    """At the confidence at which a mean of so few is covered; scipy does not expand its tails."""
    values = np.random.default_rng(0).exponential(1.0, n)
    ours = bootstrap(rows_of(values), mean, resamples=RESAMPLES)
    theirs = scipy.stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        method="BCa",
        rng=1,
        confidence_level=1 - 2 * expanded_tail(0.025, n),
    )
    assert ours.method.startswith("bootstrap BCa")
    found = theirs.confidence_interval
    assert (ours.low, ours.high) == pytest.approx((found.low, found.high), abs=DRAW * theirs.standard_error)


def test_bca_of_a_ratio_is_scipys_up_to_the_draw() -> None:
    """A statistic that is no mean, of two columns resampled together: the logarithm of a ratio, as of perplexities."""
    rng = np.random.default_rng(3)
    tokens, nll = rng.integers(20, 60, 80).astype(float), rng.gamma(9.0, 10.0, 80)
    ours = bootstrap(np.stack([nll, tokens], axis=1), lambda sums: np.log(mean(sums)), resamples=RESAMPLES)
    theirs = scipy.stats.bootstrap(
        (nll, tokens),
        lambda a, b, axis=-1: np.log(a.sum(axis=axis) / b.sum(axis=axis)),
        n_resamples=RESAMPLES,
        method="BCa",
        paired=True,
        rng=1,
        confidence_level=1 - 2 * expanded_tail(0.025, 80),
    )
    found = theirs.confidence_interval
    assert (ours.low, ours.high) == pytest.approx((found.low, found.high), abs=DRAW * theirs.standard_error)


@pytest.mark.parametrize("n", [20, 24, 200, 5000])
def test_the_expanded_tail_gives_a_mean_students_interval(n: int) -> None:
    """Resampled means vary with the standard deviation over n, not n - 1: the tail makes up for both."""
    spread = 1 / math.sqrt(n)  # of resampled means, the values' own standard deviation (over n) being one
    half = -scipy.stats.norm.ppf(expanded_tail(0.025, n)) * spread
    students = scipy.stats.t.ppf(0.975, n - 1) * math.sqrt(n / (n - 1)) / math.sqrt(n)
    assert half == pytest.approx(students, rel=1e-4)


def test_ratio_of_medians_is_scipys_paired_bootstrap() -> None:
    rng = np.random.default_rng(5)
    baseline = rng.lognormal(0, 0.05, 41)
    candidate = 1.1 * baseline * rng.lognormal(0, 0.02, 41)
    ours = ratio_of_medians(candidate, baseline, resamples=RESAMPLES)
    theirs = scipy.stats.bootstrap(
        (candidate, baseline),
        lambda new, old, axis=-1: np.median(new, axis=axis) / np.median(old, axis=axis),
        n_resamples=RESAMPLES,
        method="percentile",
        paired=True,
        vectorized=True,
        rng=1,
    )
    found = theirs.confidence_interval
    assert ours.estimate == np.median(candidate) / np.median(baseline)
    assert (ours.low, ours.high) == pytest.approx((found.low, found.high), abs=DRAW * theirs.standard_error)


def test_the_same_seed_gives_the_same_interval() -> None:
    rows = rows_of(np.random.default_rng(0).normal(size=50))
    assert bootstrap(rows, mean, seed=4) == bootstrap(rows, mean, seed=4)
    assert bootstrap(rows, mean, seed=4) != bootstrap(rows, mean, seed=5)


def test_a_skewed_mean_is_covered() -> None:
    """95 % +- 3: 40 exponential values are few, and BCa knows that they are skewed."""
    rng = np.random.default_rng(7)
    covered = []
    for seed in range(400):
        interval = bootstrap(rows_of(rng.exponential(1.0, 80)), mean, seed=seed, resamples=600)
        covered.append(interval.low <= 1.0 <= interval.high)
    assert 0.92 <= np.mean(covered) <= 0.98


def test_without_variation_it_says_percentile_and_a_point() -> None:
    interval = bootstrap(rows_of(np.full(30, 2.0)), mean)
    assert (interval.low, interval.high) == (2.0, 2.0)
    assert interval.method.startswith("bootstrap percentile")


def test_two_samples_are_enough_for_bounds_that_are_far_apart() -> None:
    interval = bootstrap(rows_of(np.array([1.0, 2.0])), mean)
    assert (interval.estimate, interval.low, interval.high) == pytest.approx((1.5, 1.0, 2.0))


def test_an_undefined_statistic_gives_no_bounds() -> None:
    with np.errstate(invalid="ignore"):
        interval = bootstrap(np.array([[np.nan, 1.0], [1.0, 1.0]]), mean, resamples=50)
    assert (interval.low, interval.high) == (-np.inf, np.inf)


def test_ratio_of_medians_is_paired() -> None:
    """A drift common to both sides cancels: pairs torn apart give an interval several times as wide."""
    rng = np.random.default_rng(0)
    baseline = np.geomspace(1, 5, 201) * rng.normal(1, 0.01, 201)
    candidate = baseline * 1.1 * rng.normal(1, 0.01, 201)
    paired, torn = ratio_of_medians(candidate, baseline), ratio_of_medians(rng.permutation(candidate), baseline)
    assert paired.low <= 1.1 <= paired.high
    assert 4 * (paired.high - paired.low) < torn.high - torn.low
