"""Budgets of the candidate alone, measured only if they are limited or asked for: peak memory, energy an inference.

What cannot be measured here is an open question where there is a limit, and told where there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from planish.errors import InconclusiveError
from planish.gate.checks import Check, Verdict, judge_budget
from planish.gate.energy import joules_per_inference, open_meter
from planish.gate.gpu_state import card_of
from planish.gate.memory import peak_memory
from planish.gate.workloads import GATE_SHAPES, NEW_TOKENS, Shape, encoder_run, shapes_for
from planish.runtime.loader import load

if TYPE_CHECKING:
    from planish.gate.limits import Limits
    from planish.gate.statistics import Interval
    from planish.runtime.model import Model

__all__ = ["judge_energy", "judge_measured_budgets", "unmeasured", "whole_answer"]


def judge_measured_budgets(
    bundle: str | Path,
    limits: Limits,
    *,
    memory: bool,
    energy: bool,
    shapes: Sequence[tuple[int, int]] | None,
    device: str,
    threads: int | None,
) -> list[Check]:
    """Checks of what is limited, or asked for with ``memory`` and ``energy``; the engine has its usual threads."""
    checks = []
    if memory or limits.max_peak_rss_bytes is not None:
        try:
            peak = float(peak_memory(bundle, threads=threads, device=device)["peak_rss_bytes"])
            checks.append(judge_budget("peak memory", peak, limits.max_peak_rss_bytes, "bytes"))
        except InconclusiveError as error:
            checks.append(unmeasured("peak memory", limits.max_peak_rss_bytes, "bytes", error))
    if energy or limits.max_energy_joules is not None:
        try:
            checks.append(measure_energy(bundle, limits.max_energy_joules, shapes, device, threads))
        except InconclusiveError as error:
            checks.append(unmeasured("energy", limits.max_energy_joules, "J", error))
    return checks


def measure_energy(
    bundle: str | Path, limit: float | None, shapes: Sequence[tuple[int, int]] | None, device: str, threads: int | None
) -> Check:
    """One inference of the first shape: of a decoder a prompt and 16 steps."""
    with load(bundle, device, threads=threads) as model, open_meter(card_of(device, model.device)) as meter:
        shape = shapes_for([model], shapes, GATE_SHAPES)[0]
        found = joules_per_inference(whole_answer(model, shape), meter)
        return judge_energy(found, limit, f"{shape}, {meter.name}")


def judge_energy(found: Interval, limit: float | None, about: str) -> Check:
    """Pass if every block keeps the limit, regress if none does, else inconclusive; without a limit it is told."""
    text = f"energy {found.estimate:.4g} J an inference ({found.low:.4g} to {found.high:.4g}; {about})"
    if limit is None:
        return Check("energy", Verdict.PASS, found.estimate, None, "J", text, found, required=False)
    verdict = Verdict.PASS if found.high <= limit else Verdict.REGRESS if found.low > limit else Verdict.INCONCLUSIVE
    advice = ": measure on a quieter machine" if verdict is Verdict.INCONCLUSIVE else ""
    return Check("energy", verdict, found.estimate, limit, "J", f"{text}; at most {limit:g}{advice}", found)


def unmeasured(name: str, limit: float | None, unit: str, error: InconclusiveError) -> Check:
    """A check of what could not be measured."""
    reason = f"{name} could not be measured: {error}"
    return Check(name, Verdict.INCONCLUSIVE, math.nan, limit, unit, reason, required=limit is not None)


def whole_answer(model: Model, shape: Shape) -> Callable[[], object]:
    """One inference of random tokens: an encoder's batch, or a decoder's prompt and its forced steps."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, model.manifest.vocab_size, size=(shape.batch, shape.length), dtype=np.int64)
    if model.manifest.generation is None:
        return encoder_run(model, ids)
    steps = rng.integers(0, model.manifest.vocab_size, size=(NEW_TOKENS, shape.batch)).tolist()

    def answer() -> None:
        run = model.decoder.start(shape.batch, longest=shape.length, limit=shape.length + NEW_TOKENS)
        run.prefill(list(ids))
        for tokens in steps:
            run.step(tokens)
        run.close()

    return answer
