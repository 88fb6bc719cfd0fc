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
    signed_rank_cdf,
    signed_rank_skip,
    t_quantile,
    tango_interval,
    wilcoxon_greater,
    wilson_interval,
)


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_binomial_tail_is_scipys(first: int, second: int) -> None:
    trials, successes = max(first, second), min(first, second)
    assert binomial_tail(successes, trials) == pytest.approx(scipy.stats.binom.sf(successes - 1, trials, 0.5), rel=1e-8)


@pytest.mark.parametrize(("degrees", "accuracy"), [(5, 2e-4), (19, 2e-5), (23, 2e-5), (200, 1e-6), (999, 1e-6)])
def test_students_quantile_is_scipys(degrees: int, accuracy: float) -> None:
    assert t_quantile(0.025, degrees) == pytest.approx(scipy.stats.t.isf(0.025, degrees), rel=accuracy)
    assert t_quantile(0.00025, degrees) == pytest.approx(scipy.stats.t.isf(0.00025, degrees), rel=60 * accuracy)


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


@given(st.lists(st.integers(-4, 5), min_size=1, max_size=70))
def test_wilcoxon_with_any_ties_and_zeros_is_scipys(drawn: list[int]) -> None:
    """Exact only without ties and up to 50 pairs, as documented; a zero is no pair."""
    nonzero = np.array([value for value in drawn if value], dtype=float)
    if not len(nonzero):
        assert wilcoxon_greater(np.array(drawn, dtype=float)) == 1.0
        return
    exact = len(set(np.abs(nonzero))) == len(nonzero) <= 50
    method = "exact" if exact else "approx"
    theirs = scipy.stats.wilcoxon(nonzero, alternative="greater", method=method, correction=False).pvalue
    assert wilcoxon_greater(np.array(drawn, dtype=float)) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("n", [7, 12, 50])
def test_wilcoxon_counts_sign_patterns(n: int) -> None:
    """Brute force over all patterns (or, of 50 pairs, 200,000 of them): no library, no formula."""
    rng = np.random.default_rng(n)
    differences = rng.normal(0.3, 1, n)
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1
    found = ranks[differences > 0].sum()
    every = (np.arange(2 ** min(n, 12))[:, None] >> np.arange(n)) & 1
    patterns = every if n <= 12 else rng.integers(0, 2, (200_000, n))
    share = np.mean(patterns @ ranks >= found)
    assert wilcoxon_greater(differences) == pytest.approx(share, abs=1e-12 if n <= 12 else 5e-3)


def test_above_fifty_pairs_the_normal_approximation_is_near_the_exact_p() -> None:
    """At 0.01, where the gate decides, the switch costs less than 0.0005."""
    for seed in range(40):
        differences = np.random.default_rng(seed).normal(0.3, 1, 51)
        exact = scipy.stats.wilcoxon(differences, alternative="greater", method="exact").pvalue
        assert abs(wilcoxon_greater(differences) - exact) < (5e-4 if exact < 0.02 else 4e-3)


@pytest.mark.parametrize("n", [51, 60, 200])
def test_above_fifty_pairs_the_hodges_lehmann_interval_is_a_little_wider_than_the_exact_one(n: int) -> None:
    """By at most two Walsh averages a side, of the 1,326 and more that there are."""
    exact = int(np.searchsorted(signed_rank_cdf(n), 0.025, side="right"))
    assert exact - 2 <= signed_rank_skip(n, 0.95) < exact


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


@pytest.mark.parametrize(("n", "confidence"), [(6, 0.95), (7, 0.95), (9, 0.995), (12, 0.95), (12, 0.9)])
def test_the_hodges_lehmann_interval_holds_just_what_the_test_accepts(n: int, confidence: float) -> None:
    """Brute force: between two Walsh averages the two-sided test says the same, so one shift in each gap is tried."""
    differences = np.random.default_rng(n).standard_t(3, n) + 0.5
    interval = hodges_lehmann(differences, confidence)
    walsh = np.sort([(a + b) / 2 for i, a in enumerate(differences) for b in differences[i:]])
    gaps = (walsh[1:] + walsh[:-1]) / 2
    for shift in [walsh[0] - 1, *gaps, walsh[-1] + 1]:
        p = scipy.stats.wilcoxon(differences - shift, method="exact").pvalue
        assert (p > 1 - confidence) == (interval.low < shift < interval.high)


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


@pytest.mark.parametrize(
    ("lost", "gained", "n", "confidence", "low", "high"),
    [
        (9, 3, 32, 0.95, -0.027, 0.390),  # Karacan et al. 1976, worked in Tango (1998), section 6
        (1, 7, 21, 0.95, -0.517, -0.026),  # Bentur et al. 2009, in Fagerland, Lydersen and Laake (2014)
        (6, 16, 161, 0.95, -0.1240, -0.0054),  # Cavo et al. 2012, there and in CRAN's contingencytables
        (28, 25, 618, 0.90, -0.0148, 0.0247),  # CRAN's PropCIs, scoreci.mp(25, 28, 618)
    ],
)
def test_tango_gives_the_published_intervals(
    lost: int, gained: int, n: int, confidence: float, low: float, high: float
) -> None:
    interval = tango_interval(lost, gained, n, confidence)
    digits = len(str(low).split(".")[1])
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.51 * 10**-digits)


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
