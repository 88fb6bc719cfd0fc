"""Spell a traced encoder in the `ort` dialect, with the checkpoint's integers in place of the float weights."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
import onnx_ir.passes.common as passes

from planish.export.emit_linear import Table
from planish.export.lower_attention import lower_attention
from planish.export.lower_builder import CONTRIB, Builder
from planish.export.lower_embedding import lower_embedding, lower_tied_head, same_table
from planish.export.lower_linear import lower_linear
from planish.export.reader import CheckpointReader, QuantizedLinear
from planish.export.trace_ops import DOMAIN

__all__ = ["lower_to_ort"]


def lower_to_ort(model: ir.Model, reader: CheckpointReader, prefix: str) -> dict[str, str]:
    """Replace, in place, every marker node and every Gather of a quantized table; returns words for ``precision``.

    ``prefix`` is the base model's name in checkpoints of models with heads (``bert``). The integers of module ``m``
    become the initializer ``m.quantized.weight``.
    """
    lowering = _Lowering(model.graph, reader, prefix)
    lowering.run()
    model.opset_imports.pop(DOMAIN, None)
    model.opset_imports[CONTRIB] = 1
    for tidy in (passes.RemoveUnusedNodesPass(), passes.TopologicalSortPass(), passes.ClearMetadataAndDocStringPass()):
        tidy(model)
    return lowering.precision()


class _Lowering:
    """One walk over one graph."""

    def __init__(self, graph: ir.Graph, reader: CheckpointReader, prefix: str) -> None:
        self.graph = graph
        self.reader = reader
        self.prefix = f"{prefix}."
        self.build = Builder(graph)
        self.heads = self._weight_only_linears()
        self.tables: dict[str, Table] = {}
        self.kinds: dict[str, set[str]] = {"linear": set(), "embedding": set(), "activations": set()}

    def run(self) -> None:
        mask = next(value for value in self.graph.inputs if value.name == "attention_mask")
        for node in list(self.graph):
            self.build.at(node)
            if node.domain == DOMAIN and node.op_type == "Linear":
                self._linear(node)
            elif node.domain == DOMAIN:
                lower_attention(self.build, node, mask)
            elif node.op_type == "Gather":
                self._gather(node)

    def precision(self) -> dict[str, str]:
        """How what is quantized is stored; poolers and classifiers stay float and are not worth a word."""
        return {role: " + ".join(sorted(kinds)) or "fp32" for role, kinds in self.kinds.items()} | {"compute": "fp32"}

    def _linear(self, node: ir.Node) -> None:
        x, weight = node.inputs[:2]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        assert x is not None
        assert weight is not None
        module = _module(weight)
        layer = self.heads.get(module) or self._quantized_linear(module)
        if layer is None:
            output = _float_linear(self.build, x, weight, bias)
        else:
            # the traced bias, for checkpoints store a tied bias under one of its names only
            layer = replace(layer, bias=bias.const_value.numpy() if bias is not None and bias.const_value else None)
            output = self._integers(x, layer, module)
        self.build.replace(node.outputs[0], output)

    def _integers(self, x: ir.Value, layer: QuantizedLinear, module: str) -> ir.Value:
        name = f"{module}.quantized"
        self.kinds["linear"].add(f"int{layer.bits}")
        if layer.activations is not None:
            self.kinds["activations"].add(layer.input_words)
        if module in self.tables:
            return lower_tied_head(self.build, x, self.tables[module], layer, name)
        return lower_linear(self.build, x, layer, name)

    def _gather(self, node: ir.Node) -> None:
        table, ids = node.inputs
        if table is None or ids is None or not table.is_initializer():
            return
        module = _module(table)
        stored = self._stored(module)
        if stored is None:
            return
        layer = self.reader.embedding(stored)
        assert isinstance(layer, QuantizedLinear)
        self.kinds["embedding"].add(f"int{layer.bits}")
        tied = [head for head, candidate in self.heads.items() if same_table(layer, candidate)]
        rows, shared = lower_embedding(self.build, ids, layer, f"{module}.quantized", tied=bool(tied))
        if shared is not None:
            self.tables |= dict.fromkeys(tied, shared)
        self.build.replace(node.outputs[0], rows)

    def _weight_only_linears(self) -> dict[str, QuantizedLinear]:
        """Module -> layer of the linears that may turn out to be tied heads: those as tall as the vocabulary."""
        found = {}
        for node in self.graph:
            if node.domain == DOMAIN and node.op_type == "Linear":
                weight = node.inputs[1]
                assert weight is not None
                assert weight.shape is not None
                if weight.shape[0] == self.reader.config.get("vocab_size"):
                    layer = self._quantized_linear(_module(weight))
                    if layer is not None and layer.activations is None:
                        found[_module(weight)] = layer
        return found

    def _quantized_linear(self, module: str) -> QuantizedLinear | None:
        stored = self._stored(module)
        layer = self.reader.linear(stored) if stored is not None else None
        return layer if isinstance(layer, QuantizedLinear) else None

    def _stored(self, module: str) -> str | None:
        """The module's name in the checkpoint if it is stored as integers there."""
        for name in (module, self.prefix + module, module.removeprefix(self.prefix)):
            if self.reader.is_quantized(name):
                return name
        return None


def _float_linear(build: Builder, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
    """MatMul by the transposed weight; ONNX Runtime folds the Transpose, and a tied table is stored once."""
    product = build.op("MatMul", x, build.op("Transpose", weight, perm=[1, 0]))
    return product if bias is None else build.op("Add", product, bias)


def _module(weight: ir.Value) -> str:
    return str(weight.name).removesuffix(".weight")
