"""Building blocks every decoder family is emitted from.

The contract of inputs and outputs is docs/formats.md, section 5. Attention is com.microsoft GroupQueryAttention, which
rotates, masks, and writes keys and values into one buffer shared by past and present.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from planish.errors import CheckpointError
from planish.export.emit_graph import CONTRIB, EmitGraph
from planish.export.emit_linear import Layer, Table, emit_linear, emit_table, emit_tied_head, stack
from planish.export.reader import CheckpointReader, QuantizedLinear

__all__ = ["Blocks", "Dimensions", "same_layer"]

Array = NDArray[Any]
_INT32 = int(ir.DataType.INT32)
_TANH = {"approximate": "tanh"}
_ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}),
    "gelu": ("Gelu", {}),
    "gelu_new": ("Gelu", _TANH),
    "gelu_fast": ("Gelu", _TANH),
    "gelu_pytorch_tanh": ("Gelu", _TANH),
    "silu": ("QuickGelu", {"alpha": 1.0}),
    "quick_gelu": ("QuickGelu", {"alpha": 1.702}),
}


@dataclass(frozen=True)
class Dimensions:
    """What the graph's shapes are made of. ``max_length`` counts positions."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    max_length: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> Dimensions:
        """By the keys most families use; raises ``KeyError`` for one that is missing."""
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        return cls(
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            hidden=hidden,
            vocab=int(config["vocab_size"]),
            max_length=int(config["max_position_embeddings"]),
        )


class Blocks:
    """One decoder being emitted: its inputs, the values every layer needs, and the checkpoint it reads."""

    def __init__(
        self,
        graph: EmitGraph,
        reader: CheckpointReader,
        dimensions: Dimensions,
        *,
        accuracy_level: int,
        progress: Callable[[int], None],
    ) -> None:
        self.graph = graph
        self.reader = reader
        self.dimensions = dimensions
        self.accuracy_level = accuracy_level
        self.progress = progress
        self.tables: dict[str, Table] = {}
        self.presents: list[tuple[ir.Value, ir.Value]] = []
        self.stored: dict[str, set[str]] = {"linear": set(), "embedding": set(), "head": set()}
        self._declare_inputs()
        self._derive()

    def _declare_inputs(self) -> None:
        d, declare = self.dimensions, self.graph.input
        self.input_ids = declare("input_ids", "int64", ("batch", "sequence"))
        self.attention_mask = declare("attention_mask", "int64", ("batch", "total"))
        shape = ("batch", d.kv_heads, "past", d.head_dim)
        self.past = [
            (
                declare(f"past_key_values.{i}.key", "float32", shape),
                declare(f"past_key_values.{i}.value", "float32", shape),
            )
            for i in range(d.layers)
        ]
        self.logits_to_keep = self.graph.overridable("logits_to_keep", np.array(1, np.int64))

    def _derive(self) -> None:
        """Lengths: real tokens of each row so far, new tokens, columns of the mask."""
        op, constant = self.graph.op, self.graph.constant
        self.row_length = op("ReduceSum", self.attention_mask, constant([1]), keepdims=1)  # [batch, 1]
        self.total = op("Gather", op("Shape", self.attention_mask), constant(1))
        self.sequence = op("Gather", op("Shape", self.input_ids), constant(1))
        last = op("Sub", op("Squeeze", self.row_length, constant([1])), constant(1))
        self.seqlens_k = op("Cast", last, to=_INT32)
        self.total_length = op("Cast", self.total, to=_INT32)

    def position_ids(self) -> ir.Value:
        """Positions ``[batch, sequence]`` of the new tokens, for learned position embeddings."""
        op, constant = self.graph.op, self.graph.constant
        start = op("Max", op("Sub", self.row_length, self.sequence), constant(0))
        steps = op("Range", constant(0), self.sequence, constant(1))
        return op("Add", start, op("Unsqueeze", steps, constant([0])))

    def embed(self, ids: ir.Value, module: str) -> ir.Value:
        """Rows of an embedding, ``[batch, sequence, width]``; the table is kept for a tied head."""
        table = self.reader.embedding(module)
        self.stored["embedding"].add(_words(table))
        rows, self.tables[module] = emit_table(self.graph, ids, table, module)
        return rows

    def linear(self, x: ir.Value, *modules: str, transposed: bool = False) -> ir.Value | list[ir.Value]:
        """One or several linears of the same input as one product; a list of products if they cannot be stacked."""
        layers = [self.reader.linear(module, transposed=transposed) for module in modules]
        merged = stack(layers)
        if merged is not None:
            return self.product(x, merged, "+".join(modules))
        return [self.product(x, layer, module) for layer, module in zip(layers, modules, strict=True)]

    def one(self, x: ir.Value, module: str, *, transposed: bool = False) -> ir.Value:
        """One linear."""
        return self.product(x, self.reader.linear(module, transposed=transposed), module)

    def product(self, x: ir.Value, layer: Layer, name: str, role: str = "linear") -> ir.Value:
        """``x`` times a layer; ``role`` is the part of the precision report the layer belongs to."""
        self.stored[role].add(_words(layer))
        return emit_linear(self.graph, x, layer, name, accuracy_level=self.accuracy_level)

    def rms_norm(self, x: ir.Value, module: str, epsilon: float) -> ir.Value:
        weight = self.graph.weight(f"{module}.weight", self.reader.float32(f"{module}.weight"))
        return self.graph.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=epsilon)

    def layer_norm(self, x: ir.Value, module: str, epsilon: float) -> ir.Value:
        weight = self.graph.weight(f"{module}.weight", self.reader.float32(f"{module}.weight"))
        bias = self.graph.weight(f"{module}.bias", self.reader.float32(f"{module}.bias"))
        return self.graph.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=epsilon)

    def rotary_caches(self, inverse_frequency: Array, attention_scaling: float = 1.0) -> tuple[ir.Value, ir.Value]:
        """cos and sin ``[max_length, rotary_dim / 2]``, computed when a session loads instead of lying in the file."""
        if len(inverse_frequency) % 8:
            raise CheckpointError(
                "a rotary dimension divisible by 16",
                str(2 * len(inverse_frequency)),
                "no kernel rotates heads of this size",
            )
        op, constant = self.graph.op, self.graph.constant
        steps = op("Range", constant(0), constant(self.dimensions.max_length), constant(1))
        column = op("Unsqueeze", op("Cast", steps, to=int(ir.DataType.FLOAT)), constant([1]))
        angles = op("Mul", column, self.graph.weight("inverse_frequency", inverse_frequency.astype(np.float32)[None]))
        caches = [op("Cos", angles), op("Sin", angles)]
        if attention_scaling != 1.0:
            caches = [op("Mul", cache, constant(attention_scaling, "float32")) for cache in caches]
        return caches[0], caches[1]

    def attention(
        self,
        qkv: ir.Value | list[ir.Value],
        *,
        rotary: tuple[ir.Value, ir.Value] | None = None,
        scale: float | None = None,
    ) -> ir.Value:
        """Causal attention of the next layer, ``[batch, sequence, width]``; query, key, value come packed or apart."""
        d, past = self.dimensions, self.past[len(self.presents)]
        inputs = [*qkv] if isinstance(qkv, list) else [qkv, None, None]
        inputs += [*past, self.seqlens_k, self.total_length, *(rotary or ())]
        attributes: dict[str, Any] = {
            "num_heads": d.heads,
            "kv_num_heads": d.kv_heads,
            "do_rotary": int(rotary is not None),
        }
        if scale is not None:
            attributes["scale"] = scale
        out, key, value = self.graph.ops("GroupQueryAttention", 3, *inputs, domain=CONTRIB, **attributes)
        self.presents.append((key, value))
        self.progress(len(self.presents))
        return out

    def heads_norm(self, x: ir.Value, module: str, epsilon: float) -> ir.Value:
        """RMS norm of each head by itself (Qwen3), ``[batch, sequence, heads * head_dim]`` in and out."""
        constant = self.graph.constant
        apart = self.graph.op("Reshape", x, constant([0, 0, -1, self.dimensions.head_dim]))
        return self.graph.op("Reshape", self.rms_norm(apart, module, epsilon), constant([0, 0, -1]))

    def activation(self, x: ir.Value, kind: str) -> ir.Value:
        """The nonlinearity transformers calls ``kind``; raises ``CheckpointError`` if it has no operator."""
        if kind not in _ACTIVATIONS:
            raise CheckpointError(f"an activation of {', '.join(_ACTIVATIONS)}", repr(kind), "no emitter exists for it")
        operator, attributes = _ACTIVATIONS[kind]
        domain = CONTRIB if operator == "QuickGelu" else ""
        return self.graph.op(operator, x, domain=domain, **attributes)

    def add(self, x: ir.Value, y: ir.Value) -> ir.Value:
        return self.graph.op("Add", x, y)

    def keep(self, hidden: ir.Value) -> ir.Value:
        """The positions whose logits are wanted: the last real token of each row, or all (``logits_to_keep`` 0)."""
        op, constant = self.graph.op, self.graph.constant
        only_last = op("Equal", self.logits_to_keep, constant(1))
        gone = op("Sub", self.total, self.sequence)
        last = op("Sub", op("Sub", self.row_length, constant(1)), gone)
        last = op("Min", op("Max", last, constant(0)), op("Sub", self.sequence, constant(1)))  # [batch, 1]
        count = op("Where", only_last, constant(1), self.sequence)
        steps = op("Unsqueeze", op("Range", constant(0), count, constant(1)), constant([0]))
        index = op("Add", op("Where", only_last, last, constant(0)), steps)
        index = op("Expand", index, op("Concat", op("Shape", last, end=1), constant([1]), axis=0))
        return op("GatherND", hidden, op("Unsqueeze", index, constant([2])), batch_dims=1)

    def head(self, hidden: ir.Value, module: str, tied_to: str) -> ir.Value:
        """Logits of kept positions, normed already. A head equal to the embedding table uses the table."""
        table = self.tables[tied_to]
        own = f"{module}.weight" in self.reader or self.reader.is_quantized(module)
        layer = self.reader.linear(module) if own else None
        if layer is None and not self.reader.config.get("tie_word_embeddings", True):
            raise CheckpointError(
                f"tensor {module}.weight", "none, and no tied embeddings", "copy the checkpoint again"
            )
        if layer is None or same_layer(layer, table.layer):
            self.stored["head"].add(_words(table.layer))
            return emit_tied_head(self.graph, hidden, table, module, accuracy_level=self.accuracy_level)
        return self.product(hidden, layer, module, "head")


def _words(layer: Layer) -> str:
    if not isinstance(layer, QuantizedLinear):
        return "fp32"
    span = f" g{layer.group_size}" if layer.group_size else ""
    return f"int{layer.bits}{span}"


def same_layer(one: Layer, other: Layer) -> bool:
    """Whether two layers store the same numbers in the same way, and neither adds a bias."""
    if one.bias is not None or other.bias is not None or one.shape != other.shape:
        return False
    if isinstance(one, QuantizedLinear) and isinstance(other, QuantizedLinear):
        plain = one.zero_point is None and other.zero_point is None and one.activations == other.activations
        return (
            plain
            and one.bits == other.bits
            and bool(np.array_equal(one.scale, other.scale) and np.array_equal(one.values, other.values))
        )
    if isinstance(one, QuantizedLinear) or isinstance(other, QuantizedLinear):
        return False
    return np.array_equal(one.weight, other.weight)
