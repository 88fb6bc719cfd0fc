"""An ONNX graph as the linter sees it: types, shapes at given sizes, and constants read only when asked for.

Reads with onnx_ir alone (no torch, no engine), so that it works where an engine is built. Weights in external data
stay on disk: a rule reads the scales it judges, never a weight matrix.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from planish.errors import InputError
from planish.export.graph_shapes import Known, propagate

__all__ = ["FLOATS", "LintGraph", "attribute", "load_graph", "malformed", "name_of"]

AGAIN = "export the model again"
FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
"""Types that products and sums are computed in."""


@dataclass
class LintGraph:
    """One graph. ``sizes`` maps an input's name to the shape it is looked at; None leaves an axis unknown."""

    model: ir.Model
    path: Path
    sizes: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)

    @cached_property
    def nodes(self) -> list[ir.Node]:
        """All nodes, those of subgraphs too."""
        return list(ir.traversal.RecursiveGraphIterator(self.model.graph))

    @cached_property
    def known(self) -> dict[ir.Value, Known]:
        """Type, shape and, for small integers, content of each value, as far as they follow from the inputs."""
        try:
            return propagate(self.model.graph, self.sizes)
        except OSError as error:
            raise unreadable(self.path, error) from error

    @property
    def opset(self) -> int:
        """The version of the standard operators."""
        return int(self.model.graph.opset_imports.get("", 0))

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """The element type of a value, if it can be told."""
        if value is None:
            return None
        found = self.known.get(value)
        return found.dtype if found is not None and found.dtype is not None else value.dtype

    def shape(self, value: ir.Value | None) -> tuple[int | None, ...] | None:
        """The shape of a value; None for an axis, or for all, that cannot be told."""
        found = self.known.get(value) if value is not None else None
        return found.shape if found is not None else None

    def constant(self, value: ir.Value | None) -> ir.TensorProtocol | None:
        """The tensor behind an initializer or a Constant node, without reading it."""
        if value is None:
            return None
        producer = value.producer()
        if producer is not None and producer.op_type == "Constant":
            return constant_node(producer)
        return None if producer is not None or value.is_graph_input() else value.const_value

    def foldable(self, value: ir.Value | None) -> bool:
        """The value follows from constants alone, in a few steps: every engine computes it when it builds."""
        queue, left = [value], 16
        while queue and left:
            value, left = queue.pop(), left - 1
            if self.constant(value) is not None:
                continue
            producer = value.producer() if value is not None else None
            if producer is None or not producer.inputs:
                return False
            queue += [one for one in producer.inputs if one is not None]
        return not queue

    def array(self, tensor: ir.TensorProtocol) -> npt.NDArray[Any]:
        """The content of a tensor; ``InputError`` if its external data cannot be read."""
        try:
            return np.asarray(tensor.numpy())
        except Exception as error:  # whatever onnx_ir says of a missing, short or linked file
            raise unreadable(self.path, error) from error

    def named(self, *op_types: str) -> Iterator[ir.Node]:
        """The standard nodes of these types."""
        return (node for node in self.nodes if node.op_type in op_types and node.domain == "")


def constant_node(node: ir.Node) -> ir.TensorProtocol | None:
    """What a Constant node holds, in any of its spellings."""
    if "value" in node.attributes:
        return cast("ir.TensorProtocol", node.attributes["value"].as_tensor())
    spellings = (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    )
    for key, dtype in spellings:
        if key in node.attributes:
            return ir.tensor(np.array(node.attributes[key].value, dtype))
    return None


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """An attribute's value, or ``default``."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def name_of(node: ir.Node) -> str:
    """What a person finds the node by: its name, else its first output."""
    return str(node.name or (node.outputs[0].name if node.outputs else None) or node.op_type)


def load_graph(path: Path) -> LintGraph:
    """Open an ONNX file; local functions are inlined. Raises ``InputError`` if it is none."""
    try:
        with quiet_onnx_ir():
            model = ir.load(path)
            if model.functions:
                common.InlinePass()(model)
            model.graph.sort()  # also finds cycles, which no walk here would leave
    except Exception as error:  # protobuf, onnx_ir and the file system each raise their own
        raise unreadable(path, error) from error
    graph = LintGraph(model, path)
    if not graph.nodes and not model.graph.outputs:
        raise InputError(f"an ONNX model in {path}", "a graph without nodes", AGAIN)
    for node in graph.nodes:
        for value in node.inputs:
            if value is not None and not is_made(value):
                raise InputError(f"a whole graph in {path}", f"{name_of(node)} reads {value.name}, made nowhere", AGAIN)
    return graph


def is_made(value: ir.Value) -> bool:
    """A node, an initializer or an input of a graph stands behind the value."""
    return value.producer() is not None or value.is_graph_input() or value.is_initializer()


@contextmanager
def quiet_onnx_ir() -> Iterator[None]:
    """onnx_ir logs what it mends while it reads; what cannot be mended is found afterwards."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def malformed(graph: LintGraph) -> InputError | None:
    """What ONNX's own checker says against a graph; None if it is well-formed."""
    try:
        with quiet_onnx_ir():
            common.CheckerPass()(graph.model)
    except Exception as error:  # the checker's, or protobuf's on names that are no text
        return unreadable(graph.path, error)
    return None


def unreadable(path: Path, error: Exception) -> InputError:
    """The error of a file that is no whole ONNX model."""
    said = str(error).strip() or type(error).__name__
    return InputError(f"a readable ONNX model in {path}", said.splitlines()[0][:160], AGAIN)
