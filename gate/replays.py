"""The latency rule on times that were really measured, many times over: cheap trials that say more than a few rounds.

In an A/A round neither side is slower, so swapping the sides of a sitting by a coin changes nothing that is true, and
makes every trial an exact one of "no difference", whatever the noise of this machine looks like. Three questions:

- **No difference, and no limit to hide behind** (limit 1.0): may regress in as many trials as the level of the test
  says, 0.5 % where a run makes two comparisons. On a quiet machine no A/A round ever comes near 1.05, so that only this
  shows whether the significance test is there at all.
- **Slower by exactly the limit**: may pass in 2.5 %.
- **Slower than all noise seen, while heat slows both sides of a sitting alike**, by up to several times: always found,
  but only by a rule that compares within sittings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from planish.gate.checks import Verdict
from planish.gate.clock import Timing
from planish.gate.slowdown import FIRST_LOOK, Comparison, Pairs, Plan, decide
from planish.gate.trials import Promise, Trials

__all__ = ["replays"]

Pool = Sequence[tuple[Timing, Timing]]

TRIALS = 200
HEAT = 1.0  # standard deviation of the logarithm
BEYOND = 1.1  # over the noisiest sitting
HAIR = 1 + 1e-9  # that rounding does not decide what is exactly at the limit


def replays(rounds: Sequence[Comparison], plan: Plan, rng: np.random.Generator) -> list[Trials]:
    """The three kinds of trials on the sittings of A/A ``rounds``; none where they are fewer than nine."""
    pool = [
        pair
        for one in rounds
        for pair in zip(one.timings.candidate, one.timings.baseline, strict=True)
        if all(0 < getattr(timing, plan.judged) < math.inf for timing in pair)
    ]
    if len(pool) < FIRST_LOOK or plan.limit is None:
        return []
    size = min(len(pool), max(FIRST_LOOK, int(np.median([one.pairs for one in rounds]))))
    noise = max(abs(math.log(getattr(new, plan.judged) / getattr(old, plan.judged))) for new, old in pool)
    beyond = max(plan.limit, BEYOND) * math.exp(noise)

    def trial(limit: float, slower: float, heat: float) -> Callable[[], Verdict]:
        judged = replace(plan, limit=limit)
        return lambda: decide("replay", redrawn(pool, size, slower, heat, rng), judged).verdict

    alarms = Promise(Verdict.REGRESS, "at most", plan.level)
    kinds = (
        ("no difference, limit 1.0, replayed", trial(1.0, 1.0, 0.0), alarms, False),
        (
            f"x {plan.limit:g}, the limit itself, replayed",
            trial(plan.limit, plan.limit * HAIR, 0.0),
            Promise(Verdict.PASS, "at most", 0.025),
            True,
        ),
        (
            f"x {beyond:.2f}, beyond the noise, under heat, replayed",
            trial(plan.limit, beyond, HEAT),
            Promise(Verdict.REGRESS, "at least", 0.99),
            True,
        ),
    )
    return [Trials(name, there, [judge() for _ in range(TRIALS)], promise) for name, judge, promise, there in kinds]


def redrawn(pool: Pool, size: int, slower: float, heat: float, rng: np.random.Generator) -> Pairs:
    """``size`` sittings without repetition (ties would spoil the exact test), sides swapped by a coin."""
    pairs = Pairs()
    for index in rng.choice(len(pool), size=size, replace=False):
        new, old = pool[index] if rng.integers(2) else pool[index][::-1]
        factor = math.exp(heat * rng.normal())
        pairs.candidate.append(new.scaled(factor * slower))
        pairs.baseline.append(old.scaled(factor))
    return pairs
