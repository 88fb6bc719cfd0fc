"""Insert nodes, constants and weights into a traced graph, before the node that is being replaced."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["CONTRIB", "Builder"]

Array = NDArray[Any]

CONTRIB = "com.microsoft"


class Builder:
    """Writes into ``graph``, just before the node given to :meth:`at`; names are numbered, so that bytes repeat."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._anchor: ir.Node | None = None
        self._count = 0
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._memory: dict[Any, Any] = {}

    def at(self, node: ir.Node) -> Builder:
        """Insert before ``node`` from now on."""
        self._anchor = node
        return self

    def op(self, kind: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """A node with one output; trailing inputs that are None are left out."""
        return self.ops(kind, 1, *inputs, domain=domain, **attributes)[0]

    def ops(self, kind: str, outputs: int, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> Any:
        """A node with several outputs."""
        present = list(inputs)
        while present and present[-1] is None:
            present.pop()
        node = ir.node(kind, present, attributes, domain=domain, num_outputs=outputs, name=f"{kind}.{self._count}")
        for index, output in enumerate(node.outputs):
            output.name = f"{kind}.{self._count}.{index}"
        self._count += 1
        assert self._anchor is not None
        self.graph.insert_before(self._anchor, node)
        return node.outputs

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let everything that read ``old`` read ``new``; a graph output keeps its name, type and shape."""
        new.type, new.shape = old.type, old.shape
        if old.is_graph_output():
            old.name, new.name = f"{old.name}.traced", old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)

    def constant(self, value: Any, dtype: str = "int64") -> ir.Value:
        """A small constant, stored once however often it is used."""
        array = np.asarray(value, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.weight(f"constant.{len(self._constants)}", array)
        return self._constants[key]

    def weight(self, name: str, array: Array) -> ir.Value:
        """An initializer named ``name``."""
        tensor = ir.tensor(np.asarray(array, order="C"), name=name)  # ascontiguousarray gives a number an axis
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
        self.graph.register_initializer(value)
        return value

    def half(self, name: str, array: Array) -> ir.Value:
        """A float32 weight; scales of an encoder are too few to be worth a cast from float16."""
        return self.weight(name, array)

    def again(self, name: str, weight: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        """``weight`` in another shape, stored once; folded when a session loads."""
        return self.op("Reshape", weight, self.constant(shape))

    def once(self, key: Any, make: Any) -> Any:
        """What ``make()`` gave the first time it was asked for under ``key``; for nodes that several layers share."""
        if key not in self._memory:
            self._memory[key] = make()
        return self._memory[key]
