"""The walk over a traced encoder that every dialect shares: which node is which layer of the checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import onnx_ir as ir
import onnx_ir.passes.common as passes

from planish.export.lower_builder import Builder
from planish.export.lower_embedding import same_table
from planish.export.reader import CheckpointReader, QuantizedLinear
from planish.export.trace_ops import DOMAIN
from planish.runtime.dot_products import NARROW

__all__ = ["Lowering"]


class Lowering(ABC):
    """One walk over one graph, in place. A dialect says how each kind of layer is spelled.

    ``prefix`` is the base model's name in checkpoints of models with heads (``bert``). The integers of module ``m``
    become the initializer ``m.quantized.weight``.
    """

    def __init__(self, model: ir.Model, reader: CheckpointReader, prefix: str) -> None:
        self.model = model
        self.graph = model.graph
        self.reader = reader
        self.prefix = f"{prefix}."
        self.build = Builder(self.graph)
        self.heads = self._weight_only_linears()
        self.kinds: dict[str, set[str]] = {"linear": set(), "embedding": set(), "activations": set()}
        self.narrow: set[bool] = set()

    @abstractmethod
    def float_linear(self, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
        """``x @ weight.T + bias``; ``weight`` float ``[out, in]``."""

    @abstractmethod
    def integers(self, x: ir.Value, layer: QuantizedLinear, module: str) -> ir.Value:
        """The same for a layer stored as integers."""

    @abstractmethod
    def rows(self, ids: ir.Value, table: QuantizedLinear, module: str, tied: list[str]) -> ir.Value:
        """Rows ``ids`` of an integer table, which is also the weight of the ``tied`` heads."""

    @abstractmethod
    def attention(self, node: ir.Node) -> None:
        """Replace a ``planish::Attention`` node."""

    def run(self) -> None:
        """Replace every marker node and every Gather of a quantized table."""
        for node in list(self.graph):
            self.build.at(node)
            if node.domain == DOMAIN and node.op_type == "Linear":
                self._linear(node)
            elif node.domain == DOMAIN:
                self.attention(node)
            elif node.op_type == "Gather":
                self._gather(node)
        self.model.opset_imports.pop(DOMAIN, None)
        self.tidy()

    def tidy(self) -> None:
        """Take out what nothing reads, and order the nodes."""
        for step in (
            passes.RemoveUnusedNodesPass(),
            passes.TopologicalSortPass(),
            passes.ClearMetadataAndDocStringPass(),
        ):
            step(self.model)

    def precision(self) -> dict[str, str]:
        """How what is quantized is stored; poolers and classifiers stay float and are not worth a word.

        Where all linears with 8-bit inputs hold integers whose products in pairs fit 16 bits, it says that, too.
        """
        words = {role: " + ".join(sorted(kinds)) or "fp32" for role, kinds in self.kinds.items()} | {"compute": "fp32"}
        return words | (dict([NARROW]) if self.narrow == {True} else {})

    def _linear(self, node: ir.Node) -> None:
        x, weight = node.inputs[:2]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        assert x is not None
        assert weight is not None
        module = _module(weight)
        layer = self.heads.get(module) or self._quantized_linear(module)
        if layer is None:
            output = self.float_linear(x, weight, bias)
        else:
            # the traced bias, for checkpoints store a tied bias under one of its names only
            layer = replace(layer, bias=bias.const_value.numpy() if bias is not None and bias.const_value else None)
            self.kinds["linear"].add(layer.words)
            if layer.activations is not None:
                self.kinds["activations"].add(layer.input_words)
                self.narrow.add(layer.is_narrow)
            output = self.integers(x, layer, module)
        self.build.replace(node.outputs[0], output)

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
        self.build.replace(node.outputs[0], self.rows(ids, layer, module, tied))

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


def _module(weight: ir.Value) -> str:
    return str(weight.name).removesuffix(".weight")
