"""Decoder blocks in the `ort` dialect, docs/formats.md section 5.

Attention is com.microsoft GroupQueryAttention, which rotates, masks, and writes keys and values into one buffer shared
by past and present.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from planish.errors import CheckpointError
from planish.export.emit_blocks import Blocks, Dimensions, QkvValues, Rotary, spell_activation
from planish.export.emit_graph import CONTRIB, EmitGraph
from planish.export.emit_linear import Layer, Table, emit_linear, emit_table, emit_tied_head
from planish.export.reader import CheckpointReader

__all__ = ["OrtBlocks"]

Array = NDArray[Any]
_INT32 = int(ir.DataType.INT32)


class OrtBlocks(Blocks):
    """Operators of ONNX Runtime, float32 around them."""

    cache_dtype = "float32"
    kept_axis = 1
    cache_axis = "present"
    float_words = "fp32"

    def __init__(
        self,
        graph: EmitGraph,
        reader: CheckpointReader,
        dimensions: Dimensions,
        *,
        progress: Callable[[int], None],
        accuracy_level: int,
    ) -> None:
        super().__init__(graph, reader, dimensions, progress=progress)
        self.accuracy_level = accuracy_level
        self.input_ids = self.declare("input_ids", "int64", ("batch", "sequence"))
        self.attention_mask = self.declare("attention_mask", "int64", ("batch", "total"))
        self.past = self.declare_past()
        self.logits_to_keep = self.graph.overridable("logits_to_keep", np.array(1, np.int64))
        self._derive()

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

    def _rows(self, ids: ir.Value, layer: Layer, module: str) -> tuple[ir.Value, Table]:
        return emit_table(self.graph, ids, layer, module)

    def _tied_head(self, hidden: ir.Value, table: Table, module: str) -> ir.Value:
        return emit_tied_head(self.graph, hidden, table, module, accuracy_level=self.accuracy_level)

    def product(self, x: ir.Value, layer: Layer, name: str, role: str = "linear") -> ir.Value:
        self.stored[role].add(self.words(layer))
        return emit_linear(self.graph, x, layer, name, accuracy_level=self.accuracy_level)

    def rms_norm(self, x: ir.Value, module: str, epsilon: float) -> ir.Value:
        weight = self.graph.weight(f"{module}.weight", self.reader.float32(f"{module}.weight"))
        return self.graph.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=epsilon)

    def layer_norm(self, x: ir.Value, module: str, epsilon: float) -> ir.Value:
        weight = self.graph.weight(f"{module}.weight", self.reader.float32(f"{module}.weight"))
        bias = self.graph.weight(f"{module}.bias", self.reader.float32(f"{module}.bias"))
        return self.graph.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=epsilon)

    def rotary_caches(self, inverse_frequency: Array) -> Rotary:
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
        return op("Cos", angles), op("Sin", angles)

    def attention(self, qkv: QkvValues, *, rotary: Rotary | None = None, scale: float | None = None) -> ir.Value:
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

    def activation(self, x: ir.Value, kind: str) -> ir.Value:
        operator, attributes = spell_activation(kind)
        domain = CONTRIB if operator == "QuickGelu" else ""
        return self.graph.op(operator, x, domain=domain, **attributes)

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
