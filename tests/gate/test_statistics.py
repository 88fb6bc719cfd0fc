"""The paired tests against scipy, on drawn and on known cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from planish.gate.statistics import (
    Interval,
    binomial_tail,
    hodges_lehmann,
    mcnemar,
    minimum_detectable_ratio,
    tango_interval,
    wilcoxon_greater,
    wilson_interval,
)


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_binomial_tail_is_scipys(first: int, second: int) -> None:
    trials, successes = max(first, second), min(first, second)
    assert binomial_tail(successes, trials) == pytest.approx(scipy.stats.binom.sf(successes - 1, trials, 0.5), rel=1e-8)


@pytest.mark.parametrize(("lost", "gained"), [(10, 0), (0, 10), (7, 5), (0, 0), (121, 59)])
def test_mcnemar_is_the_exact_binomial_test_on_the_discordant_pairs(lost: int, gained: int) -> None:
    candidate = np.array([0] * lost + [1] * gained + [1] * 30 + [0] * 4)
    baseline = np.array([1] * lost + [0] * gained + [1] * 30 + [0] * 4)
    found = mcnemar(candidate, baseline)
    assert (found.n, found.lost, found.gained) == (len(candidate), lost, gained)
    if lost + gained:
        one = scipy.stats.binomtest(lost, lost + gained, alternative="greater").pvalue
        two = scipy.stats.binomtest(lost, lost + gained).pvalue
    else:
        one = two = 1.0
    assert found.p_worse == pytest.approx(one, rel=1e-9)
    assert found.p_two_sided == pytest.approx(two, rel=1e-9)


@pytest.mark.parametrize("n", [1, 2, 5, 12, 49, 50, 51, 300])
@pytest.mark.parametrize("shift", [-0.5, 0.0, 0.4])
def test_wilcoxon_is_scipys(n: int, shift: float) -> None:
    differences = np.random.default_rng(n).normal(shift, 1, n)
    ours = wilcoxon_greater(differences)
    method = "exact" if n <= 50 else "approx"
    assert ours == pytest.approx(
        scipy.stats.wilcoxon(differences, alternative="greater", method=method, correction=False).pvalue, rel=1e-9
    )


def test_wilcoxon_with_ties_and_zeros_is_scipys() -> None:
    differences = np.random.default_rng(3).integers(-3, 5, 80).astype(float)
    theirs = scipy.stats.wilcoxon(differences, alternative="greater", method="approx", correction=False).pvalue
    assert wilcoxon_greater(differences) == pytest.approx(theirs, rel=1e-9)


def test_wilcoxon_without_a_difference_says_nothing() -> None:
    assert wilcoxon_greater(np.zeros(9)) == 1.0
    assert wilcoxon_greater(np.array([])) == 1.0


@pytest.mark.parametrize("n", [8, 20, 50, 120])
def test_the_hodges_lehmann_interval_inverts_the_test(n: int) -> None:
    differences = np.random.default_rng(n).normal(0.2, 1, n)
    interval = hodges_lehmann(differences, 0.98)
    walsh = [(a + b) / 2 for i, a in enumerate(differences) for b in differences[i:]]
    assert interval.estimate == pytest.approx(np.median(walsh))
    inside = scipy.stats.wilcoxon(differences - interval.low - 1e-9, alternative="greater").pvalue
    outside = scipy.stats.wilcoxon(differences - interval.low + 1e-9, alternative="greater").pvalue
    assert outside <= 0.0101 <= 0.0135 + inside  # the test changes its mind at the bound
    assert outside <= inside


def test_too_few_pairs_give_an_infinite_interval() -> None:
    interval = hodges_lehmann(np.arange(5.0), 0.95)
    assert (interval.low, interval.high) == (-math.inf, math.inf)
    assert minimum_detectable_ratio(interval) == math.inf
    assert interval.to_json()["low"] is None


def constrained_score(lost: int, gained: int, n: int, delta: float) -> float:
    """Tango's statistic by definition: the variance is that of the likeliest model whose loss is ``delta``."""

    def negative_likelihood(q: float) -> float:
        both = 1 - 2 * q - delta
        terms = ((lost, q + delta), (gained, q), (n - lost - gained, both))
        return -sum(k * math.log(max(p, 1e-300)) for k, p in terms if k)

    low, high = max(0.0, -delta), (1 - delta) / 2
    q = scipy.optimize.minimize_scalar(
        negative_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
    ).x
    return float((lost - gained - n * delta) / math.sqrt(n * (2 * q + delta - delta * delta)))


@pytest.mark.parametrize(("lost", "gained", "n"), [(1, 0, 44), (10, 3, 200), (0, 7, 60), (12, 12, 1008), (5, 0, 1000)])
def test_tango_bounds_solve_the_score_equation(lost: int, gained: int, n: int) -> None:
    interval = tango_interval(lost, gained, n)
    assert interval.low < (lost - gained) / n < interval.high
    assert constrained_score(lost, gained, n, interval.low) == pytest.approx(1.959964, abs=2e-4)
    assert constrained_score(lost, gained, n, interval.high) == pytest.approx(-1.959964, abs=2e-4)


def test_tango_covers_the_true_loss() -> None:
    """Coverage by simulation: 95 % +- 2, where most samples agree, as with INT8."""
    rng = np.random.default_rng(0)
    draws = rng.multinomial(500, [0.02, 0.01, 0.97], size=2000)
    covered = [(i := tango_interval(int(b), int(c), 500)).low <= 0.01 <= i.high for b, c, _ in draws]
    assert 0.93 <= np.mean(covered) <= 0.97


@pytest.mark.parametrize(("lost", "gained", "n"), [(3, 0, 3), (0, 3, 3), (0, 0, 1)])
def test_tango_at_the_edges_stays_inside(lost: int, gained: int, n: int) -> None:
    interval = tango_interval(lost, gained, n)
    assert -1 <= interval.low <= interval.estimate <= interval.high <= 1


@given(st.integers(1, 5000), st.integers(0, 5000))
def test_wilson_is_scipys(n: int, successes: int) -> None:
    successes = min(successes, n)
    theirs = scipy.stats.binomtest(successes, n).proportion_ci(method="wilson")
    ours = wilson_interval(successes, n)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_the_detectable_ratio_is_found_with_its_power() -> None:
    rng = np.random.default_rng(1)
    ratios = [minimum_detectable_ratio(hodges_lehmann(rng.normal(0, 0.03, 100), 0.95)) for _ in range(50)]
    slowdown = math.log(np.median(ratios))
    found = [wilcoxon_greater(rng.normal(slowdown, 0.03, 100)) < 0.01 for _ in range(400)]
    assert 0.72 <= np.mean(found) <= 0.88


def test_an_interval_maps_through_an_increasing_function() -> None:
    mapped = Interval(0.0, -1.0, math.inf, 0.95, "x").map(math.exp)
    assert (mapped.estimate, mapped.low, mapped.high) == (1.0, math.exp(-1), math.inf)
