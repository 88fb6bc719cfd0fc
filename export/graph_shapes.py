"""Types and shapes of a graph's values when its inputs have given sizes.

A small forward pass over the operators that transformers are made of. It keeps integers as long as they are few, so it
follows shapes that are computed (``Shape -> Gather -> Concat -> Reshape``). What it does not know stays unknown; the
audit counts that and says so.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from planish.export.shape_call import SMALL, Call, Known, Shape
from planish.export.shape_integers import computed
from planish.export.shape_rules import shape_of

__all__ = ["Known", "propagate"]

BOOL, INT64 = ir.DataType.BOOL, ir.DataType.INT64
TRUTH = frozenset({"And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or"})
COUNTS = frozenset({"ArgMax", "ArgMin", "NonZero", "Shape", "Size"})


def propagate(graph: ir.Graph, sizes: Mapping[str, Shape]) -> dict[ir.Value, Known]:
    """What is known of every value of ``graph`` when its inputs have the shapes ``sizes``."""
    known: dict[ir.Value, Known] = {}
    for value in graph.inputs:
        known[value] = Known(value.dtype, sizes.get(value.name or "", declared(value)))
    for value in graph.initializers.values():
        known[value] = constant(value.const_value, value.dtype)
    for node in graph:
        inputs = [known.get(value, Known()) if value is not None else Known() for value in node.inputs]
        for index, output in enumerate(node.outputs):
            found = output_of(Call(node, inputs, index))
            shape = found.shape if found.shape is not None else declared(output)
            known[output] = Known(found.dtype or output.dtype, shape, found.value)
    return known


def declared(value: ir.Value) -> Shape | None:
    """The shape written beside a value, its symbols unknown."""
    return None if value.shape is None else tuple(axis if isinstance(axis, int) else None for axis in value.shape)


def constant(tensor: ir.TensorProtocol | None, dtype: ir.DataType | None = None) -> Known:
    """A tensor that is there: integers are read if they are few."""
    if tensor is None:
        return Known(dtype)
    shape = tuple(int(axis) for axis in tensor.shape)
    wanted = tensor.dtype in (INT64, ir.DataType.INT32, BOOL) and tensor.size <= SMALL
    return Known(tensor.dtype, shape, tensor.numpy() if wanted else None)


def output_of(call: Call) -> Known:
    """What is known of one output of a node."""
    if call.node.op_type == "Constant":
        return constant_of(call)
    try:
        value = computed(call) if call.output == 0 else None
        if value is not None:
            return Known(dtype_of(call), value.shape, value)
        return Known(dtype_of(call), shape_of(call))
    except (IndexError, TypeError, ValueError, ZeroDivisionError):  # a malformed node: the parser says what is wrong
        return Known(dtype_of(call))


def constant_of(call: Call) -> Known:
    if "value" in call.node.attributes:
        return constant(call.attr("value"))
    for name, dtype in (("value_int", np.int64), ("value_ints", np.int64)):
        if name in call.node.attributes:
            found = np.array(call.attr(name), dtype)
            return Known(INT64, found.shape, found)
    floats = call.attr("value_floats", call.attr("value_float"))
    return Known(ir.DataType.FLOAT, np.shape(floats) if floats is not None else None)


def dtype_of(call: Call) -> ir.DataType | None:
    """The element type of an output."""
    op, index, first = call.node.op_type, call.output, call.inputs[0].dtype if call.inputs else None
    if op in TRUTH:
        return BOOL
    if op in COUNTS or (op == "TopK" and index == 1):
        return INT64
    if op == "Cast":
        return ir.DataType(call.attr("to"))
    if op in ("CastLike", "Where") and len(call.inputs) > 1:
        return call.inputs[1].dtype
    if op == "ConstantOfShape":
        return call.attr("value").dtype if "value" in call.node.attributes else ir.DataType.FLOAT
    if op in ("QuantizeLinear", "DequantizeLinear"):
        return quantizer_dtype(call)
    if op == "DynamicQuantizeLinear":
        return ir.DataType.FLOAT if index == 1 else ir.DataType.UINT8
    if op in ("MatMulInteger", "ConvInteger"):
        return ir.DataType.INT32
    return first


def quantizer_dtype(call: Call) -> ir.DataType | None:
    """ONNX: a QuantizeLinear takes its zero point's type, else ``output_dtype``, else uint8."""
    given = call.attr("output_dtype", 0)
    if call.node.op_type == "DequantizeLinear":
        return ir.DataType(given) if given else call.inputs[1].dtype
    zero = call.inputs[2].dtype if len(call.inputs) > 2 else None
    return zero or (ir.DataType(given) if given else ir.DataType.UINT8)
