"""An engine has to give the golden answers on a device before it may serve there."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from planish.errors import BundleError, ParityError
from planish.runtime.decoders import decoder_of
from planish.runtime.engines import check_known, engine_changes, record_proof
from planish.runtime.golden import golden_drift, read_golden
from planish.runtime.integrity import Verified, verify_files
from planish.runtime.manifest import Manifest
from planish.runtime.sample import IntArray

if TYPE_CHECKING:
    from planish.runtime.engine import Engine
    from planish.runtime.plan_engine import PlanEngine

__all__ = ["check_golden", "measure_golden", "prove_engine", "try_engine"]

Arrays = Mapping[str, NDArray[Any]]


def prove_engine(bundle: str | os.PathLike[str], engine_id: str, device: int = 0) -> Manifest:
    """Opens an engine on CUDA device ``device``, runs the golden set and records it in the manifest as ``proved``.

    Raises ParityError when the answers are farther off than ``golden_limit`` allows, HostError when the engine cannot
    run here, BundleError when the bundle is damaged. Whatever is raised, the manifest stays as it was.
    """
    verified = verify_files(bundle)
    check_known(verified.manifest, engine_id)
    return record_proof(bundle, engine_id, _proof(verified, engine_id, device))


def try_engine(bundle: str | os.PathLike[str], engine_id: str, device: int = 0) -> dict[str, Any]:
    """As :func:`prove_engine` for an engine the manifest does not name yet; returns what it would record.

    So a builder knows that an engine answers rightly before anybody else can load it.
    """
    verified = verify_files(bundle)
    changes, states = engine_changes(verified.root, verified.manifest, engine_id)
    manifest = dataclasses.replace(verified.manifest, **changes)
    return _proof(Verified(verified.root, manifest, {**verified.states, **states}), engine_id, device)


def _proof(verified: Verified, engine_id: str, device: int) -> dict[str, Any]:
    from planish.runtime.choice import choose_engine, no_engine
    from planish.runtime.loader import open_engine

    choice, reasons = choose_engine(verified, device, engine_id)
    if choice is None:
        raise no_engine(reasons)
    engine = open_engine(verified, choice)
    try:
        drift, limit = check_golden(verified, engine, engine_id)
    finally:
        engine.close()
    facts = choice.cuda.facts
    where = {"name": facts.name, "sm": facts.sm, "driver": facts.driver}
    return {"device": where, "drift": drift, "limit": limit}


def check_golden(verified: Verified, engine: Engine | PlanEngine, name: str) -> tuple[float, float]:
    """The drift of an open engine and the limit it kept. Raises ParityError when it did not."""
    manifest = verified.manifest
    dialect = manifest.engines[name].dialect
    parity = manifest.parity.get(dialect)
    limit = None if parity is None else parity.golden_limit
    if limit is None:
        got = "none: nothing says how near its answers have to be"
        raise BundleError(f"golden_limit in the manifest's parity.{dialect}", got, "export the bundle again")
    drift = measure_golden(verified, engine)
    if not drift <= limit:
        fix = f"do not serve it: remove_engine(bundle, {name!r}) or build it again; device='cpu' still serves"
        raise ParityError(f"golden answers within {limit:g} (relative RMS) from the engine {name}", f"{drift:g}", fix)
    return drift, limit


def measure_golden(verified: Verified, engine: Engine | PlanEngine) -> float:
    """How far an open engine is from ``golden/outputs.npz``, as relative root mean square.

    A decoder answers twice, by its prefill alone and with the last token as a step, so that both of its optimization
    profiles are tried; the worse counts.
    """
    inputs, wanted = read_golden(verified)
    rows = len(inputs["input_ids"])
    size = min(rows, engine.max_rows or rows)  # an engine may be built for fewer rows than the golden batch has
    groups = [slice(start, start + size) for start in range(0, rows, size)]
    if verified.manifest.generation is None:
        parts = [engine.run({name: array[group] for name, array in inputs.items()}) for group in groups]
        got = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return golden_drift(got, wanted, inputs.get("attention_mask"))
    prompts = [row[mask == 1] for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    ways = [_prefill, _prefill_and_step] if min(prompt.size for prompt in prompts) > 1 else [_prefill]
    expected = {"logits": wanted["logits"].reshape(rows, -1)}
    answers = [np.concatenate([way(verified, engine, prompts[group]) for group in groups]) for way in ways]
    return max(golden_drift({"logits": answer}, expected) for answer in answers)


def _prefill(verified: Verified, engine: Engine | PlanEngine, prompts: list[IntArray]) -> NDArray[np.float32]:
    run = decoder_of(engine, verified.manifest).start(len(prompts), longest=_longest(prompts), limit=_longest(prompts))
    try:
        return np.array(run.prefill(prompts), np.float32)
    finally:
        run.close()


def _prefill_and_step(verified: Verified, engine: Engine | PlanEngine, prompts: list[IntArray]) -> NDArray[np.float32]:
    longest = _longest(prompts)
    run = decoder_of(engine, verified.manifest).start(len(prompts), longest=longest, limit=longest + 1)
    try:
        run.prefill([prompt[:-1] for prompt in prompts])
        return np.array(run.step([int(prompt[-1]) for prompt in prompts]), np.float32)
    finally:
        run.close()


def _longest(prompts: list[IntArray]) -> int:
    return max(prompt.size for prompt in prompts)
