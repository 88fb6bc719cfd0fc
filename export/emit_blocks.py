"""Building blocks every decoder family is emitted from, whatever the dialect.

A family says what its model computes in calls of :class:`Blocks`; a dialect says how each call is spelled
(:mod:`planish.export.emit_ort_blocks`, :mod:`planish.export.emit_qdq_blocks`). The contract of inputs and outputs is
docs/formats.md, sections 5 and 5b.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from planish.errors import CheckpointError
from planish.export.emit_graph import EmitGraph
from planish.export.emit_linear import Layer, Table, stack
from planish.export.graph import TensorSpec
from planish.export.reader import CheckpointReader, QuantizedLinear

__all__ = ["Blocks", "Dimensions", "QkvValues", "Rotary", "same_layer", "spell_activation"]

Array = NDArray[Any]
QkvValues: TypeAlias = ir.Value | list[ir.Value]
"""Query, key and value of all heads, ``[batch, sequence, width]``: packed into one value, or apart."""
Rotary: TypeAlias = tuple[ir.Value, ir.Value]
"""cos and sin, as the dialect's attention wants them."""

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


def spell_activation(kind: str) -> tuple[str, dict[str, Any]]:
    """Operator and attributes of the nonlinearity transformers calls ``kind``; QuickGelu is ``x * sigmoid(alpha x)``.

    Raises ``CheckpointError`` for one that no operator computes.
    """
    if kind not in _ACTIVATIONS:
        raise CheckpointError(f"an activation of {', '.join(_ACTIVATIONS)}", repr(kind), "no emitter exists for it")
    return _ACTIVATIONS[kind]


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


class Blocks(ABC):
    """One decoder being emitted: its inputs, the values every layer needs, and the checkpoint it reads.

    ``inputs`` are the declared inputs, ``presents`` the cache of each layer emitted so far, ``stored`` how the weights
    of each role are kept, for the manifest.
    """

    kept_axis: ClassVar[int | str]
    """Positions that have logits, as the output declares them."""
    cache_axis: ClassVar[str]
    """Positions in a present key or value, as the output declares them."""
    float_words: ClassVar[str]
    """What a weight that is not quantized is kept in."""

    cache_dtype: str
    input_ids: ir.Value
    """Token ids of the new positions, int64 ``[batch, sequence]``."""

    def __init__(
        self, graph: EmitGraph, reader: CheckpointReader, dimensions: Dimensions, *, progress: Callable[[int], None]
    ) -> None:
        self.graph = graph
        self.reader = reader
        self.dimensions = dimensions
        self.progress = progress
        self.inputs: list[TensorSpec] = []
        self.tables: dict[str, Table] = {}
        self.presents: list[tuple[ir.Value, ir.Value]] = []
        self.stored: dict[str, set[str]] = {"linear": set(), "embedding": set(), "head": set()}

    def declare(self, name: str, dtype: str, shape: tuple[int | str, ...]) -> ir.Value:
        """An input of the graph."""
        self.inputs.append(TensorSpec(name, dtype, shape))
        return self.graph.input(name, dtype, shape)

    def declare_past(self) -> list[tuple[ir.Value, ir.Value]]:
        """Key and value of each layer, ``[batch, kv_heads, past, head_dim]``."""
        d, dtype = self.dimensions, self.cache_dtype
        shape = ("batch", d.kv_heads, "past", d.head_dim)
        return [
            (
                self.declare(f"past_key_values.{i}.key", dtype, shape),
                self.declare(f"past_key_values.{i}.value", dtype, shape),
            )
            for i in range(d.layers)
        ]

    def declare_outputs(self, logits: ir.Value) -> tuple[TensorSpec, ...]:
        """Name the outputs: logits float32, and the cache of every layer."""
        d = self.dimensions
        shape = ("batch", d.kv_heads, self.cache_axis, d.head_dim)
        found = [(logits, TensorSpec("logits", "float32", ("batch", self.kept_axis, d.vocab)))]
        for index, pair in enumerate(self.presents):
            for part, value in zip(("key", "value"), pair, strict=True):
                found.append((value, TensorSpec(f"present.{index}.{part}", self.cache_dtype, shape)))
        for value, spec in found:
            self.graph.output(value, spec.name, spec.dtype, spec.shape)
        return tuple(spec for _, spec in found)

    @abstractmethod
    def position_ids(self) -> ir.Value:
        """Positions ``[batch, sequence]`` of the new tokens, for learned position embeddings."""

    @abstractmethod
    def rotary_caches(self, inverse_frequency: Array) -> Rotary:
        """What :meth:`attention` rotates queries and keys with; ``inverse_frequency`` in radians per position."""

    @abstractmethod
    def attention(self, qkv: QkvValues, *, rotary: Rotary | None = None, scale: float | None = None) -> ir.Value:
        """Causal attention of the next layer, ``[batch, sequence, width]``; ``scale`` None means 1/sqrt(head_dim)."""

    @abstractmethod
    def rms_norm(self, x: ir.Value, module: str, epsilon: float) -> ir.Value: ...

    @abstractmethod
    def layer_norm(self, x: ir.Value, module: str, epsilon: float) -> ir.Value: ...

    @abstractmethod
    def activation(self, x: ir.Value, kind: str) -> ir.Value:
        """The nonlinearity transformers calls ``kind``; raises ``CheckpointError`` if it has no operator."""

    @abstractmethod
    def keep(self, hidden: ir.Value) -> ir.Value:
        """The positions whose logits are wanted."""

    @abstractmethod
    def product(self, x: ir.Value, layer: Layer, name: str, role: str = "linear") -> ir.Value:
        """``x`` times a layer; ``role`` is the part of the precision report the layer belongs to."""

    @abstractmethod
    def _rows(self, ids: ir.Value, layer: Layer, module: str) -> tuple[ir.Value, Table]:
        """Rows of a table, and the table for a tied head."""

    @abstractmethod
    def _tied_head(self, hidden: ir.Value, table: Table, module: str) -> ir.Value:
        """Scores of ``hidden`` against every row of a table that is in the graph already."""

    def add(self, x: ir.Value, y: ir.Value) -> ir.Value:
        return self.graph.op("Add", x, y)

    def multiply(self, x: ir.Value, y: ir.Value) -> ir.Value:
        return self.graph.op("Mul", x, y)

    def reshape(self, x: ir.Value, shape: list[int]) -> ir.Value:
        return self.graph.op("Reshape", x, self.graph.constant(shape))

    def embed(self, ids: ir.Value, module: str) -> ir.Value:
        """Rows of an embedding, ``[batch, sequence, width]``; the table is kept for a tied head."""
        table = self.reader.embedding(module)
        self.stored["embedding"].add(self.words(table))
        rows, self.tables[module] = self._rows(ids, table, module)
        return rows

    def qkv(self, x: ir.Value, *modules: str, transposed: bool = False) -> QkvValues:
        """Query, key and value by one or several linears; a list of products if these cannot be stacked."""
        layers = [self.reader.linear(module, transposed=transposed) for module in modules]
        merged = stack(layers)
        if merged is not None:
            return self.packed(x, merged, "+".join(modules))
        return [self.product(x, layer, module) for layer, module in zip(layers, modules, strict=True)]

    def packed(self, x: ir.Value, layer: Layer, name: str) -> QkvValues:
        """Query, key and value by one layer, whose rows are in this order."""
        return self.product(x, layer, name)

    def one(self, x: ir.Value, module: str, *, transposed: bool = False) -> ir.Value:
        """One linear."""
        return self.product(x, self.reader.linear(module, transposed=transposed), module)

    def heads_norm(self, x: ir.Value, module: str, epsilon: float) -> ir.Value:
        """RMS norm of each head by itself (Qwen3), ``[batch, sequence, heads * head_dim]`` in and out."""
        apart = self.reshape(x, [0, 0, -1, self.dimensions.head_dim])
        return self.reshape(self.rms_norm(apart, module, epsilon), [0, 0, -1])

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
            self.stored["head"].add(self.words(table.layer))
            return self._tied_head(hidden, table, module)
        return self.product(hidden, layer, module, "head")

    def words(self, layer: Layer) -> str:
        """How a layer is stored, for a person to read."""
        if not isinstance(layer, QuantizedLinear):
            return self.float_words
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
