"""The bootstrap against scipy's, its coverage, and its edges."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from planish.gate.resample import bootstrap, ratio_of_medians


def mean(sums: np.ndarray) -> np.ndarray:
    return np.asarray(sums[..., 0] / sums[..., 1])


def rows_of(values: np.ndarray) -> np.ndarray:
    return np.stack([values, np.ones_like(values)], axis=1)


def test_bca_is_scipys_up_to_the_draw() -> None:
    values = np.random.default_rng(0).exponential(1.0, 60)
    ours = bootstrap(rows_of(values), mean, resamples=20_000)
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=1).confidence_interval
    assert ours.method.startswith("bootstrap BCa")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=0.02)


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
