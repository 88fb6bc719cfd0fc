"""How linear layers, embeddings and heads of decoders are spelled in the `qdq` dialect.

A weight is the checkpoint's integers with a DequantizeLinear behind them; the product is a plain MatMul, into which
TensorRT fuses the dequantization. Linears lie as ``[in, out]``, which every TensorRT since 10.0 reads without a
Transpose; a table lies as ``[rows, width]``, so that a tied head is the same initializer. Measured with TensorRT-RTX
1.7.1: INT8 with one scale a channel and INT4 in groups are dequantized inside the product and inside the Gather, INT8
in groups by a kernel of its own, which reads and writes the whole weight each time. A quantized constant may feed
nothing but a DequantizeLinear there, so a Gather of integers does not build.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from planish.errors import CheckpointError
from planish.export.emit_linear import Layer, Table
from planish.export.emit_qdq_floats import Floats
from planish.export.reader import FloatLinear, QuantizedLinear

__all__ = ["emit_parts", "emit_product", "emit_table", "emit_tied_head"]

Array = NDArray[Any]

_ADVICE = {4: "int4-symmetric", 8: "int8-weight-only"}
"""Bits -> the shipped recipe whose weights every engine can read."""


def emit_product(floats: Floats, x: ir.Value, layer: Layer, name: str) -> ir.Value:
    """``x @ weight.T + bias`` for ``x`` ``[..., in]``; returns ``[..., out]``."""
    product = _product(floats, x, layer, name)
    return product if layer.bias is None else _biased(floats, product, layer.bias, name)


def emit_parts(floats: Floats, x: ir.Value, layer: Layer, name: str, parts: Mapping[str, int]) -> list[ir.Value]:
    """One product whose columns are several results, of the widths in ``parts``.

    The bias comes after the Split: with it in between, TensorRT-RTX 1.7.1 dequantizes the weight in a separate kernel.
    """
    product = _product(floats, x, layer, name)
    sizes = list(parts.values())
    found = floats.graph.ops("Split", len(sizes), product, floats.graph.constant(sizes), axis=-1)
    values = [floats.like(value, product) for value in found]
    if layer.bias is None:
        return values
    biases = np.split(layer.bias, np.cumsum(sizes)[:-1])
    return [
        _biased(floats, value, bias, f"{name}.{part}") for part, value, bias in zip(parts, values, biases, strict=True)
    ]


def _product(floats: Floats, x: ir.Value, layer: Layer, name: str) -> ir.Value:
    weight = _matrix(floats, layer, name)
    return floats.product(lambda half: floats.graph.op("MatMul", half, weight), name, x)


def _biased(floats: Floats, product: ir.Value, bias: Array, name: str) -> ir.Value:
    def add(value: ir.Value) -> ir.Value:
        return floats.graph.op("Add", value, floats.weight(f"{name}.bias", bias, beside=value))

    return floats.elementwise(add, f"{name} + bias", product)


def emit_table(floats: Floats, ids: ir.Value, layer: Layer, name: str) -> tuple[ir.Value, Table]:
    """Rows ``ids`` of an embedding table ``[..., width]``, and the table for a tied head."""
    if isinstance(layer, QuantizedLinear) and layer.bits != 8:
        raise CheckpointError(
            f"embedding {name} in symmetric 8 bits", f"{layer.bits} bits", "use the pass int8-embedding in the recipe"
        )
    if isinstance(layer, FloatLinear):
        data = floats.weight(f"{name}.weight", layer.weight)
    else:
        data = _dequantized(floats, layer, name, transposed=False)
    rows = floats.note(floats.graph.op("Gather", data, ids), name)
    return rows, Table(layer, data, None, 0)


def emit_tied_head(floats: Floats, x: ir.Value, table: Table, name: str) -> ir.Value:
    """Scores ``[batch, positions, rows]`` of ``x`` against every row of a table that is in the graph already."""
    weight = floats.graph.op("Transpose", table.data, perm=[1, 0])
    return floats.product(lambda half: floats.graph.op("MatMul", half, weight), name, x)


def _matrix(floats: Floats, layer: Layer, name: str) -> ir.Value:
    """The weight as a float value ``[in, out]``."""
    if isinstance(layer, FloatLinear):
        return floats.weight(f"{name}.weight", layer.weight.T)
    return _dequantized(floats, layer, name, transposed=True)


def _dequantized(floats: Floats, layer: QuantizedLinear, name: str, *, transposed: bool) -> ir.Value:
    """The integers of ``layer``, ``[out, in]`` or transposed, and the DequantizeLinear behind them."""
    _check(layer, name)
    values, scale = (layer.values.T, layer.scale.T) if transposed else (layer.values, layer.scale)
    graph = floats.graph
    data = graph.integers(f"{name}.weight", np.ascontiguousarray(values), layer.bits)
    inputs_axis = 0 if transposed else 1
    if layer.group_size is None:
        flat = floats.weight(f"{name}.scale", scale.reshape(-1))
        return graph.op("DequantizeLinear", data, flat, axis=1 - inputs_axis)
    scales = floats.weight(f"{name}.scale", scale)
    return graph.op("DequantizeLinear", data, scales, axis=inputs_axis, block_size=layer.group_size)


def _check(layer: QuantizedLinear, name: str) -> None:
    if layer.bits not in _ADVICE:
        raise CheckpointError(f"{name} in 4 or 8 bits", f"{layer.bits} bits", "choose another `bits` in the recipe")
    recipe = _ADVICE[layer.bits]
    if layer.zero_point is not None:
        raise CheckpointError(
            f"{name} without zero points, for TensorRT", "an asymmetric grid", f"compress with the recipe {recipe}"
        )
    if layer.activations is not None:
        raise CheckpointError(
            f"{name} with float inputs", f"{layer.input_words} inputs", f"for a decoder take {recipe}"
        )
    if layer.bits == 4 and layer.group_size is None:
        raise CheckpointError(f"{name} in groups", "4 bits with one scale a row", f"compress with the recipe {recipe}")
