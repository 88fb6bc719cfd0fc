"""The matrix products of a graph: what their inputs are quantized to, and which of them make up an attention.

An engine moves a DequantizeLinear through operators that only move elements; so does the search for what quantizes an
input. Which attentions TensorRT fuses into one kernel was measured with TensorRT-RTX 1.7.1, built for SM 8.9
(docs/lint.md lists the cases).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from planish.export.lint_graph import LintGraph, attribute

__all__ = ["MOVES", "Attention", "Product", "Products", "Quantized", "reaches", "source"]

MOVES = frozenset({"Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that move elements and change none."""
SCORING = frozenset({"Add", "Cast", "Clip", "Div", "Max", "Min", "Mul", "Sub", "Tanh", "Where"}) | MOVES
"""What may stand between an attention's scores and its softmax: scale, mask, cap, casts."""
AFTER = frozenset({"Cast", "DequantizeLinear", "Dropout", "Mul", "QuantizeLinear", "Where"}) | MOVES
DOMAINS = ("", "com.microsoft")
WIDTHS = (9, 256)
"""Narrowest and widest head with a fused kernel, SM 7.5 to 12.0."""
HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
EIGHT_BIT_FLOATS = frozenset({ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2})


@dataclass(frozen=True)
class Quantized:
    """What stands before a product's input: its DequantizeLinear, what that takes, and whether that is a weight."""

    node: ir.Node
    dtype: ir.DataType | None
    weight: bool


@dataclass(frozen=True)
class Product:
    """A MatMul or Gemm. ``left`` and ``right`` are None where the input comes as a float."""

    node: ir.Node
    left: Quantized | None
    right: Quantized | None
    dtype: ir.DataType | None

    @property
    def quantized(self) -> bool:
        """Both inputs are, one of them not as a mere weight: the product itself is computed in that type."""
        return self.left is not None and self.right is not None and not (self.left.weight and self.right.weight)

    @property
    def kind(self) -> str:
        """The precision it is computed in (int8, fp16, ...), or ``int8-weight`` where only a weight is quantized."""
        sides = [side for side in (self.left, self.right) if side is not None]
        if self.quantized:
            return precision(next(side.dtype for side in sides if not side.weight))
        weights = [side for side in sides if side.weight]
        return f"{precision(weights[0].dtype)}-weight" if weights else precision(self.dtype)


@dataclass(frozen=True)
class Attention:
    """Scores, softmax, context. ``inputs`` maps q, k, p (probabilities) and v to what quantizes them."""

    node: ir.Node
    products: tuple[Product, ...]
    inputs: dict[str, Quantized | None]
    dtypes: frozenset[ir.DataType | None]
    output_quantized: bool
    scores_quantized: bool = False
    width: int | None = None

    @property
    def quantized(self) -> list[str]:
        """Names of the quantized inputs."""
        return [name for name, given in self.inputs.items() if given is not None]

    @property
    def fp8(self) -> bool:
        return any(given is not None and given.dtype in EIGHT_BIT_FLOATS for given in self.inputs.values())

    @property
    def fits(self) -> bool:
        """A head's width is one that fused kernels are made for; True if it is not known."""
        return self.width is None or WIDTHS[0] <= self.width <= WIDTHS[1]

    @property
    def fusible(self) -> bool:
        """TensorRT-RTX 1.7.1 makes one kernel of it."""
        names = set(self.quantized)
        if not self.fits:
            return False
        if names == set(self.inputs):
            return self.output_quantized and not self.scores_quantized and not self.fp8
        return self.dtypes <= HALVES and "p" not in names and not {"q", "k"} <= names


def precision(dtype: ir.DataType | None) -> str:
    """The short name of a type, as profiles spell it.

    >>> precision(ir.DataType.FLOAT16), precision(ir.DataType.UINT8), precision(None)
    ('fp16', 'int8', 'unknown')
    """
    return NAMES.get(dtype, "unknown") if dtype is not None else "unknown"


NAMES = {
    ir.DataType.BFLOAT16: "bf16",
    ir.DataType.DOUBLE: "fp64",
    ir.DataType.FLOAT: "fp32",
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.FLOAT4E2M1: "fp4",
    ir.DataType.FLOAT8E4M3FN: "fp8",
    ir.DataType.FLOAT8E5M2: "fp8",
    ir.DataType.INT4: "int4",
    ir.DataType.INT8: "int8",
    ir.DataType.UINT4: "int4",
    ir.DataType.UINT8: "int8",
}


def source(value: ir.Value | None, through: frozenset[str] = MOVES) -> ir.Value | None:
    """The value that ``value`` is, before operators that only move it."""
    while value is not None and (producer := value.producer()) is not None and producer.op_type in through:
        value = producer.inputs[0]
    return value


def reaches(value: ir.Value, through: frozenset[str] = MOVES) -> Iterator[tuple[ir.Node, int]]:
    """The uses of a value, seen through operators of ``through``."""
    queue = [value]
    while queue:
        for node, index in queue.pop().uses():
            if node.op_type in through and index == 0:
                queue += node.outputs
            else:
                yield node, index


class Products:
    """The products and attentions of a graph, found once."""

    def __init__(self, facts: LintGraph) -> None:
        self.facts = facts

    @cached_property
    def all(self) -> list[Product]:
        """Every MatMul and Gemm."""
        return [self.product(node) for node in self.facts.named("MatMul", "Gemm")]

    @cached_property
    def of_node(self) -> dict[ir.Node, Product]:
        return {product.node: product for product in self.all}

    def product(self, node: ir.Node) -> Product:
        left, right = node.inputs[0], node.inputs[1]
        return Product(node, self.quantized(left), self.quantized(right), self.facts.dtype(left))

    def quantized(self, value: ir.Value | None) -> Quantized | None:
        """What quantizes a product's input, if anything does."""
        found = source(value)
        node = found.producer() if found is not None else None
        if node is None or node.op_type != "DequantizeLinear" or not node.inputs:
            return None
        return Quantized(node, self.facts.dtype(node.inputs[0]), self.is_weight(node))

    def is_weight(self, dequantize: ir.Node) -> bool:
        """It dequantizes a constant, or one that is quantized in the graph."""
        given = dequantize.inputs[0]
        if self.facts.constant(given) is not None:
            return True
        quantize = given.producer() if given is not None else None
        return quantize is not None and self.facts.constant(quantize.inputs[0]) is not None

    @cached_property
    def attentions(self) -> list[Attention]:
        """Every attention: around a Softmax, or the operator of that name."""
        found = [self.around(node) for node in self.facts.named("Softmax")]
        whole = [self.operator(node) for node in self.facts.nodes if node.op_type == "Attention" and node.domain == ""]
        return [one for one in found if one is not None] + whole

    def around(self, softmax: ir.Node) -> Attention | None:
        """The attention whose probabilities ``softmax`` makes; None if it makes something else."""
        scores = self.scores(softmax.inputs[0])
        context = next(
            (node for node, at in reaches(softmax.outputs[0], AFTER) if node.op_type == "MatMul" and at == 0), None
        )
        if scores is None or context is None:
            return None
        first, second = self.of_node[scores], self.of_node[context]
        inputs = {"q": first.left, "k": first.right, "p": second.left, "v": second.right}
        dtypes = frozenset({first.dtype, second.dtype})
        output, between = self.quantizes(context), self.quantizes(scores)
        return Attention(softmax, (first, second), inputs, dtypes, output, between, self.width(scores))

    def width(self, node: ir.Node) -> int | None:
        """The last axis of a node's first input: of queries, a head's width."""
        shape = self.facts.shape(node.inputs[0])
        return shape[-1] if shape else None

    def scores(self, value: ir.Value | None) -> ir.Node | None:
        """The product of two activations behind a softmax's input."""
        seen, queue = set(), [value]
        while queue:
            value = queue.pop()
            node = value.producer() if value is not None else None
            if node is None or node in seen:
                continue
            seen.add(node)
            if node.op_type == "MatMul" and node.domain == "":
                if all(self.facts.constant(source(given)) is None for given in node.inputs):
                    return node
            elif node.op_type in SCORING or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                queue.extend(node.inputs)
        return None

    def operator(self, node: ir.Node) -> Attention:
        """ONNX's Attention operator; its probabilities stay inside."""
        inputs = {name: self.quantized(node.inputs[at]) for at, name in enumerate("qkv")}
        heads = attribute(node, "q_num_heads", 1)
        width = self.width(node)
        each = width // heads if width is not None and heads else None
        return Attention(node, (), inputs, frozenset({self.facts.dtype(node.inputs[0])}), False, False, each)

    def quantizes(self, product: ir.Node) -> bool:
        """All that reads a product's output quantizes it."""
        users = [node for node, _ in reaches(product.outputs[0])]
        return bool(users) and all(node.op_type == "QuantizeLinear" for node in users)


def transposed_right(node: ir.Node) -> bool:
    """A Gemm that takes its second input transposed."""
    return node.op_type == "Gemm" and bool(attribute(node, "transB", 0))
