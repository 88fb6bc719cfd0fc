"""What is known of a value while a graph is walked through, and a node with what is known of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

__all__ = ["SMALL", "Call", "Known", "Shape"]

SMALL = 4096  # integers kept at most: shapes, ranges and slices, never weights
Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Known:
    """What is known of a value: element type, shape (None: not even the rank), and content of few integers."""

    dtype: ir.DataType | None = None
    shape: Shape | None = None
    value: npt.NDArray[Any] | None = None


@dataclass(frozen=True)
class Call:
    """A node with what is known of its inputs, and which of its outputs is asked for."""

    node: ir.Node
    inputs: Sequence[Known]
    output: int = 0

    def attr(self, name: str, default: Any = None) -> Any:
        found = self.node.attributes.get(name)
        return default if found is None else found.value

    def shape(self, index: int) -> Shape | None:
        return self.inputs[index].shape if index < len(self.inputs) else None

    def ints(self, index: int, name: str | None = None) -> list[int] | None:
        """Integers given as an input or, in older opsets, as the attribute ``name``."""
        if name is not None and name in self.node.attributes:
            return [int(item) for item in np.atleast_1d(self.attr(name))]
        value = self.inputs[index].value if index < len(self.inputs) else None
        return None if value is None else [int(item) for item in value.reshape(-1)]
