"""Latency of a candidate against a baseline that runs in the same session, in interleaved pairs.

One pair is one block of the candidate and one of the baseline, in random order; each block begins with a short untimed
inference, so that the other side's spinning threads and cache lines are gone. Slow drifts (heat, clocks,
neighbours) then hit both sides of a pair alike.

**Judged quantity**: process CPU time on CPU engines, the wall clock elsewhere. On a busy 2-core machine the rule of
`planish.gate.slowdown` raised no false alarm on identical models and found +5 % in 94 % of the rounds on CPU time; on
the wall clock it found 9 % (54 rounds of 40 pairs). The gate measures on one thread unless told otherwise: then CPU
time is work and nothing else, while idle threads of a larger pool spin, and on a busy machine spin for long. CPU time
does not see how well the work spreads over cores: the wall ratio is always reported beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from planish.gate.clock import Clock, ProcessClock, Timing
from planish.gate.slowdown import FIRST_LOOK, Comparison, Pairs, Plan, decide, is_clear

__all__ = ["Probe", "block", "block_length", "compare"]

Probe = Callable[[Clock], Mapping[str, Timing]]
"""Does one block of work; returns for each phase ("inference", or "prefill" and "decode") seconds for one unit."""

BLOCK_SECONDS = 0.02  # a block shorter than this is mostly the clock's own noise
GROWTH = 1.4  # from one look of the sequential rule to the next


def block(run: Callable[[], object], inferences: int, settle: Callable[[], object] | None = None) -> Probe:
    """A probe of ``inferences`` calls of ``run`` after one untimed call of ``settle`` (default: of ``run``)."""
    first = settle or run

    def probe(clock: Clock) -> Mapping[str, Timing]:
        first()
        cpu, wall = clock.cpu(), clock.wall()
        for _ in range(inferences):
            run()
        return {"inference": Timing((clock.cpu() - cpu) / inferences, (clock.wall() - wall) / inferences)}

    return probe


def block_length(run: Callable[[], object], clock: Clock) -> int:
    """How many inferences make a block of about ``BLOCK_SECONDS``, at most 100; also warms up."""
    for _ in range(3):
        run()
    cpu, wall = clock.cpu(), clock.wall()
    run()
    took = (clock.cpu() - cpu) or (clock.wall() - wall)  # a busy machine stretches the wall clock
    return max(1, min(100, math.ceil(BLOCK_SECONDS / took))) if took > 0 else 1


def compare(
    name: str,
    candidate: Probe,
    baseline: Probe,
    plan: Plan,
    *,
    clock: Clock | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Comparison]:
    """Measure pairs until every phase is decided or the time is up; one comparison a phase, named ``name phase``."""
    clock = clock or ProcessClock()
    end = clock.wall() + plan.seconds
    warm_up(candidate, baseline, clock, clock.wall() + plan.seconds / 10)
    rng = np.random.default_rng(plan.seed)
    phases: dict[str, Pairs] = {}
    look = FIRST_LOOK
    for pair in range(1, plan.max_pairs + 1):
        measure_pair(candidate, baseline, phases, clock, candidate_first=bool(rng.integers(2)))
        if progress:
            progress(f"latency {name}", pair, plan.max_pairs)
        if clock.wall() >= end:
            break
        if pair >= look:
            look = math.ceil(look * GROWTH)
            if all(is_clear(pairs, plan) for pairs in phases.values()):
                break
    return [decide(f"{name} {phase}", pairs, plan) for phase, pairs in phases.items()]


def warm_up(candidate: Probe, baseline: Probe, clock: Clock, end: float) -> None:
    """Two blocks each; then until two blocks in a row differ by less than 5 %, or the time for it is up."""
    for probe in (candidate, baseline):
        before = total_wall(probe(clock))
        for _ in range(10):
            now = total_wall(probe(clock))
            if abs(now - before) <= 0.05 * before or clock.wall() >= end:
                break
            before = now


def total_wall(timings: Mapping[str, Timing]) -> float:
    return sum(timing.wall for timing in timings.values())


def measure_pair(
    candidate: Probe, baseline: Probe, phases: dict[str, Pairs], clock: Clock, *, candidate_first: bool
) -> None:
    """One block of each side, in the order given, added to ``phases``."""
    if candidate_first:
        new = candidate(clock)
        old = baseline(clock)
    else:
        old = baseline(clock)
        new = candidate(clock)
    for phase in new:
        pairs = phases.setdefault(phase, Pairs())
        pairs.candidate.append(new[phase])
        pairs.baseline.append(old[phase])
