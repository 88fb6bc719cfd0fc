"""Attention in the `ort` dialect: com.microsoft MultiHeadAttention, which reads the linears' outputs as they lie."""

from __future__ import annotations

import onnx_ir as ir

from planish.export.lower_builder import CONTRIB, Builder

__all__ = ["lower_attention"]

_SPLIT_HEADS = [0, 2, 1, 3]


def lower_attention(build: Builder, node: ir.Node, mask: ir.Value) -> None:
    """Replace a ``planish::Attention`` node; ``mask`` is the graph's ``attention_mask`` int64 ``[batch, sequence]``.

    Where query, key and value are not plain reshapes of ``[batch, sequence, hidden]``, MatMul and Softmax are written.
    """
    query, key, value, bias = node.inputs
    assert query is not None
    assert key is not None
    assert value is not None
    assert bias is not None
    scale = node.attributes["scale"].as_float()
    flat = [_before_split(part) for part in (query, key, value)]
    heads, width = _static(query, 1), _static(query, 3)
    if heads is None or width is None or None in flat:
        build.replace(node.outputs[0], _plain(build, query, key, value, bias, scale))
        return
    integer_mask = build.once("mask", lambda: build.op("Cast", mask, to=int(ir.DataType.INT32)))
    joined = build.op("MultiHeadAttention", *flat, None, integer_mask, domain=CONTRIB, num_heads=heads, scale=scale)
    followers = node.outputs[0].consumers()
    if len(followers) == 1 and followers[0].op_type == "Reshape":
        build.replace(followers[0].outputs[0], joined)
    else:
        split = build.op("Reshape", joined, build.constant([0, 0, heads, width]))
        build.replace(node.outputs[0], split)


def _plain(build: Builder, query: ir.Value, key: ir.Value, value: ir.Value, bias: ir.Value, scale: float) -> ir.Value:
    scaled = build.op("Mul", query, build.constant(scale, "float32"))
    scores = build.op("Add", build.op("MatMul", scaled, build.op("Transpose", key, perm=[0, 1, 3, 2])), bias)
    mixed = build.op("MatMul", build.op("Softmax", scores, axis=-1), value)
    return build.op("Transpose", mixed, perm=_SPLIT_HEADS)


def _before_split(value: ir.Value) -> ir.Value | None:
    """``x`` ``[batch, sequence, hidden]`` if ``value`` is ``Transpose(Reshape(x))`` into heads."""
    transpose = value.producer()
    if transpose is None or transpose.op_type != "Transpose":
        return None
    if list(transpose.attributes["perm"].as_ints()) != _SPLIT_HEADS or transpose.inputs[0] is None:
        return None
    reshape = transpose.inputs[0].producer()
    return reshape.inputs[0] if reshape is not None and reshape.op_type == "Reshape" else None


def _static(value: ir.Value, axis: int) -> int | None:
    size = value.shape[axis] if value.shape is not None else None
    return size if isinstance(size, int) else None
