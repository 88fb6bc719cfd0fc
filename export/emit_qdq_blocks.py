"""Decoder blocks in the `qdq` dialect, docs/formats.md section 5b: standard operators, float16 around the integers.

What leaves float16's range on calibration text is float32; see :mod:`planish.export.emit_qdq_floats`. Norms reduce in
float32 always: a sum of squares overflows float16 from magnitudes of 256 on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from planish.export.emit_blocks import Blocks, Dimensions, QkvValues, Rotary, spell_activation
from planish.export.emit_graph import EmitGraph
from planish.export.emit_linear import Layer, Table
from planish.export.emit_qdq_attention import attend, causal_bias, rotary_rows, rotate
from planish.export.emit_qdq_floats import Floats
from planish.export.emit_qdq_linear import emit_parts, emit_product, emit_table, emit_tied_head
from planish.export.reader import CheckpointReader

__all__ = ["QdqBlocks"]

Array = NDArray[Any]


class QdqBlocks(Blocks):
    """``ranges`` says what float16 can hold; None emits everything in float32, to measure them with."""

    kept_axis = "kept"
    cache_axis = "total"
    float_words = "fp16"

    def __init__(
        self,
        graph: EmitGraph,
        reader: CheckpointReader,
        dimensions: Dimensions,
        *,
        progress: Callable[[int], None],
        ranges: Mapping[str, float] | None,
    ) -> None:
        super().__init__(graph, reader, dimensions, progress=progress)
        self.floats = Floats(graph, ranges)
        self.cache_dtype = self.floats.dtype
        self.input_ids = self.declare("input_ids", "int64", ("batch", "sequence"))
        self._positions = self.declare("position_ids", "int64", ("batch", "sequence"))
        mask = self.declare("attention_mask", "int64", ("batch", "total"))
        self._kept = self.declare("logits_index", "int64", ("batch", "kept"))
        self.past = self.declare_past()
        self._bias = causal_bias(self.floats, mask, self.input_ids)
        self._turning = 0

    def position_ids(self) -> ir.Value:
        return self._positions

    def _rows(self, ids: ir.Value, layer: Layer, module: str) -> tuple[ir.Value, Table]:
        return emit_table(self.floats, ids, layer, module)

    def product(self, x: ir.Value, layer: Layer, name: str, role: str = "linear") -> ir.Value:
        self.stored[role].add(self.words(layer))
        return emit_product(self.floats, x, layer, name)

    def packed(self, x: ir.Value, layer: Layer, name: str) -> QkvValues:
        d = self.dimensions
        counts = {"query": d.heads, "key": d.kv_heads, "value": d.kv_heads}
        self.stored["linear"].add(self.words(layer))
        widths = {part: count * d.head_dim for part, count in counts.items()}
        return emit_parts(self.floats, x, layer, name, widths)

    def _tied_head(self, hidden: ir.Value, table: Table, module: str) -> ir.Value:
        return emit_tied_head(self.floats, hidden, table, module)

    def head(self, hidden: ir.Value, module: str, tied_to: str) -> ir.Value:
        return self.floats.single(super().head(hidden, module, tied_to))

    def rms_norm(self, x: ir.Value, module: str, epsilon: float) -> ir.Value:
        op, constant, floats = self.graph.op, self.graph.constant, self.floats
        single = floats.single(x)
        mean = op("ReduceMean", op("Mul", single, single), constant([-1]), keepdims=1)
        normed = op("Div", single, op("Sqrt", op("Add", mean, constant(epsilon, "float32"))))
        scaled = floats.narrow(normed) if floats.fits(module) else floats.single(normed)
        weight = floats.weight(f"{module}.weight", self.reader.float32(f"{module}.weight"), beside=scaled)
        return floats.note(op("Mul", scaled, weight), module, wide=not floats.fits(module))

    def layer_norm(self, x: ir.Value, module: str, epsilon: float) -> ir.Value:
        """Float32 inside by ``stash_type``; a wide input is normalized as it is."""
        floats = self.floats
        x = x if floats.fits(module) else floats.single(x)
        weight, bias = (
            floats.weight(f"{module}.{part}", self.reader.float32(f"{module}.{part}"), beside=x)
            for part in ("weight", "bias")
        )
        normed = self.graph.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=epsilon, stash_type=1)
        if floats.is_wide(x) and floats.fits(module):
            normed = floats.narrow(normed)
        return floats.note(normed, module, wide=not floats.fits(module))

    def rotary_caches(self, inverse_frequency: Array) -> Rotary:
        self._turning = len(inverse_frequency)
        return rotary_rows(self.floats, inverse_frequency, self.dimensions.max_length, self._positions)

    def attention(self, qkv: QkvValues, *, rotary: Rotary | None = None, scale: float | None = None) -> ir.Value:
        assert isinstance(qkv, list)  # packed() gives parts
        d, index = self.dimensions, len(self.presents)
        query, key, value = (
            self._heads(self.floats.half(part), count)
            for part, count in zip(qkv, (d.heads, d.kv_heads, d.kv_heads), strict=True)
        )
        if rotary is not None:
            query, key = (rotate(self.floats, part, rotary, self._turning, d.head_dim) for part in (query, key))
        past_key, past_value = self.past[index]
        key = self.graph.op("Concat", past_key, key, axis=2)
        value = self.graph.op("Concat", past_value, value, axis=2)
        self.presents.append((key, value))
        self.progress(len(self.presents))
        factor = 1 / math.sqrt(d.head_dim) if scale is None else scale
        name = f"attention.{index}"
        mixed = attend(self.floats, query, key, value, self._bias, d, scale=factor, name=f"{name}.scores")
        return self.floats.note(mixed, name)

    def _heads(self, x: ir.Value, count: int) -> ir.Value:
        """``[batch, sequence, width]`` to ``[batch, heads, sequence, head_dim]``."""
        apart = self.graph.op("Reshape", x, self.graph.constant([0, 0, count, self.dimensions.head_dim]))
        return self.graph.op("Transpose", apart, perm=[0, 2, 1, 3])

    def activation(self, x: ir.Value, kind: str) -> ir.Value:
        operator, attributes = spell_activation(kind)
        op, name = self.graph.op, f"{kind}({self.floats.name(x)})"
        if operator != "QuickGelu":
            return self.floats.elementwise(lambda value: op(operator, value, **attributes), name, x)
        return self.floats.elementwise(lambda value: self._swish(value, attributes["alpha"]), name, x)

    def _swish(self, x: ir.Value, alpha: float) -> ir.Value:
        """``x * sigmoid(alpha * x)``."""
        op = self.graph.op
        if alpha == 1.0:
            return op("Mul", x, op("Sigmoid", x))
        return op("Mul", x, op("Sigmoid", op("Mul", x, self.floats.constant(alpha, beside=x))))

    def add(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """The residual stream: once it is float32, it stays so."""
        name = f"{self.floats.name(y)} + residual"
        return self.floats.elementwise(lambda a, b: self.graph.op("Add", a, b), name, x, y, stay=True)

    def multiply(self, x: ir.Value, y: ir.Value) -> ir.Value:
        name = f"{self.floats.name(x)} * {self.floats.name(y)}"
        return self.floats.elementwise(lambda a, b: self.graph.op("Mul", a, b), name, x, y)

    def reshape(self, x: ir.Value, shape: list[int]) -> ir.Value:
        return self.floats.like(super().reshape(x, shape), x)

    def keep(self, hidden: ir.Value) -> ir.Value:
        """The positions in ``logits_index``."""
        index = self.graph.op("Unsqueeze", self._kept, self.graph.constant([2]))
        kept = self.floats.like(self.graph.op("GatherND", hidden, index, batch_dims=1), hidden)
        # shape inference gives up on GatherND with batch_dims
        kept.shape = ir.Shape(("batch", "kept", self.dimensions.hidden))
        kept.type = ir.TensorType(self.floats.type_of(kept))
        return kept
