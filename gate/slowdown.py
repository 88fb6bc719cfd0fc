"""The latency rule: from paired times to pass, regress or inconclusive. `planish.gate.latency` does the measuring.

A pair is one sitting: the median times of two sessions opened for it, so that pairs are independent.

For a limit L (1.05: at most 5 % slower), with the pseudomedian of the log ratios and the interval that inverts
Wilcoxon's test:

- pass: the upper bound of the 95 % interval is at or below L;
- regress: the ratio found is above L - 0.02 (for L below 1.05: above 60 % of the allowed slowdown), *and* Wilcoxon's
  one-sided p is below its share of 0.01 against "not slower" (for a required speed-up: against "at L"). Comparisons
  that are judged together (shapes, phases, clocks) share the 0.01 equally (Bonferroni), so that equal bundles raise an
  alarm in at most 1 % of *runs*, not of comparisons;
- else inconclusive; also with fewer than 6 pairs (a regress needs 7, of two comparisons 8: p cannot be below 0.01 or
  0.005 with fewer, and measuring takes up to three times its time to get them), a clock that stood still in more than
  5 % of them, or a ratio or a machine that changed meanwhile (`planish.gate.drift`).

**On the wall clock** a regress must also exceed the noise of the clock itself: in the same sittings the baseline is
opened a second time and measured against itself, and the 95 % interval of that ratio (which should hold 1) is a floor:
what two sessions of one bundle differ by is no slowdown. Where CPU time is judged, the wall clock is reported, and
judged only against a limit of its own. So where the device's clock is judged.

A true slowdown of exactly L therefore passes in at most 2.5 % of runs. A difference below the absolute floor never
regresses: L is raised to where the difference is the floor.

**Sequential stopping**: looks at 9, 13, 19, 27, ... pairs stop early only on a 99.5 % interval that lies wholly on one
side; the 95 % interval is read once, when the time is up. So repeated looking hardly raises the error rates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from planish.gate.checks import Check, Verdict, safe_exp
from planish.gate.clock import Judged, Timing
from planish.gate.drift import Trend, trend_of
from planish.gate.resample import ratio_of_medians
from planish.gate.statistics import (
    Interval,
    finite_or_none,
    hodges_lehmann,
    minimum_detectable_ratio,
    wilcoxon_greater,
)

__all__ = [
    "CLOCK_WORDS",
    "FIRST_LOOK",
    "LEAST_PAIRS",
    "Comparison",
    "Pairs",
    "Plan",
    "decide",
    "is_clear",
    "judge_latency",
    "under",
]

Floats = NDArray[np.float64]

CLEAR = 0.995  # confidence of the interval that may stop early
FINAL = 0.95
ALPHA = 0.01
FIRST_LOOK = 9  # fewer have no interval of 99.5 %
LEAST_PAIRS = 6  # fewer have no interval of 95 %
MOST_NOISE = 10.0  # log ratio; an interval of few sittings has no end
MOST_LOST = 0.05  # share of pairs a bad clock may cost
Side = Literal["candidate", "baseline"]
SIDES: tuple[Side, ...] = get_args(Side)
CLOCK_WORDS = {"cpu": "CPU time", "wall": "wall time", "device": "GPU compute time"}
UNKNOWN = Interval(math.nan, -math.inf, math.inf, FINAL, "no pairs")


@dataclass(frozen=True)
class Plan:
    """How long to measure and what to judge; ``limit=None`` reports and judges nothing.

    ``wall_limit``: where another clock is judged, the wall clock is judged, too, against it. ``among``: comparisons
    that share the level of the test; `planish.gate.latency.compare` counts its own.
    """

    limit: float | None = 1.05
    floor_seconds: float = 20e-6
    judged: Judged = "cpu"
    seconds: float = 60.0
    max_pairs: int = 400
    seed: int = 0
    wall_limit: float | None = None
    among: int = 1

    @property
    def level(self) -> float:
        """Wilcoxon's p has to be below this for a regress."""
        return ALPHA / self.among

    def enough(self, pairs: int) -> bool:
        """Can so many pairs pass *and* regress? Wilcoxon's p is never below ``2 ** -pairs``.

        >>> [Plan(among=among).enough(7) for among in (1, 2)]
        [True, False]
        """
        return pairs >= LEAST_PAIRS and (self.limit is None or can_prove(pairs, self.level))

    @property
    def judgements(self) -> dict[str, Plan]:
        """A plan for each clock that is judged, by the word that its comparison's name has: nothing, or ``wall``."""
        found = {"": self}
        if self.wall_limit is not None and self.judged != "wall":
            found["wall"] = replace(self, judged="wall", limit=self.wall_limit, wall_limit=None)
        return found

    @property
    def sides(self) -> int:
        """Sessions a sitting takes: a third, of the baseline again, where the wall clock is judged."""
        return 3 if any(one.judged == "wall" and one.limit is not None for one in self.judgements.values()) else 2


@dataclass
class Pairs:
    """Times of one phase, one entry a pair, in seconds for one unit of work; ``again``: the baseline a second time."""

    candidate: list[Timing] = field(default_factory=list)
    baseline: list[Timing] = field(default_factory=list)
    again: list[Timing] = field(default_factory=list)

    def clean(self, judged: Judged) -> tuple[Floats, Floats]:
        """``[pairs]`` times of candidate and baseline, without the pairs in which a clock stood still or ran back."""
        return paired(self.candidate, self.baseline, judged)

    def noise(self, judged: Judged) -> Interval | None:
        """The log ratio of the baseline to itself, with its 95 % interval; None where it was not opened twice."""
        if not self.again:
            return None
        first, second = paired(self.baseline, self.again, judged)
        return hodges_lehmann(np.log(second / first), FINAL) if len(first) else None

    def median(self, side: Side, kind: Judged) -> float:
        return float(np.median([getattr(timing, kind) for timing in getattr(self, side)]))


def paired(first: Sequence[Timing], second: Sequence[Timing], judged: Judged) -> tuple[Floats, Floats]:
    both = np.array([[getattr(timing, judged) for timing in pair] for pair in zip(first, second, strict=True)])
    both = both.reshape(-1, 2).astype(np.float64)
    both = both[np.all((both > 0) & np.isfinite(both), axis=1)]
    return both[:, 0], both[:, 1]


@dataclass(frozen=True)
class Comparison:
    """One phase of one shape, judged.

    Attributes:
        ratio: candidate over baseline of the judged time, with its 95 % interval (Hodges-Lehmann on log ratios).
        p_slower: Wilcoxon's one-sided p against "not slower than the reference".
        detectable: the smallest true slowdown that so many pairs find in 80 % of cases, as a ratio.
        median_seconds: one unit of work: candidate and baseline, CPU and wall.
        median_ratio, wall_ratio: ratios of medians with paired bootstrap intervals: judged time, wall clock.
        lost: pairs thrown away because a clock stood still or ran backwards.
        trend: of the log ratio over the sittings.
        doubt: what changed while it was measured, in words.
        busy: what kept the machine busy, in words.
        noise: the ratio of the baseline's time to its own in another session, where the wall clock is judged.
        level: what ``p_slower`` had to be below for a regress.
        timings: all pairs, as they were measured; not part of the JSON.
    """

    name: str
    verdict: Verdict
    judged: Judged
    limit: float | None
    allowed: float
    ratio: Interval
    p_slower: float
    detectable: float
    pairs: int
    lost: int
    median_seconds: Mapping[str, float]
    median_ratio: Interval
    wall_ratio: Interval
    timings: Pairs = field(default_factory=Pairs)
    trend: Trend = field(default_factory=Trend)
    doubt: str = ""
    busy: str = ""
    noise: Interval | None = None
    level: float = ALPHA

    @property
    def detectable_words(self) -> str:
        """``+2.1 %``; "unknown" where too few pairs have no interval."""
        return f"+{100 * (self.detectable - 1):.1f} %" if math.isfinite(self.detectable) else "unknown"

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "verdict": str(self.verdict),
            "judged": self.judged,
            "limit": self.limit,
            "allowed": finite_or_none(self.allowed),
            "ratio": self.ratio.to_json(),
            "p_slower": self.p_slower,
            "level": self.level,
            "minimum_detectable_ratio": finite_or_none(self.detectable),
            "pairs": self.pairs,
            "pairs_lost": self.lost,
            "median_seconds": dict(self.median_seconds),
            "median_ratio": self.median_ratio.to_json(),
            "wall_ratio": self.wall_ratio.to_json(),
            "trend": self.trend.to_json(),
            "doubt": self.doubt or None,
            "busy": self.busy or None,
            "noise": None if self.noise is None else self.noise.to_json(),
        }


def noise_of(pairs: Pairs, plan: Plan) -> Interval | None:
    """The clock's own noise, where it sets a floor: on the wall clock."""
    return pairs.noise("wall") if plan.judged == "wall" and plan.limit is not None else None


def bounds(
    limit: float, baseline_seconds: float, floor_seconds: float, noise: Interval | None = None
) -> tuple[float, float]:
    """``allowed`` (a pass lies wholly below) and ``suspect`` (a regress is found above), as ratios.

    ``noise``: log ratio of the baseline to itself; what it may be is no slowdown.

    >>> allowed, suspect = bounds(1.05, 1.0, 0.0)
    >>> round(allowed, 3), round(suspect, 3)
    (1.05, 1.03)
    """
    tolerated = 1 + floor_seconds / baseline_seconds if limit >= 1 else 0.0
    suspect = limit - min(0.02, 0.4 * (limit - 1)) if limit > 1 else limit
    if noise is not None:
        suspect = max(suspect, math.exp(min(max(noise.high, -noise.low), MOST_NOISE)))
    return max(limit, tolerated), max(suspect, tolerated)


def is_clear(pairs: Pairs, plan: Plan) -> bool:
    """May measuring stop before the time is up?"""
    candidate, baseline = pairs.clean(plan.judged)
    if len(candidate) < FIRST_LOOK:
        return False
    logs = np.log(candidate / baseline)
    interval = hodges_lehmann(logs, CLEAR)
    if plan.limit is None:
        return minimum_detectable_ratio(interval) < 1.02
    allowed, suspect = bounds(plan.limit, float(np.median(baseline)), plan.floor_seconds, noise_of(pairs, plan))
    return interval.high <= math.log(allowed) or (interval.low > math.log(suspect) and p_of(logs, plan) < plan.level)


def can_prove(pairs: int, level: float) -> bool:
    """Is Wilcoxon's p below ``level`` if so many pairs all say slower?"""
    return 0.5**pairs < level


def p_of(logs: Floats, plan: Plan) -> float:
    """Wilcoxon's one-sided p against "not slower than the reference"."""
    return wilcoxon_greater(logs - math.log(min(1.0, plan.limit or 1.0)))


def decide(name: str, pairs: Pairs, plan: Plan) -> Comparison:
    """Judge the pairs of one phase; see the module's rule."""
    candidate, baseline = pairs.clean(plan.judged)
    lost = len(pairs.candidate) - len(candidate)
    wall = pairs.clean("wall")
    logs = np.log(candidate / baseline)
    interval = hodges_lehmann(logs, FINAL) if len(logs) else UNKNOWN
    p_slower = p_of(logs, plan)
    allowed, verdict, trend, doubt = math.inf, Verdict.PASS, trend_of(logs), ""
    noise = noise_of(pairs, plan)
    if plan.limit is not None:
        usual = float(np.median(baseline)) if len(logs) else 1.0
        allowed, suspect = bounds(plan.limit, usual, plan.floor_seconds, noise)
        enough = len(logs) >= LEAST_PAIRS and lost <= MOST_LOST * len(pairs.candidate)
        verdict = verdict_of(interval, p_slower < plan.level, allowed, suspect) if enough else Verdict.INCONCLUSIVE
        if trend.crosses(math.log(allowed if verdict is Verdict.PASS else suspect)):
            verdict, doubt = Verdict.INCONCLUSIVE, trend.told()
    return Comparison(
        name=name,
        verdict=verdict,
        judged=plan.judged,
        limit=plan.limit,
        allowed=allowed,
        ratio=interval.map(math.exp),
        p_slower=p_slower,
        detectable=minimum_detectable_ratio(interval),
        pairs=len(pairs.candidate),
        lost=lost,
        median_seconds={f"{side}_{clock}": pairs.median(side, clock) for clock in get_args(Judged) for side in SIDES},
        median_ratio=ratio_of_medians(candidate, baseline, seed=plan.seed) if len(logs) else UNKNOWN,
        wall_ratio=ratio_of_medians(*wall, seed=plan.seed) if len(wall[0]) else UNKNOWN,
        timings=pairs,
        trend=trend,
        doubt=doubt,
        noise=None if noise is None else noise.map(safe_exp),
        level=plan.level,
    )


def under(found: Comparison, changes: str, busy: str) -> Comparison:
    """The comparison in the light of what changed meanwhile; it overturns nothing on which every sitting agrees."""
    if not changes or found.limit is None:
        return replace(found, busy=busy)
    candidate, baseline = found.timings.clean(found.judged)
    kept = candidate / baseline <= found.allowed
    agreed = bool(np.all(kept) if found.verdict is Verdict.PASS else not np.any(kept))
    verdict = found.verdict if agreed else Verdict.INCONCLUSIVE
    doubt = ", ".join(words for words in (found.doubt, changes) if words)
    return replace(found, verdict=verdict, doubt=doubt, busy=busy)


def verdict_of(interval: Interval, is_slower: bool, allowed: float, suspect: float) -> Verdict:
    if interval.high <= math.log(allowed):
        return Verdict.PASS
    if interval.estimate > math.log(suspect) and is_slower:
        return Verdict.REGRESS
    return Verdict.INCONCLUSIVE


def judge_latency(found: Comparison) -> Check:
    """The comparison as a check of the gate."""
    kind = CLOCK_WORDS[found.judged]
    ratio = found.ratio
    text = f"{found.name}: {kind} {ratio.estimate:.3f} times the baseline's"
    text += f" ({ratio.low:.3f} to {ratio.high:.3f}, {found.pairs} pairs)"
    if found.limit is not None:
        text += f"; at most {found.allowed:.3f}{open_words(found)}"
    if found.noise is not None:
        text += f"; the baseline against itself: {found.noise.low:.3f} to {found.noise.high:.3f}"
    return Check(
        f"latency {found.name}", found.verdict, ratio.estimate, found.limit, "ratio", text, ratio, found.pairs,
        required=found.limit is not None,
    )  # fmt: skip


def open_words(found: Comparison) -> str:
    """Why it could not be decided, and what to do about it; or what changed without changing the verdict."""
    if found.verdict is not Verdict.INCONCLUSIVE:
        return f"; {found.doubt}, and yet every sitting agrees" if found.doubt else ""
    busy = f" ({found.busy})" if found.busy else ""
    if found.lost > MOST_LOST * found.pairs:
        return f"; the clock stood still or ran back in {found.lost} pairs"
    if found.doubt:
        return f"; {found.doubt}: let the machine settle, then measure again"
    if found.pairs < LEAST_PAIRS:
        return f"; {LEAST_PAIRS} pairs are the least: give more time{busy}"
    if not can_prove(found.pairs, found.level):
        return f"; so few pairs cannot prove a slowdown: give more time{busy}"
    return f": too noisy to decide, give more time or a quieter machine{busy}"
