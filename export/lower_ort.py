"""Spell a traced encoder in the `ort` dialect, with the checkpoint's integers in place of the float weights."""

from __future__ import annotations

import onnx_ir as ir

from planish.export.emit_linear import Table
from planish.export.lower_attention import lower_attention
from planish.export.lower_builder import CONTRIB
from planish.export.lower_embedding import lower_embedding, lower_tied_head
from planish.export.lower_linear import lower_linear
from planish.export.lower_walk import Lowering
from planish.export.reader import CheckpointReader, QuantizedLinear

__all__ = ["lower_to_ort"]


def lower_to_ort(model: ir.Model, reader: CheckpointReader, prefix: str) -> dict[str, str]:
    """Replace, in place, every marker node and every Gather of a quantized table; returns words for ``precision``."""
    lowering = _ToOrt(model, reader, prefix)
    lowering.run()
    model.opset_imports[CONTRIB] = 1
    return lowering.precision()


class _ToOrt(Lowering):
    def __init__(self, model: ir.Model, reader: CheckpointReader, prefix: str) -> None:
        super().__init__(model, reader, prefix)
        self.mask = next(value for value in self.graph.inputs if value.name == "attention_mask")
        self.tables: dict[str, Table] = {}

    def float_linear(self, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
        """MatMul by the transposed weight; ONNX Runtime folds the Transpose, and a tied table is stored once."""
        product = self.build.op("MatMul", x, self.build.op("Transpose", weight, perm=[1, 0]))
        return product if bias is None else self.build.op("Add", product, bias)

    def integers(self, x: ir.Value, layer: QuantizedLinear, module: str) -> ir.Value:
        name = f"{module}.quantized"
        if module in self.tables:
            return lower_tied_head(self.build, x, self.tables[module], layer, name)
        return lower_linear(self.build, x, layer, name)

    def rows(self, ids: ir.Value, table: QuantizedLinear, module: str, tied: list[str]) -> ir.Value:
        found, shared = lower_embedding(self.build, ids, table, f"{module}.quantized", tied=bool(tied))
        if shared is not None:
            self.tables |= dict.fromkeys(tied, shared)
        return found

    def attention(self, node: ir.Node) -> None:
        lower_attention(self.build, node, self.mask)
