"""Causal attention with a KV cache, in operators of the standard.

The order of operations is what TensorRT fuses into one kernel: queries scaled before the product, MatMul, Add of a
bias, Softmax, MatMul. Measured with TensorRT-RTX 1.7.1: ``_gemm_mha_v2`` for prompts, ``_gemv_mha_v1`` for steps.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from planish.export.emit_blocks import Dimensions, Rotary
from planish.export.emit_qdq_floats import Floats

__all__ = ["MASKED", "attend", "causal_bias", "rotary_rows", "rotate"]

MASKED = -32768.0
"""Added to scores nobody may see: half of float16's range, so that the sum with any score that float16 holds with room
to spare stays finite, and a row in which nothing may be seen has no NaN."""

_BOOL = int(ir.DataType.BOOL)


def causal_bias(floats: Floats, attention_mask: ir.Value, input_ids: ir.Value) -> ir.Value:
    """0 where a new position may look, ``MASKED`` where not, ``[batch, 1, sequence, total]``.

    New positions are the last columns of the mask; each sees the real tokens in columns up to its own.
    """
    op, constant = floats.graph.op, floats.graph.constant
    total = op("Gather", op("Shape", attention_mask), constant(1))
    past = op("Sub", total, op("Gather", op("Shape", input_ids), constant(1)))
    columns = op("Range", constant(0), total, constant(1))
    own = op("Unsqueeze", op("Range", past, total, constant(1)), constant([1]))
    real = op("Unsqueeze", op("Cast", attention_mask, to=_BOOL), constant([1, 2]))
    seen = op("And", real, op("LessOrEqual", columns, own))
    return op("Where", seen, floats.constant(0.0), floats.constant(MASKED))


def rotary_rows(floats: Floats, inverse_frequency: NDArray[np.floating], length: int, position_ids: ir.Value) -> Rotary:
    """cos and sin of the new positions, ``[batch, 1, sequence, rotary_dim / 2]``.

    The tables are computed here in float64, since a float16 angle means nothing after a few positions, and kept in
    float32: only what was gathered is rounded.
    """
    angles = np.arange(length)[:, None] * inverse_frequency.astype(np.float64)[None]
    cos, sin = (
        _rows_at(floats, f"rotary.{name}", function(angles), position_ids)
        for name, function in (("cos", np.cos), ("sin", np.sin))
    )
    return cos, sin


def _rows_at(floats: Floats, name: str, table: NDArray[np.floating], position_ids: ir.Value) -> ir.Value:
    op = floats.graph.op
    rows = op("Gather", floats.graph.weight(name, table.astype(np.float32)), position_ids)
    return op("Unsqueeze", floats.narrow(rows), floats.graph.constant([1]))


def rotate(floats: Floats, x: ir.Value, rotary: Rotary, half: int, head_dim: int) -> ir.Value:
    """Turn dimension ``i`` of each head with ``i + half``, for ``x`` ``[batch, heads, sequence, head_dim]``."""
    op, (cos, sin) = floats.graph.op, rotary
    sizes = [half, half, *([head_dim - 2 * half] if head_dim > 2 * half else [])]
    first, second, *still = floats.graph.ops("Split", len(sizes), x, floats.graph.constant(sizes), axis=-1)
    turned = [
        op("Sub", op("Mul", first, cos), op("Mul", second, sin)),
        op("Add", op("Mul", second, cos), op("Mul", first, sin)),
    ]
    return op("Concat", *turned, *still, axis=-1)


def attend(
    floats: Floats,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    bias: ir.Value,
    d: Dimensions,
    *,
    scale: float,
    name: str,
) -> ir.Value:
    """Mixed values ``[batch, sequence, heads * head_dim]``; query ``[batch, heads, sequence, head_dim]``, key and value
    ``[batch, kv_heads, total, head_dim]``."""
    op = floats.graph.op
    keys = op("Transpose", _repeated(floats, key, d), perm=[0, 1, 3, 2])
    scaled = _scaled(floats, query, scale)
    if floats.fits(name):
        scores = floats.note(op("MatMul", scaled, keys), name)
        shares = op("Softmax", op("Add", scores, bias), axis=-1)
    else:
        scores = floats.note(op("MatMul", floats.single(scaled), floats.single(keys)), name, wide=True)
        shares = floats.narrow(op("Softmax", op("Add", scores, floats.single(bias)), axis=-1))
    mixed = op("Transpose", op("MatMul", shares, _repeated(floats, value, d)), perm=[0, 2, 1, 3])
    return op("Reshape", mixed, floats.graph.constant([0, 0, d.heads * d.head_dim]))


def _scaled(floats: Floats, query: ir.Value, scale: float) -> ir.Value:
    """Powers of two are exact in float16; another scale is applied in float32 and rounded with the result."""
    op, constant = floats.graph.op, floats.graph.constant
    if math.frexp(scale)[0] == 0.5:
        return op("Mul", query, floats.constant(scale))
    return floats.narrow(op("Mul", floats.single(query), constant(scale, "float32")))


def _repeated(floats: Floats, x: ir.Value, d: Dimensions) -> ir.Value:
    """Each key or value head as often as queries share it."""
    times = d.heads // d.kv_heads
    if times == 1:
        return x
    op, constant = floats.graph.op, floats.graph.constant
    spread = op("Expand", op("Unsqueeze", x, constant([2])), constant([1, 1, times, 1, 1]))
    return op("Reshape", spread, constant([0, d.heads, -1, d.head_dim]))
