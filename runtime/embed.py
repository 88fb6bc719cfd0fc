"""Sentence vectors: token vectors pooled into one, as the checkpoint's pooling configuration says."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from planish.errors import RequestError, nearest
from planish.runtime.manifest import Manifest, Pooling

__all__ = ["MODES", "pool", "pooling_for"]

MODES = ("mean", "cls", "max")


def pooling_for(manifest: Manifest, mode: str | None, normalize: bool | None) -> Pooling:
    """The manifest's pooling, changed where the caller asks. Raises RequestError when neither names a mode."""
    known = manifest.pooling
    if mode is None and known is None:
        raise RequestError("a pooling mode", "none in the bundle", 'pass pooling="mean" (or "cls", "max")')
    if mode is not None and mode not in MODES:
        raise RequestError("a pooling mode", repr(mode), nearest(str(mode), MODES))
    chosen: Any = mode if mode is not None else known.mode if known is not None else None
    default = known.normalize if known is not None else False
    return Pooling(chosen, default if normalize is None else bool(normalize))


def pool(tokens: NDArray[Any], pooling: Pooling) -> NDArray[np.float32]:
    """One vector [hidden] from token vectors [tokens, hidden], special tokens included, padding not.

    Mean, first token or maximum (the modes of Sentence-BERT, Reimers & Gurevych 2019), scaled to length 1 if asked.
    """
    values = tokens.astype(np.float32, copy=False)
    if pooling.mode == "mean":
        vector = values.mean(axis=0)
    elif pooling.mode == "cls":
        vector = values[0]
    else:
        vector = values.max(axis=0)
    if pooling.normalize:
        vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
    result: NDArray[np.float32] = vector.astype(np.float32, copy=False)
    return result
