"""Latency of a candidate against a baseline, in interleaved blocks and in several sittings.

Two things make two runs of one model differ. Noise in time (heat, clocks, neighbours) hits both sides of a pair alike
when blocks are short and alternate in random order. And *sessions* differ: two sessions of one bundle in one process
differ by 1-3 % for as long as they live, by where their memory came to lie (five sessions of MiniLM, one thread, 1x32:
0.961 to 1.029 of their mean, intervals of +-1 %). No amount of pairs in one pair of sessions averages that away. So
the unit of evidence is a **sitting**: both bundles are opened afresh, in random order, and measured in a few
alternating blocks; the medians of a sitting are one pair.

Each block begins with a short untimed inference, so that the other side's cache lines are gone, and sessions are opened
with :data:`SETTLED`: ONNX Runtime's threads otherwise spin on for a while after an answer, waiting for the next, and
would take the processor from the other side. (Two threads on two cores, MiniLM INT8 against fp32 in one process:
1.5 times as fast with them spinning, 2.2 without, and 2.2 is what either side does alone.)

**Judged quantity**: process CPU time on CPU engines, the device's own time (CUDA events) on TensorRT engines, the wall
clock elsewhere. On a busy 2-core machine a rule like that of `planish.gate.slowdown` raised no false alarm on identical
models and found +5 % in 94 % of the rounds on CPU time; on the wall clock it found 9 % (54 rounds of 40 pairs). The
gate measures on one thread unless told otherwise: then CPU time is work and nothing else, while idle threads of a
larger pool spin, and on a busy machine spin for long. CPU time does not see how well the work spreads over cores: the
wall ratio is always reported beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np

from planish.gate.clock import Clock, ProcessClock, Timing, look, since
from planish.gate.drift import Watch
from planish.gate.slowdown import FIRST_LOOK, Comparison, Pairs, Plan, decide, is_clear, under

__all__ = ["SETTLED", "Probe", "Sides", "Sitting", "block", "block_length", "compare", "median_timing"]

Probe = Callable[[Clock], Mapping[str, Timing]]
"""Does one block of work; returns for each phase ("inference", or "prefill" and "decode") seconds for one unit."""

SETTLED = {"session.force_spinning_stop": "1"}
"""Session options of models that are measured in turns."""

Sides = Mapping[str, tuple[Probe, ...]]
"""For each shape, by name, the probes of candidate and baseline, and where asked for of the baseline again."""

Sitting = Callable[[tuple[int, ...]], AbstractContextManager[Sides]]
"""Opens the sides afresh in the order told: 0 is the candidate, 1 the baseline, 2, if it is asked for, the baseline
once more, a session of its own: what that differs by is the clock's noise."""

BLOCK_SECONDS = 0.02  # a block shorter than this is mostly the clock's own noise
BLOCKS = 3  # of each side in a sitting
PATIENCE = 2  # so many times the seconds asked for are added while sittings are too few to pass and to regress
GROWTH = 1.4  # from one look of the sequential rule to the next


def block(run: Callable[[], object], inferences: int, settle: Callable[[], object] | None = None) -> Probe:
    """A probe of ``inferences`` calls of ``run`` after one untimed call of ``settle`` (default: of ``run``)."""
    first = settle or run

    def probe(clock: Clock) -> Mapping[str, Timing]:
        first()
        start = look(clock)
        for _ in range(inferences):
            run()
        return {"inference": since(clock, start, inferences)}

    return probe


def block_length(run: Callable[[], object], clock: Clock) -> int:
    """How many inferences make a block of about ``BLOCK_SECONDS``, at most 100."""
    run()
    start = look(clock)
    run()
    found = since(clock, start)
    took = found.cpu or found.wall  # a busy machine stretches the wall clock
    return max(1, min(100, math.ceil(BLOCK_SECONDS / took))) if took > 0 else 1


def compare(
    sitting: Sitting,
    plan: Plan,
    *,
    clock: Clock | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    watch: Watch | None = None,
) -> list[Comparison]:
    """Sit until every shape and phase is decided or the time is up; one comparison for each, named ``shape phase``.

    Too busy a machine for the sittings that can tell either way (two judged comparisons: eight) gets up to three times
    the time. ``watch`` looks at the machine after each sitting; what changed is judged (`planish.gate.drift`). All that
    has a limit shares the level of the test.
    """
    clock = clock or ProcessClock()
    end = clock.wall() + plan.seconds
    rng = np.random.default_rng(plan.seed)
    found: dict[str, Pairs] = {}
    due = FIRST_LOOK
    for done in range(1, plan.max_pairs + 1):
        with sitting(tuple(int(side) for side in rng.permutation(plan.sides))) as sides:
            for shape, probes in sides.items():
                hold(shape, probes, found, clock, rng)
        if watch:
            watch.look()
        if progress:
            progress("latency", done, plan.max_pairs)
        over, plans = clock.wall() - end, shared(plan, len(found)).judgements
        if over >= 0 and (over >= PATIENCE * plan.seconds or all(each.enough(done) for each in plans.values())):
            break
        if done >= due:
            due = math.ceil(due * GROWTH)
            if all(is_clear(pairs, each) for pairs in found.values() for each in plans.values()):
                break
    clocks = shared(plan, len(found)).judgements.items()
    judged = [decide(named(name, word), pairs, each) for name, pairs in found.items() for word, each in clocks]
    if watch is None:
        return judged
    watch.look(whole=True)
    return [under(comparison, watch.changes, watch.busy) for comparison in judged]


def shared(plan: Plan, phases: int) -> Plan:
    """The plan of each of so many phases: what has a limit shares the level of the test, on each clock.

    >>> shared(Plan(), 2).level, shared(Plan(wall_limit=1.1), 2).level
    (0.005, 0.0025)
    """
    limited = sum(each.limit is not None for each in plan.judgements.values())
    return replace(plan, among=max(plan.among, limited * phases))


def named(name: str, word: str) -> str:
    """The name of a comparison, with the clock's word before its phase.

    >>> named("1x32 inference", ""), named("1x32 inference", "wall")
    ('1x32 inference', '1x32 wall inference')
    """
    shape, phase = name.rsplit(" ", 1)
    return f"{shape} {word} {phase}" if word else name


def hold(shape: str, sides: Sequence[Probe], found: dict[str, Pairs], clock: Clock, rng: np.random.Generator) -> None:
    """Warm all sides up, run their blocks in random order within each pair, and add the medians to ``found``."""
    for index in rng.permutation(len(sides)):
        sides[index](clock)
    blocks: list[list[Mapping[str, Timing]]] = [[] for _ in sides]
    for _ in range(BLOCKS):
        for index in rng.permutation(len(sides)):
            blocks[index].append(sides[index](clock))
    for phase in blocks[0][0]:
        pairs = found.setdefault(f"{shape} {phase}", Pairs())
        for kept, taken in zip((pairs.candidate, pairs.baseline, pairs.again), blocks, strict=False):
            kept.append(median_timing([timings[phase] for timings in taken]))


def median_timing(timings: Sequence[Timing]) -> Timing:
    """Medians of each clock by itself."""
    return Timing(*(float(seconds) for seconds in np.median(np.array(timings), axis=0)))
