"""The work of a graph's matrix products: multiply-adds, bytes moved, and the time a device cannot go below."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from planish.export.graph_products import Product, Products, precision
from planish.export.lint_graph import LintGraph, attribute, name_of
from planish.profiles.schema import Gpu, Profile

__all__ = ["COUNTED_ONLY", "Rates", "Work", "rates_of", "work_of"]

COUNTED_ONLY = frozenset(
    {"Conv", "ConvTranspose", "Einsum", "GRU", "GroupQueryAttention", "LSTM", "MultiHeadAttention"}
)
"""Operators with products inside that are not looked into: named as not counted."""
BITS = {"int4": 4, "fp4": 4, "int8": 8, "fp8": 8, "fp16": 16, "bf16": 16, "fp32": 32, "fp64": 64}
LOOKALIKES = {
    "MatMulInteger": "int8",
    "QLinearMatMul": "int8",
    "MatMulIntegerToFloat": "int8",
    "DynamicQuantizeMatMul": "int8",
}


@dataclass(frozen=True)
class Work:
    """One product: ``macs`` multiply-adds in ``kind``; ``elements`` of its left, right input and output.

    ``constant`` says that the right input is a weight, so that it could be stored in fewer bits.
    """

    name: str
    kind: str
    macs: int
    elements: tuple[int, int, int]
    constant: bool

    def bytes(self, kind: str) -> float:
        """Bytes that must move when it is computed as ``kind``; the output in 16 bits or the kind's floats."""
        left, right, out = self.elements
        weight = BITS.get(kind.removesuffix("-weight"), 16)
        other = max(16, weight) if kind.endswith("-weight") else weight
        return (left * other + right * weight + out * max(16, other)) / 8


@dataclass(frozen=True)
class Rates:
    """Operations per second by precision, bytes per second, and what of it is assumed."""

    operations: dict[str, float]
    bandwidth: float
    assumed: str

    def seconds(self, work: Work, kind: str) -> float:
        """The roofline of one product: the longer of computing and moving."""
        computed = "fp16" if kind.endswith("-weight") else kind
        return max(2 * work.macs / self.operations[computed], work.bytes(kind) / self.bandwidth)


def rates_of(profile: Profile | None) -> Rates | None:
    """What a profile says of its GPU's throughput; None if it says too little."""
    gpu, memory = (profile.gpu, profile.memory) if profile is not None else (None, None)
    if gpu is None or memory is None or not memory.bandwidth or not gpu.dense_int8_tops:
        return None
    half = gpu.dense_fp16_tflops or gpu.dense_int8_tops / 2
    assumed = "" if gpu.dense_fp16_tflops else "float16 taken as half the INT8 throughput"
    return Rates(operations_of(gpu, half), float(memory.bandwidth), assumed)


def operations_of(gpu: Gpu, half: float) -> dict[str, float]:
    """Operations per second; float32 taken as half of float16 (TF32), what is unknown as float16."""
    whole = gpu.dense_int8_tops or half
    table = {
        "int8": whole,
        "fp16": half,
        "bf16": half,
        "fp32": half / 2,
        "fp64": half / 64,
        "int4": whole,
        "unknown": half,
    }
    table["fp8"] = gpu.dense_fp8_tflops or half
    table["fp4"] = gpu.dense_fp4_tflops or table["fp8"]
    return {name: rate * 1e12 for name, rate in table.items()}


def work_of(products: Products) -> tuple[list[Work], list[str]]:
    """The work of every product, and the names of those whose shape is unknown or that are not looked into."""
    found: list[Work] = []
    unknown: list[str] = []
    for node in products.facts.nodes:
        if node.op_type in COUNTED_ONLY or ((parts := list(works(products, node))) and None in parts):
            unknown.append(name_of(node))
        else:
            found += [part for part in parts if part is not None]
    return found, unknown


def works(products: Products, node: ir.Node) -> Iterator[Work | None]:
    """The products in one node; None where a shape is unknown."""
    facts = products.facts
    if node in products.of_node:
        product = products.of_node[node]
        yield product_work(facts, product, product.kind)
    elif node.op_type in LOOKALIKES:
        yield product_work(facts, Product(node, None, None, None), LOOKALIKES[node.op_type])
    elif node.op_type == "MatMulNBits":
        yield packed_work(facts, node)
    elif node.op_type == "Attention" and node.domain == "":
        yield from attention_work(facts, node)


def product_work(facts: LintGraph, product: Product, kind: str) -> Work | None:
    """A MatMul ``[.., m, k] x [.., k, n]``: as many multiply-adds as the output has elements, times k."""
    node = product.node
    right_at = 3 if node.op_type == "QLinearMatMul" else 1
    shapes = [facts.shape(node.inputs[0]), facts.shape(node.inputs[right_at]), facts.shape(node.outputs[0])]
    left, right, out = (volume(shape) for shape in shapes)
    if left is None or right is None or out is None:
        return None
    inner = shapes[0][0 if node.op_type == "Gemm" and attribute(node, "transA", 0) else -1] if shapes[0] else None
    if inner is None:
        return None
    constant = facts.constant(node.inputs[right_at]) is not None or (product.right is not None and product.right.weight)
    return Work(
        name_of(node), kind, out * inner, (left, right, out), constant or behind_constant(facts, node, right_at)
    )


def behind_constant(facts: LintGraph, node: ir.Node, at: int) -> bool:
    """A weight that is transposed in the graph."""
    producer = node.inputs[at].producer() if node.inputs[at] is not None else None
    return (
        producer is not None
        and producer.op_type in ("Transpose", "Cast")
        and facts.constant(producer.inputs[0]) is not None
    )


def packed_work(facts: LintGraph, node: ir.Node) -> Work | None:
    """com.microsoft's MatMulNBits."""
    left, inner, width = volume(facts.shape(node.inputs[0])), attribute(node, "K"), attribute(node, "N")
    if left is None or not inner or not width:
        return None
    rows = left // inner
    kind = f"int{attribute(node, 'bits', 4)}-weight"
    return Work(name_of(node), kind, rows * inner * width, (left, inner * width, rows * width), True)


def attention_work(facts: LintGraph, node: ir.Node) -> Iterator[Work | None]:
    """Both products of an Attention operator over ``[batch, heads, length, width]``."""
    query, key = facts.shape(node.inputs[0]), facts.shape(node.inputs[1])
    if query is None or key is None or len(query) != 4 or None in query or None in key:
        yield None
        return
    batch, heads, length, width = (axis or 0 for axis in query)
    total, kind = key[2] or 0, precision(facts.dtype(node.inputs[0]))
    many = batch * heads
    for side in ("scores", "context"):
        elements = (many * length * width, many * total * width, many * length * width)
        yield Work(f"{name_of(node)} {side}", kind, many * length * total * width, elements, False)


def volume(shape: tuple[int | None, ...] | None) -> int | None:
    """How many elements; None if an axis is unknown."""
    if shape is None or any(axis is None for axis in shape):
        return None
    return math.prod(axis for axis in shape if axis is not None)
