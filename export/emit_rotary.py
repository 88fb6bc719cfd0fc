"""Frequencies of rotary position embeddings (Su et al. 2021, RoFormer), with the scalings decoders of this size use."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planish.errors import CheckpointError

__all__ = ["inverse_frequency"]


def inverse_frequency(config: dict[str, Any], rotary_dim: int) -> NDArray[np.float32]:
    """Radians per position, float32 ``[rotary_dim / 2]``.

    ``config`` says ``rope_parameters`` (transformers 5) or ``rope_theta`` and ``rope_scaling`` (before). Types
    ``default``, ``linear`` and ``llama3`` are known; raises ``CheckpointError`` on others.
    """
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(parameters.get("rope_theta") or config.get("rope_theta") or config.get("rotary_emb_base") or 10000.0)
    exponents = np.arange(0, rotary_dim, 2, dtype=np.int64).astype(np.float32) / np.float32(rotary_dim)
    frequency: NDArray[np.float32] = (1.0 / np.power(np.float32(theta), exponents)).astype(np.float32)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind == "default":
        return frequency
    if kind == "linear":
        return np.asarray(frequency / np.float32(parameters["factor"]))
    if kind == "llama3":
        return _llama3(frequency, parameters)
    raise CheckpointError("rotary scaling default, linear or llama3", repr(kind), "no emitter exists for it")


def _llama3(frequency: NDArray[np.float32], parameters: dict[str, Any]) -> NDArray[np.float32]:
    """Llama 3.1: long waves are slowed by ``factor``, short ones kept, those between blended."""
    factor, low = float(parameters["factor"]), float(parameters["low_freq_factor"])
    high, original = float(parameters["high_freq_factor"]), float(parameters["original_max_position_embeddings"])
    wavelength = 2 * math.pi / frequency
    blend = (original / wavelength - low) / (high - low)
    between = (1 - blend) * frequency / factor + blend * frequency
    scaled = np.where(
        wavelength > original / low, frequency / factor, np.where(wavelength < original / high, frequency, between)
    )
    return scaled.astype(np.float32)
