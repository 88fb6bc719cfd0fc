"""Quantized embedding tables in the `ort` dialect."""

from __future__ import annotations

from typing import cast

import onnx_ir as ir

from planish.export.emit_graph import EmitGraph
from planish.export.emit_linear import emit_table
from planish.export.lower_builder import Builder
from planish.export.reader import QuantizedLinear

__all__ = ["lower_embedding"]


def lower_embedding(build: Builder, ids: ir.Value, table: QuantizedLinear, name: str) -> ir.Value:
    """Rows ``ids`` of a table, float ``[batch, sequence, width]``."""
    if table.scale.shape[1] == 1 and table.zero_point is None:
        rows = build.op("Gather", build.weight(f"{name}.weight", table.values), ids)
        scale = build.op("Gather", build.weight(f"{name}.scale", table.scale), ids)
        return build.op("Mul", build.op("Cast", rows, to=int(ir.DataType.FLOAT)), scale)
    gathered, _ = emit_table(cast(EmitGraph, build), ids, table, name)
    return gathered
