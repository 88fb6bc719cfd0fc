"""Spell a traced encoder in the `ort` dialect, with the checkpoint's integers in place of the float weights."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as passes

from planish.errors import CheckpointError
from planish.export.lower_attention import lower_attention
from planish.export.lower_builder import CONTRIB, Builder
from planish.export.lower_embedding import lower_embedding
from planish.export.lower_linear import lower_linear
from planish.export.reader import CheckpointReader, FloatLinear, QuantizedLinear
from planish.export.trace_ops import DOMAIN

__all__ = ["lower_to_ort"]


def lower_to_ort(model: ir.Model, reader: CheckpointReader, prefix: str) -> None:
    """Replace, in place, every marker node and every Gather of a quantized table.

    ``prefix`` is the base model's name in checkpoints of models with heads (``bert``).
    """
    graph = model.graph
    build = Builder(graph)
    names = _Names(reader, prefix)
    mask = next(value for value in graph.inputs if value.name == "attention_mask")
    for node in list(graph):
        build.at(node)
        if node.domain == DOMAIN and node.op_type == "Linear":
            _replace_linear(build, node, names)
        elif node.domain == DOMAIN:
            lower_attention(build, node, mask)
        elif node.op_type == "Gather":
            _replace_gather(build, node, names)
    model.opset_imports.pop(DOMAIN, None)
    model.opset_imports[CONTRIB] = 1
    for tidy in (passes.RemoveUnusedNodesPass(), passes.TopologicalSortPass(), passes.ClearMetadataAndDocStringPass()):
        tidy(model)


class _Names:
    """Where a module of the traced model lies in the checkpoint."""

    def __init__(self, reader: CheckpointReader, prefix: str) -> None:
        self.reader = reader
        self.prefix = f"{prefix}."

    def quantized(self, module: str) -> str | None:
        """The module's name in the checkpoint if it is stored as integers there."""
        for name in (module, self.prefix + module, module.removeprefix(self.prefix)):
            if self.reader.is_quantized(name):
                return name
        return None


def _replace_linear(build: Builder, node: ir.Node, names: _Names) -> None:
    x, weight = node.inputs[0], node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    assert x is not None
    assert weight is not None
    assert weight.name is not None
    module = weight.name.removesuffix(".weight")
    stored = names.quantized(module)
    if stored is None:
        output = _float_linear(build, x, weight, bias)
    else:
        output = lower_linear(build, x, names.reader.linear(stored), f"{module}.quantized")
    node.outputs[0].replace_all_uses_with(output)


def _float_linear(build: Builder, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
    """MatMul by the transposed weight; ONNX Runtime folds the Transpose, and a tied table is stored once."""
    product = build.op("MatMul", x, build.op("Transpose", weight, perm=[1, 0]))
    return product if bias is None else build.op("Add", product, bias)


def _replace_gather(build: Builder, node: ir.Node, names: _Names) -> None:
    table, ids = node.inputs
    if table is None or ids is None or not table.is_initializer() or not (table.name or "").endswith(".weight"):
        return
    module = str(table.name).removesuffix(".weight")
    stored = names.quantized(module)
    if stored is None:
        return
    layer = names.reader.embedding(stored)
    if isinstance(layer, FloatLinear):
        raise CheckpointError(f"{stored} as integers", "a float table", "compress the model again")
    assert isinstance(layer, QuantizedLinear)
    node.outputs[0].replace_all_uses_with(lower_embedding(build, ids, layer, f"{module}.quantized"))
