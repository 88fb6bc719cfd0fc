"""What a graph builder hands to the bundle writer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["Built", "Dialect", "Progress", "TensorSpec"]

Dialect = Literal["ort", "qdq"]

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``, often."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph; ``shape`` mixes numbers and names of dynamic axes."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}


@dataclass(frozen=True)
class Built:
    """An ONNX file in a scratch folder, and all the manifest has to say about it.

    ``files`` are paths relative to ``folder``, the model first, then its external data. ``session`` holds ONNX Runtime
    session config entries the graph was measured with, ``disabled_optimizers`` the graph optimizers it must not meet.
    ``generation`` is None for encoders. ``audit`` is what was measured of the graph itself (ranges, casts).
    """

    folder: Path
    files: tuple[str, ...]
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: dict[str, str]
    session: dict[str, str] = field(default_factory=dict)
    disabled_optimizers: tuple[str, ...] = ()
    generation: dict[str, Any] | None = None
    dialect: Dialect = "ort"
    audit: dict[str, Any] = field(default_factory=dict)
