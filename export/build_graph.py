"""What a build has to know of an ONNX graph beforehand, read without its external data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish.errors import BundleError

__all__ = ["GraphFacts", "read_graph"]

BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16}
"""Bits of an element by ONNX's ``TensorProto.DataType``; of the types below it, 8 (float8) and 4 (int4)."""
BITS |= {17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4}


@dataclass(frozen=True)
class GraphFacts:
    """``widest``: the most columns of a weight that is multiplied; ``vocabulary``: those of a decoder's head, which has
    them for the ``kept`` positions only; ``products``: names of the nodes that multiply matrices."""

    nodes: int
    weights_bytes: int
    widest: int
    vocabulary: int
    products: tuple[str, ...]


def read_graph(path: Path) -> GraphFacts:
    """The facts of the graph at ``path``; raises ``BundleError`` for a file that is no ONNX model."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except (DecodeError, OSError, ValueError) as error:
        raise BundleError(f"an ONNX graph in {path}", str(error)[:200], "export the bundle again") from error
    if not graph.node or not graph.input or not graph.output:
        raise BundleError(f"an ONNX graph in {path}", "one that is cut off", "export the bundle again")
    bits = sum(math.prod(tensor.dims) * BITS.get(tensor.data_type, 32) for tensor in graph.initializer)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    products = tuple(node.name for node in graph.node if node.op_type in ("MatMul", "Gemm"))
    outputs = [axes_of(tensor) for tensor in graph.output]
    heads = [axes[-1].dim_value for axes in outputs if any(axis.dim_param == "kept" for axis in axes)]
    widths = [width for width in widths_of(graph, shapes) if width not in heads]
    return GraphFacts(len(graph.node), bits // 8, max(widths, default=1), max(heads, default=0), products)


def axes_of(tensor: Any) -> Any:
    """The axes of an input or output."""
    return tensor.type.tensor_type.shape.dim


def widths_of(graph: Any, shapes: dict[str, tuple[int, ...]]) -> list[int]:
    """The output width of every matrix product with a weight, behind any dequantizing and transposing."""
    flipped: dict[str, tuple[int, ...]] = dict(shapes)
    found = []
    for node in graph.node:
        source = flipped.get(node.input[0], ()) if node.input else ()
        if node.op_type in ("DequantizeLinear", "Cast", "Identity") and len(source) == 2:
            flipped[node.output[0]] = source
        elif node.op_type == "Transpose" and len(source) == 2:
            flipped[node.output[0]] = source[::-1]
        elif node.op_type in ("MatMul", "Gemm") and len(node.input) > 1:
            weight = flipped.get(node.input[1], ())
            turned = any(item.name == "transB" and item.i for item in node.attribute)
            if len(weight) == 2:
                found.append(weight[0] if turned else weight[1])
    return found
