"""Which floats of a `qdq` decoder are float16, and which measurement says must be float32.

Every value with a name has a range: the largest magnitude seen on calibration text (:mod:`planish.export.qdq_ranges`).
A value stays float16 while its range leaves room for text that was not seen; above that it is float32 ("wide"). A
matrix product reads and writes float16 all the same: its input is divided by a power of two, which is exact, and its
result multiplied again in float32.

Without ranges everything is float32: the graph the ranges are measured with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from planish.errors import CheckpointError
from planish.export.emit_graph import EmitGraph
from planish.export.measure_ranges import LIMIT
from planish.export.to_half import LARGEST

__all__ = ["LARGEST", "LIMIT", "Floats"]

Array = NDArray[Any]

_FLOAT, _HALF = int(ir.DataType.FLOAT), int(ir.DataType.FLOAT16)


class Floats:
    """Emits into ``graph`` with the precision ``ranges`` asks for; ``seen`` lists the named values."""

    def __init__(self, graph: EmitGraph, ranges: Mapping[str, float] | None) -> None:
        self.graph = graph
        self.ranges = ranges
        self.dtype = "float32" if ranges is None else "float16"
        self.seen: list[tuple[str, ir.Value]] = []
        self._names: dict[ir.Value, str] = {}
        self._wide: set[ir.Value] = set()

    def note(self, value: ir.Value, name: str, *, wide: bool = False) -> ir.Value:
        """Remember ``value`` under ``name``, and whether it is float32 in a float16 graph."""
        self._names[value] = name
        self.seen.append((name, value))
        if wide and self.ranges is not None:
            self._wide.add(value)
        return value

    def like(self, new: ir.Value, old: ir.Value) -> ir.Value:
        """``new`` is ``old`` moved about: the same numbers, the same precision."""
        self._names[new] = self.name(old)
        if old in self._wide:
            self._wide.add(new)
        return new

    def name(self, value: ir.Value) -> str:
        return self._names.get(value, "")

    def is_wide(self, value: ir.Value) -> bool:
        return value in self._wide

    def type_of(self, value: ir.Value) -> ir.DataType:
        single = self.ranges is None or value in self._wide
        return ir.DataType.FLOAT if single else ir.DataType.FLOAT16

    def peak(self, name: str) -> float:
        """Largest magnitude of the value called ``name``; unknown ones are taken for large."""
        return 0.0 if self.ranges is None else self.ranges.get(name, math.inf)

    def fits(self, name: str) -> bool:
        """Whether float16 holds the value called ``name`` with room to spare."""
        return self.peak(name) <= LIMIT

    def half(self, value: ir.Value) -> ir.Value:
        """``value`` in the graph's own precision; refuses one that float16 cannot hold at all."""
        if value not in self._wide:
            return value
        if self.peak(self.name(value)) > LARGEST:
            raise CheckpointError(
                f"{self.name(value)} within float16's range, {LARGEST:g}",
                f"{self.peak(self.name(value)):.3g} on calibration text",
                "serve this model with the `ort` dialect: keys, values and what norms give must fit float16",
            )
        return self.graph.op("Cast", value, to=_HALF)

    def single(self, value: ir.Value) -> ir.Value:
        """``value`` in float32."""
        if self.ranges is None or value in self._wide:
            return value
        single = self.graph.op("Cast", value, to=_FLOAT)
        self._wide.add(single)
        return single

    def narrow(self, value: ir.Value) -> ir.Value:
        """A float32 intermediate in the graph's own precision."""
        return value if self.ranges is None else self.graph.op("Cast", value, to=_HALF)

    def elementwise(self, make: Callable[..., ir.Value], name: str, *inputs: ir.Value, stay: bool = False) -> ir.Value:
        """``make(*inputs)``, in float32 if an input is or the result has to be; ``stay``: then the result is, too."""
        fits, wide = self.fits(name), any(value in self._wide for value in inputs)
        if fits and not wide:
            return self.note(make(*inputs), name)
        result = make(*(self.single(value) for value in inputs))
        if fits and not stay:
            return self.note(self.narrow(result), name)
        return self.note(result, name, wide=True)

    def product(self, make: Callable[[ir.Value], ir.Value], name: str, x: ir.Value) -> ir.Value:
        """``make(x)``, linear in ``x``, computed in float16 whatever the ranges of ``x`` and of the result."""
        wide = x in self._wide
        before = _halvings(self.peak(self.name(x))) if wide else 0
        if before:
            x = self.graph.op("Mul", x, self.graph.constant(2.0**-before, "float32"))
        if wide:
            x = self.narrow(x)
        peak = self.peak(name)
        more = _halvings(peak / 2.0**before)
        if more:
            x = self.graph.op("Mul", x, self.graph.constant(2.0**-more, "float16"))
        return self._restored(make(x), name, before + more)

    def _restored(self, result: ir.Value, name: str, halvings: int) -> ir.Value:
        if not halvings:
            return self.note(result, name)
        if self.fits(name):
            return self.note(self.graph.op("Mul", result, self.graph.constant(2.0**halvings, "float16")), name)
        single = self.graph.op("Cast", result, to=_FLOAT)
        return self.note(self.graph.op("Mul", single, self.graph.constant(2.0**halvings, "float32")), name, wide=True)

    def constant(self, number: float, beside: ir.Value | None = None) -> ir.Value:
        """A scalar in the precision of ``beside``, or the graph's own."""
        return self.graph.constant(number, "float32" if beside in self._wide else self.dtype)

    def weight(self, name: str, array: Array, beside: ir.Value | None = None) -> ir.Value:
        """A weight in the precision of ``beside``, or the graph's own; refuses one that float16 cannot hold."""
        if self.ranges is None or beside in self._wide:
            return self.graph.weight(name, array.astype(np.float32, copy=False))
        if array.size and not np.abs(array).max() <= LARGEST:
            raise CheckpointError(
                f"{name} within float16's range, {LARGEST:g}",
                f"{float(np.abs(array).max()):.3g}",
                "serve this model with the `ort` dialect",
            )
        return self.graph.weight(name, array.astype(np.float16))


def _halvings(peak: float) -> int:
    """How often ``peak`` has to be halved to fit; a range nobody measured counts as sixteen times too large."""
    if not math.isfinite(peak):
        return 4
    return max(0, math.ceil(math.log2(peak / LIMIT))) if peak > 0 else 0
