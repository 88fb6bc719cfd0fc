"""Data whose truth is known, drawn again and again: how often does an interval of the gate hold the truth?

Each case draws what the gate meets (a candidate that answers as its parent on most samples, windows of text, pairs of
times with heavy tails) and hands it to the function the gate calls. The truth is that of the population drawn from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planish.gate.clock import Timing
from planish.gate.latency import GROWTH
from planish.gate.metrics import Measured, macro_of, mean_of, perplexity, ratio_of_sums, span_f1
from planish.gate.paired import estimate, log_ratio, paired_loss
from planish.gate.resample import ratio_of_medians
from planish.gate.slowdown import FIRST_LOOK, Pairs, Plan, is_clear
from planish.gate.statistics import Interval, hodges_lehmann

__all__ = ["Case", "Coverage", "cases", "coverage"]

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, float], Interval]

POPULATION = 200_000
MOST_PAIRS = 60


@dataclass(frozen=True)
class Case:
    """``draw(rng, confidence)`` makes a sample and its interval; ``truth`` is what that has to hold."""

    name: str
    data: str
    truth: float
    draw: Draw


@dataclass(frozen=True)
class Coverage:
    """Shares of the rounds: interval holds the truth, lies wholly above it, wholly below it; and its median width."""

    inside: float
    above: float
    below: float
    width: float


def coverage(
    case: Case,
    rounds: int,
    *,
    seed: int = 0,
    confidence: float = 0.95,
    change: Callable[[Interval], Interval] = lambda found: found,
) -> Coverage:
    """Draw ``rounds`` samples; ``change`` spoils the interval, to see that it would be noticed."""
    rng = np.random.default_rng(seed)
    found = [change(case.draw(rng, confidence)) for _ in range(rounds)]
    low, high = (np.array([getattr(one, side) for one in found]) for side in ("low", "high"))
    slack = 1e-12 * max(1.0, abs(case.truth))  # a bound that is the truth, but for its last bit, holds it
    above, below = float(np.mean(low > case.truth + slack)), float(np.mean(high < case.truth - slack))
    return Coverage(1 - above - below, above, below, float(np.median(high - low)))


def cases() -> Iterator[Case]:
    """What the benchmark runs; the suite takes a few."""
    for make in (hits, spans, answers, macro):
        for discordance in (0.005, 0.02):
            for n in (200, 1000):
                yield make(n, discordance)
    for n in (200, 1000):
        yield answers(n, 0.02, worse=False)
    for n in (200, 1000):
        yield agreement(n)
        yield tokens(n)
    for n in (20, 40, 200):
        yield cosine(n)
    for n in (24, 48):
        yield windows(n, skewed=False)
        yield windows(n, skewed=True)
        yield next_token(n)
    for n in (6, 9, 13, 20, 40, 60):
        yield shift_of_pairs(n)
    for ratio in (1.0, 1.05, 1.1):
        yield with_looks(ratio)
    for n in (6, 9, 13, 20, 40):
        yield medians(n)


def hits(n: int, discordance: float) -> Case:
    """Accuracy: of the samples that change, two in three are lost."""
    shares = [discordance * 2 / 3, discordance / 3, 1 - discordance]

    def draw(rng: np.random.Generator, confidence: float) -> Interval:
        lost, gained, _ = rng.multinomial(n, shares)
        baseline, candidate = np.ones(n), np.ones(n)
        candidate[:lost] = 0
        baseline[n - gained :] = 0
        return paired_loss(hit_or_miss(candidate), hit_or_miss(baseline), confidence=confidence)

    return Case("accuracy loss", f"{discordance:.1%} changed, n = {n}", 100 * discordance / 3, draw)


def hit_or_miss(values: Floats) -> Measured:
    return mean_of("accuracy", values, binary=True)


def from_population(name: str, data: str, candidate: Measured, baseline: Measured, n: int) -> Case:
    truth = 100 * (baseline.value - candidate.value)

    def draw(rng: np.random.Generator, confidence: float) -> Interval:
        picked = rng.integers(0, POPULATION, n)
        new, old = (Measured(name, side.rows[picked], side.aggregate) for side in (candidate, baseline))
        return paired_loss(new, old, seed=int(rng.integers(1 << 31)), confidence=confidence)

    return Case(name, data, truth, draw)


def spans(n: int, discordance: float) -> Case:
    """Entity F1: 1.5 entities a sentence, nine in ten found; a changed sentence loses one, one in three finds one."""
    rng = np.random.default_rng(1)
    entities = rng.poisson(1.5, POPULATION)
    found = rng.binomial(entities, 0.9)
    extra = rng.poisson(0.12, POPULATION)
    baseline = np.stack([found, extra, entities - found], axis=1).astype(np.float64)
    step = np.where(rng.random(POPULATION) < 2 / 3, -1, 1) * (rng.random(POPULATION) < discordance)
    now = np.clip(found + step, 0, entities)
    candidate = np.stack([now, extra, entities - now], axis=1).astype(np.float64)
    metric = span_f1([], []).aggregate
    changed = float(np.mean(now != found))
    new, old = Measured("F1", candidate, metric), Measured("F1", baseline, metric)
    return from_population("entity F1 loss", f"{changed:.1%} changed, n = {n}", new, old, n)


def answers(n: int, discordance: float, *, worse: bool = True) -> Case:
    """Answer F1: a changed answer is drawn anew, and every second one is at most half right, unless both sides are to
    be equally good."""
    rng = np.random.default_rng(2)
    values, shares = np.array([0, 0.4, 0.5, 0.67, 0.8, 1.0]), [0.2, 0.05, 0.05, 0.05, 0.05, 0.6]
    baseline = rng.choice(values, POPULATION, p=shares)
    again = rng.choice(values, POPULATION, p=shares)
    if worse:
        again = np.minimum(again, rng.choice([1.0, 0.5], POPULATION))
    candidate = np.where(rng.random(POPULATION) < discordance / 0.6, again, baseline)
    changed = float(np.mean(candidate != baseline))
    new, old = (mean_of("answer F1", side) for side in (candidate, baseline))
    kind = "changed" if worse else "changed, no worse"
    return from_population("answer F1 loss", f"{changed:.1%} {kind}, n = {n}", new, old, n)


def macro(n: int, discordance: float) -> Case:
    """Macro F1 over three labels, one of which only one sample in ten has; reported by the gate, not judged."""
    rng = np.random.default_rng(3)
    truth = rng.choice(3, POPULATION, p=[0.6, 0.3, 0.1])
    before = np.where(rng.random(POPULATION) < 0.9, truth, rng.integers(0, 3, POPULATION))
    after = np.where(rng.random(POPULATION) < 1.5 * discordance, rng.integers(0, 3, POPULATION), before)
    new, old = (Measured("macro F1", one_hot(said, truth), lambda sums: macro_of(sums, 3)) for said in (after, before))
    return from_population("macro F1 loss", f"{np.mean(after != before):.1%} changed, n = {n}", new, old, n)


def one_hot(said: NDArray[np.int64], truth: NDArray[np.int64]) -> Floats:
    """The rows of `macro_f1`, all at once."""
    rows = np.zeros((len(said), 3, 3))
    at = np.arange(len(said))
    right = said == truth
    rows[at[right], 0, said[right]] = 1
    rows[at[~right], 1, said[~right]] = 1
    rows[at[~right], 2, truth[~right]] = 1
    return rows.reshape(len(said), 9)


def agreement(n: int) -> Case:
    def draw(rng: np.random.Generator, confidence: float) -> Interval:
        return estimate(hit_or_miss((rng.random(n) < 0.98).astype(np.float64)), confidence=confidence)

    return Case("agreement", f"0.98, n = {n}", 0.98, draw)


def tokens(n: int) -> Case:
    """Labels of tokens: some sentences are harder than others."""

    def draw(rng: np.random.Generator, confidence: float) -> Interval:
        length = 5 + rng.poisson(15, n)
        same = rng.binomial(length, rng.beta(0.98 * 12, 0.02 * 12, n))
        measured = Measured("token agreement", np.stack([same, length], axis=1).astype(np.float64), ratio_of_sums)
        return estimate(measured, seed=int(rng.integers(1 << 31)), confidence=confidence)

    return Case("token agreement", f"0.98, n = {n}", 0.98, draw)


def cosine(n: int) -> Case:
    """One minus the cosine is log-normal: most texts close, a few far."""
    spread, mean = 0.8, 0.003

    def draw(rng: np.random.Generator, confidence: float) -> Interval:
        distance = mean * np.exp(rng.normal(-spread * spread / 2, spread, n))
        return estimate(mean_of("cosine", 1 - distance), seed=int(rng.integers(1 << 31)), confidence=confidence)

    return Case("mean cosine", f"skewed, n = {n}", 1 - mean, draw)


def windows(n: int, *, skewed: bool) -> Case:
    """Perplexity over windows of 511 predicted tokens, the last one shorter; 4 % worse, by more in some windows."""
    lengths = np.full(n, 511.0)
    lengths[-1] = 300.0
    mean, spread = 0.04, 0.015

    def draw(rng: np.random.Generator, confidence: float) -> Interval:
        old = lengths * rng.normal(3.2, 0.35, n)
        noise = rng.exponential(1.0, n) - 1 if skewed else rng.normal(0, 1, n)
        new = old + lengths * (mean + spread * noise)
        sides = perplexity(new, lengths), perplexity(old, lengths)
        return log_ratio(*sides, seed=int(rng.integers(1 << 31)), confidence=confidence)

    return Case("log perplexity ratio", f"{'skewed' if skewed else 'normal'}, {n} windows", mean, draw)


def next_token(n: int) -> Case:
    def draw(rng: np.random.Generator, confidence: float) -> Interval:
        same = rng.binomial(511, rng.beta(0.85 * 80, 0.15 * 80, n))
        rows = np.stack([same, np.full(n, 511)], axis=1).astype(np.float64)
        measured = Measured("next-token agreement", rows, ratio_of_sums)
        return estimate(measured, seed=int(rng.integers(1 << 31)), confidence=confidence)

    return Case("next-token agreement", f"0.85, {n} windows", 0.85, draw)


def times(rng: np.random.Generator, n: int, ratio: float) -> tuple[Floats, Floats]:
    """Seconds of candidate and baseline: a load common to a pair, own noise, now and then a disturbance."""
    load = np.exp(rng.normal(0, 0.05, n))
    noise = np.exp(0.012 * rng.standard_t(3, (2, n)))
    noise *= 1 + np.where(rng.random((2, n)) < 0.1, rng.exponential(0.2, (2, n)), 0.0)
    return 0.01 * ratio * load * noise[0], 0.01 * load * noise[1]


def shift_of_pairs(n: int) -> Case:
    def draw(rng: np.random.Generator, confidence: float) -> Interval:
        candidate, baseline = times(rng, n, 1.05)
        return hodges_lehmann(np.log(candidate / baseline), confidence)

    return Case("log time ratio", f"heavy tails, {n} pairs", math.log(1.05), draw)


def with_looks(ratio: float) -> Case:
    """The interval of the report, where measuring stops as soon as the sequential rule allows."""
    plan = Plan()

    def draw(rng: np.random.Generator, confidence: float) -> Interval:
        candidate, baseline = times(rng, MOST_PAIRS, ratio)
        look = FIRST_LOOK
        while look < MOST_PAIRS:
            sides = ([Timing(second, second) for second in side[:look]] for side in (candidate, baseline))
            if is_clear(Pairs(*sides), plan):
                break
            look = math.ceil(look * GROWTH)
        seen = min(look, MOST_PAIRS)
        return hodges_lehmann(np.log(candidate[:seen] / baseline[:seen]), confidence)

    return Case("log time ratio", f"{ratio:g}, stopped when clear", math.log(ratio), draw)


def medians(n: int) -> Case:
    def draw(rng: np.random.Generator, confidence: float) -> Interval:
        return ratio_of_medians(*times(rng, n, 1.05), seed=int(rng.integers(1 << 31)), confidence=confidence)

    return Case("ratio of medians", f"heavy tails, {n} pairs", 1.05, draw)
