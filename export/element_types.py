"""The element type of every value in a graph of standard operators."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["fill_types"]

_TESTS = ("And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "Xor")
_SHAPES = ("ArgMax", "NonZero", "Shape", "Size")


def fill_types(graph: ir.Graph) -> None:
    """Give every value a type that has none; nodes have to be in order.

    Most operators return what they read first; the others are listed. (ONNX's own shape inference also compares the
    shapes a tracer left behind, and stops where those are loose.)
    """
    for node in graph:
        for value in node.outputs:
            if value.dtype is None:
                value.type = ir.TensorType(_type_of(node))


def _type_of(node: ir.Node) -> ir.DataType:
    kinds = [value.dtype if value is not None else None for value in node.inputs]
    attributes = node.attributes
    if node.op_type == "Cast":
        return ir.DataType(attributes["to"].as_int())
    if node.op_type in _TESTS:
        return ir.DataType.BOOL
    if node.op_type in _SHAPES:
        return ir.DataType.INT64
    if node.op_type in ("Constant", "ConstantOfShape"):
        return _constant(node)
    if node.op_type == "QuantizeLinear":
        return kinds[2] if len(kinds) > 2 and kinds[2] is not None else ir.DataType(attributes["output_dtype"].as_int())
    if node.op_type in ("DequantizeLinear", "Where"):
        return _known(kinds[1], node)
    return _known(kinds[0], node)


def _known(kind: ir.DataType | None, node: ir.Node) -> ir.DataType:
    if kind is None:
        raise TypeError(f"no type reaches {node.op_type} {node.name}")
    return kind


def _constant(node: ir.Node) -> ir.DataType:
    if "value" in node.attributes:
        return node.attributes["value"].as_tensor().dtype
    floats = node.op_type == "ConstantOfShape" or any(name.startswith("value_float") for name in node.attributes)
    return ir.DataType.FLOAT if floats else ir.DataType.INT64
