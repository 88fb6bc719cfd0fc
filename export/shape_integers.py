"""Integers that a graph computes: shapes, axes and ranges on their way into a Reshape or a Slice."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from planish.export.shape_call import SMALL, Call

__all__ = ["computed"]


def computed(call: Call) -> npt.NDArray[Any] | None:
    """The integers a node makes of known ones."""
    op = call.node.op_type
    if op == "Shape":
        shape = call.shape(0)
        if shape is None:
            return None
        part = shape[call.attr("start", 0) : call.attr("end", len(shape))]
        return None if any(axis is None for axis in part) else np.array(part, np.int64)
    if op not in VALUES or not call.inputs:
        return None
    values = [one.value for one, given in zip(call.inputs, call.node.inputs, strict=True) if given is not None]
    if any(value is None for value in values):
        return None
    made = np.asarray(VALUES[op](call, *values))
    return made if made.size <= SMALL and made.dtype.kind in "iub" else None


def sliced(call: Call, data: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    index: list[slice] = [slice(None)] * data.ndim
    for at, axis in enumerate(range(len(starts)) if axes is None else axes):
        index[int(axis)] = slice(int(starts[at]), int(ends[at]), 1 if steps is None else int(steps[at]))
    return data[tuple(index)]


def unsqueezed(call: Call, data: Any, axes: Any = None) -> Any:
    return np.expand_dims(data, tuple(call.ints(1, "axes") or ()))


def squeezed(call: Call, data: Any, axes: Any = None) -> Any:
    chosen = call.ints(1, "axes")
    return np.squeeze(data, None if chosen is None else tuple(chosen))


def cast_integers(call: Call, data: Any) -> Any:
    return data.astype(ir.DataType(call.attr("to")).numpy())


def divided(call: Call, left: Any, right: Any) -> Any:
    return np.trunc(left / right).astype(np.int64)


VALUES: dict[str, Callable[..., Any]] = {
    "Add": lambda call, a, b: a + b,
    "And": lambda call, a, b: a & b,
    "Cast": cast_integers,
    "Concat": lambda call, *parts: np.concatenate(parts, call.attr("axis")),
    "Div": divided,
    "Equal": lambda call, a, b: a == b,
    "Gather": lambda call, a, at: np.take(a, at, axis=call.attr("axis", 0)),
    "Greater": lambda call, a, b: a > b,
    "Identity": lambda call, a: a,
    "Less": lambda call, a, b: a < b,
    "Max": lambda call, *parts: reduce(np.maximum, parts),
    "Min": lambda call, *parts: reduce(np.minimum, parts),
    "Mod": lambda call, a, b: np.mod(a, b),
    "Mul": lambda call, a, b: a * b,
    "Neg": lambda call, a: -a,
    "Not": lambda call, a: ~a,
    "Range": lambda call, start, stop, step: np.arange(int(start), int(stop), int(step)),
    "ReduceProd": lambda call, a, *axes: np.prod(a, keepdims=bool(call.attr("keepdims", 1))),
    "Reshape": lambda call, a, to: a.reshape(to),
    "Slice": sliced,
    "Squeeze": squeezed,
    "Sub": lambda call, a, b: a - b,
    "Unsqueeze": unsqueezed,
    "Where": lambda call, at, a, b: np.where(at, a, b),
}
