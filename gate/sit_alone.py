"""Times of one bundle by itself, sitting by sitting: figures to keep and to report, none to judge by.

A sitting is as in `planish.gate.latency`: the bundle is opened afresh and runs a few blocks of each shape, and their
medians are its times. Without a partner in the same session nothing tells a slower bundle from a slower hour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from planish.gate.clock import Clock, KeptClock, Timing
from planish.gate.latency import BLOCKS, SETTLED, median_timing
from planish.gate.slowdown import FIRST_LOOK
from planish.gate.workloads import Shape, probes
from planish.runtime.loader import load
from planish.runtime.placement import CPU

if TYPE_CHECKING:
    from planish.runtime.model import Model

__all__ = ["SITTINGS", "sit_alone", "timed_on"]

SITTINGS = FIRST_LOOK


def timed_on(model: Model, threads: int | None) -> tuple[KeptClock, int | None]:
    """The clock that speaks for a model, and the threads it is timed with: one, where that is CPU time."""
    if model.device != CPU:
        return "wall", threads
    return "cpu", 1 if threads is None else threads


def sit_alone(
    bundle: str | Path,
    shapes: Sequence[Shape],
    clock: Clock,
    *,
    seconds: float,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, list[Timing]]:
    """``{"1x32 inference": [..]}``: a timing a sitting, nine of them, fewer when the seconds are over."""
    end, found = clock.wall() + seconds, dict[str, list[Timing]]()
    for done in range(1, SITTINGS + 1):
        with load(bundle, device, threads=threads, session_options=SETTLED) as model:
            for shape in shapes:
                (probe,) = probes([model], shape, clock, seed)
                probe(clock)
                blocks = [probe(clock) for _ in range(BLOCKS)]
                for phase in blocks[0]:
                    timing = median_timing([block[phase] for block in blocks])
                    found.setdefault(f"{shape} {phase}", []).append(timing)
        if progress:
            progress("latency", done, SITTINGS)
        if clock.wall() >= end:
            break
    return found
