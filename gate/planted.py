"""Slowdowns planted by real work: what a gate must find, made on the machine that is to find it.

A block of a planted side does more of the same work and is told as if it had done the usual number; nothing else
differs, so what is measured is the gate and the machine, not a simulation of either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from planish.gate.clock import Clock, Timing, look, since
from planish.gate.latency import Probe, Sides, Sitting, block_length
from planish.gate.workloads import encoder_run
from planish.runtime.device_time import device_time_counted
from planish.runtime.loader import load

if TYPE_CHECKING:
    from planish.runtime.model import Model

__all__ = ["INFERENCES", "decoding", "planted_sitting", "working"]

INFERENCES = 10  # a block: the smallest in which 10 % is a whole inference


def working(run: Callable[[], object], extra: float, inferences: int = INFERENCES) -> Probe:
    """A block of ``inferences`` and ``extra`` more, told as ``inferences``; half a one is one every other block."""
    owed = 0.0

    def probe(clock: Clock) -> dict[str, Timing]:
        nonlocal owed
        owed += extra
        more = int(owed)
        owed -= more
        run()
        start = look(clock)
        for _ in range(inferences + more):
            run()
        return {"inference": since(clock, start, inferences)}

    return probe


def decoding(model: Model, ids: NDArray[np.int64], extra: int, steps: int = INFERENCES) -> Probe:
    """``steps`` and ``extra`` more after a prompt of ``ids`` ``[rows, length]``, told as ``steps``."""
    forced = np.random.default_rng(1).integers(0, model.manifest.vocab_size, size=(steps + extra, len(ids)))

    def probe(clock: Clock) -> dict[str, Timing]:
        run = model.decoder.start(len(ids), longest=ids.shape[1], limit=ids.shape[1] + len(forced))
        run.prefill(list(ids))  # untimed: the other side's cache lines leave
        start = look(clock)
        for tokens in forced:
            run.step(tokens.tolist())
        timing = since(clock, start, steps)
        run.close()
        return {"decode": timing}

    return probe


def planted_sitting(
    bundle: str | Path, ids: NDArray[np.int64], plant: float, clock: Clock, options: dict[str, Any]
) -> Sitting:
    """Sessions of one bundle, opened anew; the candidate does ``plant`` (0.1: a tenth) more work, 0 for A/A.

    Args:
        ids: ``[rows, length]`` of the batch; of a decoder the prompt, and steps are timed.
        options: of `planish.runtime.load`, the same for both.
    """

    @contextmanager
    def sit(order: tuple[int, ...]) -> Iterator[Sides]:
        with ExitStack() as stack:
            stack.enter_context(device_time_counted())
            opened = {side: stack.enter_context(load(bundle, **options)) for side in order}
            models = [opened[side] for side in sorted(opened)]
            plants = [plant, *[0.0] * (len(models) - 1)]
            if models[0].manifest.generation is not None:
                pairs = zip(models, plants, strict=True)
                yield {"decode": tuple(decoding(model, ids, round(more * INFERENCES)) for model, more in pairs)}
                return
            runs = [encoder_run(model, ids) for model in models]
            # As long as the gate's own blocks, in whole tens: what 10 % adds is then whole inferences.
            inferences = INFERENCES * math.ceil(max(block_length(run, clock) for run in runs) / INFERENCES)
            works = zip(runs, plants, strict=True)
            probes = tuple(working(run, more * inferences, inferences) for run, more in works)
            yield {"x".join(map(str, ids.shape)): probes}

    return sit
