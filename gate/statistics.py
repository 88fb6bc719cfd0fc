"""Paired tests and intervals, in numpy alone: they run on the measured device. scipy is their oracle in the tests.

Sign convention: a *loss* is baseline minus candidate, so positive is worse; a latency *ratio* is candidate over
baseline, so above 1 is worse.
Sources: McNemar (1947), exact form; Tango (1998), Statistics in Medicine 17, the score interval of a paired
difference; Wilson (1927); Clopper and Pearson (1934); Wilcoxon (1945); Hodges and Lehmann (1963), the interval that
inverts Wilcoxon's test.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Interval",
    "McNemar",
    "binomial_tail",
    "clopper_pearson",
    "hodges_lehmann",
    "mcnemar",
    "minimum_detectable_ratio",
    "t_quantile",
    "tango_interval",
    "wilcoxon_greater",
    "wilson_interval",
]

Floats = NDArray[np.float64]

EXACT_LIMIT = 50  # above it Wilcoxon's distribution is normal to four digits


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; ``method`` names how it was made."""

    estimate: float
    low: float
    high: float
    confidence: float
    method: str

    def map(self, function: Callable[[float], float]) -> Interval:
        """The interval of an increasing ``function`` of the quantity."""
        return Interval(function(self.estimate), function(self.low), function(self.high), self.confidence, self.method)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; an infinite bound is null."""
        return {
            key: finite_or_none(value) if isinstance(value, float) else value for key, value in asdict(self).items()
        }


def finite_or_none(value: float) -> float | None:
    """JSON has no infinity and no NaN."""
    return value if math.isfinite(value) else None


def z_of(confidence: float) -> float:
    """Two-sided normal quantile.

    >>> round(z_of(0.95), 4)
    1.96
    """
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def t_quantile(tail: float, degrees: int) -> float:
    """What Student's t exceeds with probability ``tail``, by the expansion of Abramowitz and Stegun (1964), 26.7.5.

    From 19 degrees of freedom on right to 1 in 50,000, down to tails of 1 in 4,000; at 5 and 2.5 % to 1 in 5,000.

    >>> round(t_quantile(0.025, 23), 4)
    2.0687
    """
    z = -NormalDist().inv_cdf(tail)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(z + sum(term / degrees**power for power, term in enumerate(terms, 1)))


def binomial_tail(successes: int, trials: int, share: float = 0.5) -> float:
    """P(X >= successes) for X ~ Binomial(trials, share), in logarithms: thousands of trials do not overflow or vanish.

    >>> round(binomial_tail(10, 10) * 1024, 9)
    1.0
    """
    if successes <= 0:
        return 1.0
    if not 0 < share < 1:
        return float(share >= 1 and successes <= trials)
    each, odds = trials * math.log1p(-share), math.log(share) - math.log1p(-share)
    logs = [
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * odds
        for k in range(successes, trials + 1)
    ]
    top = max(logs, default=0.0)
    return min(1.0, math.exp(top + each) * math.fsum(math.exp(x - top) for x in logs))


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """The exact interval of a proportion: shares at which neither tail is rarer than half of what may be missed.

    >>> interval = clopper_pearson(0, 8)
    >>> round(interval.low, 4), round(interval.high, 4)
    (0.0, 0.3694)
    """
    tail = (1 - confidence) / 2
    low = bisect(lambda share: tail - binomial_tail(successes, trials, share), 0.0, 1.0) if successes else 0.0
    failures = trials - successes
    high = bisect(lambda share: binomial_tail(failures, trials, 1 - share) - tail, 0.0, 1.0) if failures else 1.0
    return Interval(successes / trials, low, high, confidence, "Clopper-Pearson")


@dataclass(frozen=True)
class McNemar:
    """Exact McNemar test on 0/1 pairs: ``lost`` = only the baseline is right, ``gained`` = only the candidate is."""

    n: int
    lost: int
    gained: int
    p_worse: float
    p_two_sided: float


def mcnemar(candidate: NDArray[Any], baseline: NDArray[Any]) -> McNemar:
    """Is the candidate right less often than the baseline, on the same samples?

    Args:
        candidate, baseline: ``[n]`` of 0/1, one entry a sample, in the same order.
    """
    right, was_right = np.asarray(candidate, dtype=bool), np.asarray(baseline, dtype=bool)
    lost, gained = int(np.sum(was_right & ~right)), int(np.sum(right & ~was_right))
    both = lost + gained
    return McNemar(
        n=len(right),
        lost=lost,
        gained=gained,
        p_worse=binomial_tail(lost, both),
        p_two_sided=min(1.0, 2 * binomial_tail(max(lost, gained), both)),
    )


def tango_interval(lost: int, gained: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of the paired loss ``(lost - gained) / n``; honest even without a discordant pair (Tango 1998).

    >>> interval = tango_interval(0, 0, 1000)
    >>> round(interval.low, 4), round(interval.high, 4)
    (-0.0038, 0.0038)
    """
    z = z_of(confidence)

    def score(delta: float) -> float:
        a = 2.0 * n
        b = -lost - gained + (2.0 * n - lost + gained) * delta
        c = -gained * delta * (1 - delta)
        nuisance = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = n * (2 * nuisance + delta * (1 - delta))
        distance = lost - gained - n * delta
        return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)

    estimate = (lost - gained) / n
    low = -1.0 if estimate <= -1 else bisect(lambda delta: score(delta) - z, -1.0, estimate)
    high = 1.0 if estimate >= 1 else bisect(lambda delta: score(delta) + z, estimate, 1.0)
    return Interval(estimate, low, high, confidence, "Tango score")


def bisect(decreasing: Callable[[float], float], low: float, high: float) -> float:
    """Where a decreasing function crosses zero, to 2**-60 of the bracket."""
    for _ in range(60):
        middle = (low + high) / 2
        if decreasing(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def wilson_interval(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion.

    >>> interval = wilson_interval(99, 100)
    >>> round(interval.low, 4), round(interval.high, 4)
    (0.9455, 0.9982)
    """
    z = z_of(confidence)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), confidence, "Wilson score")


@lru_cache(maxsize=64)
def signed_rank_cdf(n: int) -> tuple[float, ...]:
    """P(W+ <= w), w = 0 .. n(n+1)/2, of the signed-rank sum of ``n`` untied pairs: all sign patterns equally likely."""
    counts = np.zeros(n * (n + 1) // 2 + 1, dtype=np.float64)
    counts[0] = 1.0
    for rank in range(1, n + 1):
        shifted = np.zeros_like(counts)
        shifted[rank:] = counts[:-rank]
        counts = (counts + shifted) / 2  # halved at each step: the sum stays 1
    return tuple(np.cumsum(counts))


def average_ranks(values: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Ranks from 1, ties share their mean rank; and the size of each group of ties."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse.reshape(-1)], counts.astype(np.int64)


def wilcoxon_greater(differences: Floats) -> float:
    """p of Wilcoxon's signed-rank test against "the differences are not above zero"; small = they are above.

    Zero differences are dropped (Wilcoxon's own rule). Exact up to 50 untied pairs, else the normal approximation
    with the tie correction. Fewer than one non-zero difference gives 1.
    """
    nonzero = np.asarray(differences, dtype=np.float64)
    nonzero = nonzero[nonzero != 0]
    n = len(nonzero)
    if n == 0:
        return 1.0
    ranks, ties = average_ranks(np.abs(nonzero))
    positive = float(np.sum(ranks[nonzero > 0]))
    if n <= EXACT_LIMIT and len(ties) == n:
        below = math.ceil(positive) - 1
        return 1.0 if below < 0 else 1.0 - signed_rank_cdf(n)[below]
    mean = n * (n + 1) / 4
    variance = n * (n + 1) * (2 * n + 1) / 24 - float(np.sum(ties**3 - ties)) / 48
    return NormalDist().cdf(-(positive - mean) / math.sqrt(variance))


def hodges_lehmann(differences: Floats, confidence: float = 0.95) -> Interval:
    """Pseudomedian of paired differences, and the interval that inverts Wilcoxon's test (Hodges and Lehmann 1963).

    Too few pairs for ``confidence`` give an infinite interval. Costs ``n * (n + 1) / 2`` averages.
    """
    values = np.sort(np.asarray(differences, dtype=np.float64))
    n = len(values)
    first, second = np.triu_indices(n)
    walsh = np.sort((values[first] + values[second]) / 2)
    skip = signed_rank_skip(n, confidence)
    if skip < 1:
        return Interval(float(np.median(walsh)), -math.inf, math.inf, confidence, "Hodges-Lehmann")
    return Interval(float(np.median(walsh)), float(walsh[skip - 1]), float(walsh[-skip]), confidence, "Hodges-Lehmann")


def signed_rank_skip(n: int, confidence: float) -> int:
    """How many Walsh averages lie outside on each side: the largest k with P(W+ <= k - 1) <= (1 - confidence) / 2."""
    tail = (1 - confidence) / 2
    if n <= EXACT_LIMIT:
        return int(np.searchsorted(np.asarray(signed_rank_cdf(n)), tail, side="right"))
    spread = math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
    return math.floor(n * (n + 1) / 4 - z_of(confidence) * spread)


def minimum_detectable_ratio(interval: Interval, *, alpha: float = 0.01, power: float = 0.8) -> float:
    """The smallest true slowdown that a one-sided test at ``alpha`` finds with ``power``; from an interval of logs.

    Returns a ratio: 1.02 means a slowdown of 2 % would have been found.
    """
    normal = NormalDist()
    error = (interval.high - interval.low) / (2 * z_of(interval.confidence))
    return math.exp((normal.inv_cdf(1 - alpha) + normal.inv_cdf(power)) * error) if math.isfinite(error) else math.inf
