"""From per-sample metrics of one or two models to an estimate with its interval.

Hits and misses get score intervals, which stay honest when nothing differs; everything else the paired bootstrap. A
bootstrap of fewer than 20 samples, or of samples that do not differ at all, would claim more than it knows: the first
gets no bounds, the second those of as many hits without a miss. Where only some samples differ (a quantized model
answers all but 1 % as before) a bootstrap knows no change but those it saw, and held 83 to 93 % in place of 95: so two
samples are added, the largest change that was seen and its mirror image. That is to the bootstrap what Bonett and Price
(2012, Journal of Educational and Behavioral Statistics 37) add to hits and misses: one pair lost and one gained.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from planish.gate.metrics import Measured
from planish.gate.resample import bootstrap
from planish.gate.statistics import Interval, mcnemar, tango_interval, wilson_interval

__all__ = ["LEAST_SAMPLES", "estimate", "exact_p", "log_ratio", "paired_loss"]

Floats = NDArray[np.float64]

LEAST_SAMPLES = 20


def paired_loss(candidate: Measured, baseline: Measured, *, seed: int = 0, confidence: float = 0.95) -> Interval:
    """Baseline minus candidate in points (hundredths), on the same samples; positive is worse.

    The metric is one in which higher is better and 1 is perfect.
    """
    if candidate.binary:
        found = mcnemar(candidate.rows[:, 0], baseline.rows[:, 0])
        return tango_interval(found.lost, found.gained, found.n, confidence).map(points)
    if np.array_equal(candidate.rows, baseline.rows):
        return tango_interval(0, 0, candidate.n, confidence).map(points)
    width = candidate.rows.shape[1]

    def loss(sums: Floats) -> Floats:
        return baseline.aggregate(sums[..., width:]) - candidate.aggregate(sums[..., :width])

    rows = np.concatenate([candidate.rows, baseline.rows], axis=1)
    mirrored = np.concatenate([baseline.rows, candidate.rows], axis=1)
    total = rows.sum(axis=0)
    largest = int(np.argmax(np.abs(loss(total) - loss(total - rows + mirrored))))
    padded = np.concatenate([rows, rows[[largest]], mirrored[[largest]]])
    interval = bootstrap(padded, loss, seed=seed, confidence=confidence)
    method = f"{interval.method}, one change added each way"
    widened = replace(interval, estimate=float(loss(total)), method=method)
    return enough(widened, candidate.n).map(points)


def exact_p(candidate: Measured, baseline: Measured) -> float | None:
    """McNemar's exact one-sided p that the candidate is worse; None for metrics that are no hits and misses."""
    return mcnemar(candidate.rows[:, 0], baseline.rows[:, 0]).p_worse if candidate.binary else None


def points(share: float) -> float:
    return 100 * share


def log_ratio(candidate: Measured, baseline: Measured, *, seed: int = 0, confidence: float = 0.95) -> Interval:
    """Logarithm of candidate over baseline, for a positive metric in which lower is better (perplexity)."""
    width = candidate.rows.shape[1]

    def logs(sums: Floats) -> Floats:
        return np.log(candidate.aggregate(sums[..., :width])) - np.log(baseline.aggregate(sums[..., width:]))

    rows = np.concatenate([candidate.rows, baseline.rows], axis=1)
    return enough(bootstrap(rows, logs, seed=seed, confidence=confidence), candidate.n)


def estimate(measured: Measured, *, seed: int = 0, confidence: float = 0.95) -> Interval:
    """One model's metric, or the agreement of two, with its interval."""
    if measured.binary:
        return wilson_interval(float(measured.rows[:, 0].sum()), measured.n, confidence)
    return enough(bootstrap(measured.rows, measured.aggregate, seed=seed, confidence=confidence), measured.n)


def enough(interval: Interval, n: int) -> Interval:
    """The interval, or none where the samples are too few for a bootstrap."""
    if n >= LEAST_SAMPLES:
        return interval
    return Interval(interval.estimate, -math.inf, math.inf, interval.confidence, f"fewer than {LEAST_SAMPLES} samples")
