"""A device's latency table: what a block costs with so many heads and so many neurons, measured there once.

A JSON file::

    {"schema": 1, "profile": "cpu-x86", "recipe": "int8-dynamic", "batch": 8, "length": 64, "hidden": 384, "layers": 6,
     "base_ms": 1.9, "attention_ms": {"heads": [1, 2, 4, 12], "ms": [0.4, 0.5, 0.7, 1.6]},
     "ffn_ms": {"neurons": [32, 256, 1536], "ms": [0.2, 0.5, 2.1]}, "device": {...}}

``attention_ms`` and ``ffn_ms`` are those of one block; ``base_ms`` is what is left of a whole model. Between points the
line is straight, beyond the last it goes on, below the first it stays (a kernel's start costs what it costs).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planish.errors import DataError
from planish.sliced import Shape

__all__ = ["LatencyTable"]

_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class LatencyTable:
    """A table as read; times in milliseconds, of a batch of ``batch`` texts of ``length`` tokens."""

    profile: str
    recipe: str
    batch: int
    length: int
    hidden: int
    layers: int
    base_ms: float
    heads: tuple[int, ...]
    attention_ms: tuple[float, ...]
    neurons: tuple[int, ...]
    ffn_ms: tuple[float, ...]
    device: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Read and check a table.

        Raises:
            DataError: missing, not JSON, or not a table of this schema; the message names the key.
        """
        try:
            raw = json.loads(_read(path)) if path.is_file() and path.stat().st_size <= _MAX_BYTES else None
        except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
            raise DataError(f"a latency table (JSON) at {path}", " ".join(str(error).split())[:120], _FIX) from None
        if not isinstance(raw, dict):
            raise DataError(f"a latency table (JSON) at {path}", "no such file, or another content", _FIX)
        if raw.get("schema") != 1:
            raise DataError(f"schema 1 in {path}", repr(raw.get("schema"))[:40], _FIX)
        heads, attention = _grid(raw, "attention_ms", "heads", path)
        neurons, ffn = _grid(raw, "ffn_ms", "neurons", path)
        base = raw.get("base_ms")
        if isinstance(base, bool) or not isinstance(base, (int, float)) or not 0 <= base < math.inf:
            raise DataError(f"base_ms of 0 or more in {path}", repr(base)[:40], _FIX)
        device = raw.get("device")
        return cls(
            profile=str(raw.get("profile", "")),
            recipe=str(raw.get("recipe", "")),
            batch=_count(raw, "batch", path),
            length=_count(raw, "length", path),
            hidden=_count(raw, "hidden", path),
            layers=_count(raw, "layers", path),
            base_ms=float(base),
            heads=heads,
            attention_ms=attention,
            neurons=neurons,
            ffn_ms=ffn,
            device=device if isinstance(device, dict) else {},
        )

    def attention(self, heads: int) -> float:
        """Milliseconds of one block's attention with so many (query) heads."""
        return _between(heads, self.heads, self.attention_ms)

    def ffn(self, neurons: int) -> float:
        """Milliseconds of one block's feed-forward part with so many neurons."""
        return _between(neurons, self.neurons, self.ffn_ms)

    def predict(self, shapes: Iterable[Shape]) -> float:
        """Milliseconds of a model whose blocks have these shapes."""
        return self.base_ms + sum(self.attention(shape.heads) + self.ffn(shape.ffn) for shape in shapes)


_FIX = "measure one on the device with planish"


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _between(count: int, points: Sequence[int], values: Sequence[float]) -> float:
    """Linear between points, and beyond the last along the last two; never below 0."""
    if count <= points[-1] or len(points) == 1:
        return float(np.interp(count, points, values))
    slope = (values[-1] - values[-2]) / (points[-1] - points[-2])
    return max(0.0, values[-1] + slope * (count - points[-1]))


def _grid(raw: dict[str, Any], key: str, axis: str, path: Path) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Points and times of one of the two parts."""
    found = raw.get(key)
    expected = f"{key} in {path}: {axis} ascending, and as many ms, positive"
    if not isinstance(found, dict):
        raise DataError(expected, repr(found)[:60], _FIX)
    points, times = found.get(axis), found.get("ms")
    if not isinstance(points, list) or not isinstance(times, list) or len(points) != len(times) or not points:
        raise DataError(expected, f"{points!r} and {times!r}"[:80], _FIX)
    if not all(type(point) is int and point > 0 for point in points) or points != sorted(set(points)):
        raise DataError(expected, f"{axis} {points!r}"[:80], _FIX)
    if not all(isinstance(one, (int, float)) and not isinstance(one, bool) and 0 < one < math.inf for one in times):
        raise DataError(expected, f"ms {times!r}"[:80], _FIX)
    return tuple(points), tuple(float(one) for one in times)


def _count(raw: dict[str, Any], name: str, path: Path) -> int:
    value = raw.get(name)
    if type(value) is not int or value < 1:
        raise DataError(f"a positive integer as {name} in {path}", repr(value)[:40], _FIX)
    return value
