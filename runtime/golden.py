"""The golden pair of a bundle: a few inputs, what the checkpoint answered in torch, and the drift of an engine."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planish.errors import BundleError
from planish.runtime.integrity import Verified, read_verified

__all__ = ["golden_drift", "read_golden"]

Arrays = Mapping[str, NDArray[Any]]


def golden_drift(got: Arrays, wanted: Arrays, mask: NDArray[Any] | None = None) -> float:
    """Relative root mean square: ``rms(got - wanted) / rms(wanted)``, the largest over the outputs in ``wanted``.

    ``mask`` ``[batch, sequence]`` is the attention mask: where an output has these two axes first, padding is left
    out. Infinite where ``got`` is not finite or of another shape.

    >>> golden_drift({"a": np.array([3.0, 4.4])}, {"a": np.array([3.0, 4.0])})
    0.08
    """
    drifts = []
    for name, expected in wanted.items():
        found = got.get(name)
        if found is None or found.shape != expected.shape:
            return math.inf
        keep = slice(None) if mask is None or expected.shape[:2] != mask.shape else mask == 1
        truth = np.asarray(expected[keep], np.float64)
        error = np.asarray(found[keep], np.float64) - truth
        if not np.isfinite(error).all():
            return math.inf
        size = float(np.sqrt(np.mean(truth**2)))
        drifts.append(float(np.sqrt(np.mean(error**2))) / max(size, 1e-12))
    return float(f"{max(drifts, default=math.inf):.4g}")


def read_golden(verified: Verified) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Inputs and outputs of ``golden/``. Raises BundleError when they are not there or are no arrays."""
    return _arrays(verified, "golden/inputs.npz"), _arrays(verified, "golden/outputs.npz")


def _arrays(verified: Verified, name: str) -> dict[str, NDArray[Any]]:
    data = read_verified(verified, name)
    if data is None:
        raise BundleError(f"{name} in the bundle", "no such file", "export the bundle again")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {key: np.asarray(arrays[key]) for key in arrays.files}
    except (ValueError, OSError, KeyError, EOFError) as error:
        raise BundleError(f"arrays in {name}", str(error)[:200], "export the bundle again") from error
