"""How linear layers, embeddings and heads are spelled in the `ort` dialect.

Weight-only integers become com.microsoft MatMulNBits, 8-bit tables GatherBlockQuantized; the integers are those of the
checkpoint, offset to unsigned. Layers whose activations are quantized too are not for decoders: one flipped rounding
there changes every token that follows. Operator contracts: ONNX Runtime's ContribOperators.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from planish.errors import CheckpointError
from planish.export.emit_graph import CONTRIB, EmitGraph
from planish.export.reader import FloatLinear, QuantizedLinear

__all__ = ["Layer", "Table", "emit_linear", "emit_table", "emit_tied_head", "stack", "take_rows"]

Array = NDArray[Any]
Layer = FloatLinear | QuantizedLinear

_LARGEST_BLOCK = 128


@dataclass(frozen=True)
class Table:
    """An embedding table in the graph, for a tied head to use again."""

    layer: Layer
    data: ir.Value
    scale: ir.Value | None
    block: int


def take_rows(layer: Layer, rows: Array) -> Layer:
    """The same layer with its output rows in another order."""
    bias = None if layer.bias is None else layer.bias[rows]
    if isinstance(layer, FloatLinear):
        return FloatLinear(layer.weight[rows], bias)
    zero_point = None if layer.zero_point is None else layer.zero_point[rows]
    return replace(layer, values=layer.values[rows], scale=layer.scale[rows], zero_point=zero_point, bias=bias)


def stack(layers: list[Layer]) -> Layer | None:
    """One layer computing several of the same input, rows in order; None if they are stored in different ways."""
    if len(layers) == 1:
        return layers[0]
    bias = None
    if any(layer.bias is not None for layer in layers):
        zeros = [np.zeros(layer.shape[0], np.float32) for layer in layers]
        bias = np.concatenate([z if x.bias is None else x.bias for x, z in zip(layers, zeros, strict=True)])
    floats = [layer for layer in layers if isinstance(layer, FloatLinear)]
    quantized = [layer for layer in layers if isinstance(layer, QuantizedLinear)]
    if len(floats) == len(layers):
        return FloatLinear(np.concatenate([layer.weight for layer in floats]), bias)
    kinds = {(q.bits, q.group_size, q.activations, q.zero_point is None) for q in quantized}
    if floats or len(kinds) > 1:
        return None
    first = quantized[0]
    zero_points = [q.zero_point for q in quantized if q.zero_point is not None]
    return replace(
        first,
        values=np.concatenate([q.values for q in quantized]),
        scale=np.concatenate([q.scale for q in quantized]),
        zero_point=np.concatenate(zero_points) if zero_points else None,
        bias=bias,
    )


def emit_linear(graph: EmitGraph, x: ir.Value, layer: Layer, name: str, *, accuracy_level: int) -> ir.Value:
    """``x @ weight.T + bias`` for ``x`` float ``[..., in]``; returns ``[..., out]``."""
    if isinstance(layer, FloatLinear):
        product = graph.op("MatMul", x, graph.weight(f"{name}.weight", layer.weight.T))
        return product if layer.bias is None else graph.op("Add", product, graph.weight(f"{name}.bias", layer.bias))
    if layer.activations is not None:
        raise CheckpointError(
            f"{name} with float inputs", f"{layer.input_words} inputs", "for a decoder take int4 or int8-weight-only"
        )
    if layer.bits not in (4, 8):
        raise CheckpointError(f"{name} in 4 or 8 bits", f"{layer.bits} bits", "choose another `bits` in the recipe")
    rows, width = layer.shape
    block = _block(layer, name)
    data = _pack(layer).reshape(rows, width // block, block * layer.bits // 8)
    zero_point = None
    if layer.zero_point is not None:
        zero_point = graph.weight(f"{name}.zero_point", _pack_zero_point(layer, block))
    return _nbits(
        graph,
        x,
        layer,
        graph.weight(f"{name}.weight", data),
        _scale(graph, layer, block, name),
        zero_point,
        block,
        name,
        accuracy_level,
    )


def emit_table(graph: EmitGraph, ids: ir.Value, layer: Layer, name: str) -> tuple[ir.Value, Table]:
    """Rows ``ids`` of an embedding table as float32 ``[..., width]``, and the table for a tied head."""
    if isinstance(layer, FloatLinear):
        data = graph.weight(f"{name}.weight", layer.weight)
        return graph.op("Gather", data, ids), Table(layer, data, None, 0)
    if layer.bits != 8 or layer.zero_point is not None:
        raise CheckpointError(
            f"embedding {name} in symmetric 8 bits", f"{layer.bits} bits", "use the pass int8-embedding in the recipe"
        )
    block = _block(layer, name)
    data = graph.weight(f"{name}.weight", _pack(layer))
    scale = _scale(graph, layer, block, name)
    attributes = {"bits": 8, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    gathered = graph.op("GatherBlockQuantized", data, ids, scale, domain=CONTRIB, **attributes)
    return gathered, Table(layer, data, scale, block)


def emit_tied_head(graph: EmitGraph, x: ir.Value, table: Table, name: str, *, accuracy_level: int) -> ir.Value:
    """Scores ``[batch, positions, rows]`` of ``x`` against every row of a table that is in the graph already."""
    rows, width = table.layer.shape
    if isinstance(table.layer, FloatLinear):
        flat = graph.op("Reshape", x, graph.constant([-1, width]))
        scores = graph.op("Gemm", flat, table.data, transB=1)
        shape = graph.op("Concat", graph.op("Shape", x, end=2), graph.constant([rows]), axis=0)
        return graph.op("Reshape", scores, shape)
    data = graph.again(f"{name}.weight", table.data, (rows, width // table.block, table.block))
    return _nbits(graph, x, table.layer, data, table.scale, None, table.block, name, accuracy_level)


def _nbits(
    graph: EmitGraph,
    x: ir.Value,
    layer: QuantizedLinear,
    data: ir.Value,
    scale: ir.Value | None,
    zero_point: ir.Value | None,
    block: int,
    name: str,
    accuracy_level: int,
) -> ir.Value:
    rows, width = layer.shape
    inputs = [x, data, scale, zero_point]
    if layer.bias is not None:
        inputs += [None, graph.weight(f"{name}.bias", layer.bias)]
    while inputs[-1] is None:
        inputs.pop()
    attributes = {"K": width, "N": rows, "bits": layer.bits, "block_size": block, "accuracy_level": accuracy_level}
    return graph.op("MatMulNBits", *inputs, domain=CONTRIB, **attributes)


def _block(layer: QuantizedLinear, name: str) -> int:
    """MatMulNBits takes blocks of a power of two from 16 up; a scale that spans more is repeated."""
    span = layer.group_size or layer.shape[1]
    block = span & -span
    if block < 16:
        raise CheckpointError(
            f"{name} with groups divisible by 16", f"groups of {span}", "choose a `group_size` of 16, 32, 64 or 128"
        )
    return block if layer.group_size == block else min(block, _LARGEST_BLOCK)


def _scale(graph: EmitGraph, layer: QuantizedLinear, block: int, name: str) -> ir.Value:
    """Scales float32 ``[rows, blocks]``; stored once a group, repeated by the graph when a session loads."""
    rows, width = layer.shape
    blocks, groups = width // block, layer.scale.shape[1]
    scale = graph.half(f"{name}.scale", layer.scale)
    if blocks == groups:
        return scale
    if groups == 1:
        return graph.op("Expand", scale, graph.constant([rows, blocks]))
    spread = graph.op(
        "Expand", graph.op("Unsqueeze", scale, graph.constant([2])), graph.constant([1, 1, blocks // groups])
    )
    return graph.op("Reshape", spread, graph.constant([rows, blocks]))


def _pack(layer: QuantizedLinear) -> Array:
    return _nibbles(layer.values, layer.bits)


def _pack_zero_point(layer: QuantizedLinear, block: int) -> Array:
    assert layer.zero_point is not None
    repeats = layer.shape[1] // block // layer.zero_point.shape[1]
    return _nibbles(np.repeat(layer.zero_point, repeats, axis=1), layer.bits)


def _nibbles(values: Array, bits: int) -> Array:
    """Signed integers, offset to unsigned and packed along the last axis, the first in the low bits."""
    octets = values.view(np.uint8) + np.uint8(1 << (bits - 1))
    if bits == 8:
        return np.asarray(octets)
    if octets.shape[1] % 2:
        octets = np.pad(octets, ((0, 0), (0, 1)))
    packed: Array = octets[:, 0::2] | (octets[:, 1::2] << 4)
    return packed
