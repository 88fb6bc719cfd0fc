"""What every comparison of a decoder with torch needs: rows of random ids, torch's answer to them, and how far off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planish.export.golden import run_torch
from planish.export.quiet import quiet

__all__ = ["RAGGED", "STEPS", "largest", "random_rows", "relative", "torch_logits"]

Array = NDArray[Any]

STEPS = 3
"""Tokens decoded one by one after a prompt."""

RAGGED = (24, 9, 1)
"""Lengths of the rows of a batch."""


def random_rows(lengths: Sequence[int], vocab_size: int, seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab_size, length) for length in lengths]


def torch_logits(model: Any, row: Array) -> Array:
    """Logits ``[length, vocab]`` of one row by itself."""
    with quiet():
        logits = run_torch(model, {"input_ids": row[None]}, ["logits"])["logits"]
    return np.asarray(logits[0])


def largest(difference: Array) -> float:
    return float(np.max(np.abs(difference))) if np.isfinite(difference).all() else float("inf")


def relative(got: Array, expected: Array) -> Array:
    """Spread of the difference over the spread of ``expected``, position by position; infinite where not finite."""
    ratio = np.std(got - expected, axis=-1) / (np.std(expected, axis=-1) + 1e-12)
    return np.where(np.isfinite(ratio), ratio, np.inf)
