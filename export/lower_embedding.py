"""Quantized embedding tables in the `ort` dialect, and heads that are tied to them."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import onnx_ir as ir

from planish.export.emit_graph import EmitGraph
from planish.export.emit_linear import Table, emit_table, emit_tied_head
from planish.export.lower_builder import Builder
from planish.export.reader import QuantizedLinear

__all__ = ["lower_embedding", "lower_tied_head", "same_table"]


def same_table(table: QuantizedLinear, head: QuantizedLinear) -> bool:
    """Whether a head holds the integers and scales of an embedding table, and reads float inputs."""
    return (
        head.activations is None
        and np.array_equal(table.values, head.values)
        and np.array_equal(table.scale, head.scale)
    )


def lower_embedding(
    build: Builder, ids: ir.Value, table: QuantizedLinear, name: str, *, tied: bool
) -> tuple[ir.Value, Table | None]:
    """Rows ``ids`` of a table, float ``[batch, sequence, width]``, and the table in the graph if a head is ``tied``."""
    if not tied and table.scale.shape[1] == 1 and table.zero_point is None:
        rows = build.op("Gather", build.weight(f"{name}.weight", table.values), ids)
        scale = build.op("Gather", build.weight(f"{name}.scale", table.scale), ids)
        return build.op("Mul", build.op("Cast", rows, to=int(ir.DataType.FLOAT)), scale), None
    # the emitter asks no more of a graph than Builder gives
    return emit_table(cast(EmitGraph, build), ids, table, name)


def lower_tied_head(build: Builder, x: ir.Value, table: Table, head: QuantizedLinear, name: str) -> ir.Value:
    """Scores of ``x`` against every row of a table that is in the graph already, plus the head's own bias."""
    return emit_tied_head(cast(EmitGraph, build), x, replace(table, layer=head), name, accuracy_level=4)
