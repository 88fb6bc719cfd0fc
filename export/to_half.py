"""From a float32 graph to a strongly typed float16 one.

Every float32 value becomes float16, scales included, but those in ``wide``, which export measured to leave float16's
range (measure_ranges.py): nodes that make or read such a value compute in float32, with Casts at their borders.
Float outputs of the graph stay float32. LayerNormalization keeps its statistics in float32 by itself (`stash_type`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray

from planish.errors import CheckpointError
from planish.export.element_types import fill_types

__all__ = ["LARGEST", "to_half"]

LARGEST = 65504.0
"""The largest finite float16."""

_MASK = -32768.0
"""What stands for minus infinity in a mask: half the range, so that what is added to it stays finite."""

_HALF, _FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


def to_half(model: ir.Model, wide: Collection[str] = ()) -> int:
    """Retype ``model`` in place; returns the number of Casts that were written.

    Raises ``CheckpointError`` for a weight that float16 cannot hold.
    """
    fill_types(model.graph)
    halving = _Halving(model.graph, set(wide))
    halving.run()
    for step in (passes.RemoveUnusedNodesPass(), passes.TopologicalSortPass()):
        step(model)
    return halving.casts


class _Halving:
    def __init__(self, graph: ir.Graph, wide: set[str]) -> None:
        self.graph = graph
        self.wide = wide
        self.casts = 0
        self._cast: dict[tuple[int, ir.DataType], ir.Value] = {}
        self._narrow: dict[str, ir.Value] = {}
        self._whole: dict[int, ir.Value] = {}  # a narrow weight and the one it was made from
        self._float = {id(v) for v in graph.initializers.values() if v.dtype == _FLOAT}

    def run(self) -> None:
        for node in list(self.graph):
            self._node(node)
        for index, output in enumerate(self.graph.outputs):
            if id(output) in self._float and output.dtype != _FLOAT:
                self._widen_output(index, output)

    def _node(self, node: ir.Node) -> None:
        floats = [value for value in node.outputs if value.dtype == _FLOAT]
        self._float |= {id(value) for value in floats}
        touched = [*floats, *(value for value in node.inputs if value is not None)]
        computes = _FLOAT if any(value.name in self.wide for value in touched) else _HALF
        self._attributes(node, computes)
        for index, value in enumerate(node.inputs):
            if value is not None and id(value) in self._float:
                node.replace_input_with(index, self._as(value, computes, node))
        for value in floats:
            value.type = ir.TensorType(computes)

    def _attributes(self, node: ir.Node, computes: ir.DataType) -> None:
        """Types and constants a node carries itself."""
        to = node.attributes.get("to")
        if node.op_type == "Cast" and to is not None and to.as_int() == int(_FLOAT):
            node.attributes["to"] = ir.AttrInt64("to", int(computes))
        for name in ("value", "value_float"):
            if name in node.attributes and node.op_type in ("Constant", "ConstantOfShape"):
                attribute = node.attributes[name]
                found = np.asarray(attribute.as_float() if name == "value_float" else attribute.as_tensor().numpy())
                if found.dtype in (np.float32, np.float64) and computes == _HALF:
                    del node.attributes[name]
                    node.attributes["value"] = ir.AttrTensor("value", ir.tensor(narrowed(found, node.name or "")))

    def _as(self, value: ir.Value, wanted: ir.DataType, before: ir.Node) -> ir.Value:
        """``value`` in the ``wanted`` type; a weight is stored in it, anything else cast once."""
        if value.is_initializer():
            return value if wanted == _FLOAT else self._half_weight(value)
        if value.dtype == wanted:
            return value
        key = (id(value), wanted)
        if key not in self._cast:
            node = self._dequantized(value, wanted)
            if node is None:
                node = ir.node("Cast", [value], {"to": int(wanted)}, name=f"Cast.half.{self.casts}")
                self.casts += 1
            node.outputs[0].name, node.outputs[0].type = f"{value.name}.as.{wanted.name}", ir.TensorType(wanted)
            node.outputs[0].shape = value.shape
            producer = value.producer()
            if producer is None:
                self.graph.insert_before(before, node)
            else:
                self.graph.insert_after(producer, node)
            self._cast[key] = node.outputs[0]
        return self._cast[key]

    def _dequantized(self, value: ir.Value, wanted: ir.DataType) -> ir.Node | None:
        """The node that makes float32 of the integers ``value`` was made of, if it was.

        With a Cast behind a DequantizeLinear TensorRT makes no INT8 product of the two.
        """
        maker = value.producer()
        if maker is None or maker.op_type != "DequantizeLinear" or wanted != _FLOAT:
            return None
        integers, scale, *zero = maker.inputs
        wide = self._whole.get(id(scale))
        if wide is None:
            return None
        return ir.Node("", maker.op_type, [integers, wide, *zero], maker.attributes.values(), name=f"{maker.name}.wide")

    def _half_weight(self, value: ir.Value) -> ir.Value:
        name = str(value.name)
        if name not in self._narrow:
            assert value.const_value is not None
            array = narrowed(value.const_value.numpy(), name)
            tensor = ir.tensor(array, name=f"{name}.half")
            narrow = ir.Value(
                name=tensor.name, const_value=tensor, type=ir.TensorType(_HALF), shape=ir.Shape(array.shape)
            )
            self.graph.register_initializer(narrow)
            self._narrow[name], self._whole[id(narrow)] = narrow, value
        return self._narrow[name]

    def _widen_output(self, index: int, output: ir.Value) -> None:
        name = output.name
        node = ir.node("Cast", [output], {"to": int(_FLOAT)}, name=f"Cast.output.{index}")
        output.name = f"{name}.half"
        widened = node.outputs[0]
        widened.name, widened.type, widened.shape = name, ir.TensorType(_FLOAT), output.shape
        self.graph.append(node)
        self.graph.outputs[index] = widened
        self.casts += 1


def narrowed(array: NDArray[Any], name: str) -> NDArray[np.float16]:
    """Float16 of a weight; the single number of a mask may be as low as float32 goes.

    Raises ``CheckpointError`` for numbers beyond float16.
    """
    if array.size == 1 and float(array.reshape(())) < _MASK:
        return np.full(array.shape, _MASK, np.float16)
    largest = float(np.max(np.abs(array), initial=0.0))
    if not largest <= LARGEST:
        raise CheckpointError(
            f"{name} within float16 (65504)", f"{largest:g}", "choose a profile of the dialect ort alone"
        )
    return array.astype(np.float16)
