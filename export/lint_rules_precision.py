"""Rules about floats: what attention needs to be fused, and what float16 cannot hold."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from planish.export.graph_products import MOVES, Attention
from planish.export.lint_graph import attribute, name_of
from planish.export.lint_rule import Hit, Rule, Subject, spelled

__all__ = ["RULES"]

HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT
LARGEST = 65504.0  # of float16
MASKING = frozenset({"Add", "Concat", "Gather", "Mul", "Sub", "Where"}) | MOVES
"""What a mask's constant passes through, unclamped, on its way to a softmax."""
READ = 1 << 20  # a constant of more elements is a weight, and stays on disk


def half_scales(subject: Subject) -> Iterator[Hit]:
    for node in subject.facts.named("DequantizeLinear"):
        if subject.facts.dtype(node.outputs[0]) == SINGLE:
            yield Hit(name_of(node), "dequantized to float32")


def half_attention(subject: Subject) -> Iterator[Hit]:
    for one in subject.products.attentions:
        wide = sorted(spelled(dtype) for dtype in one.dtypes if dtype in (SINGLE, ir.DataType.DOUBLE))
        if wide and not one.fusible:
            yield Hit(name_of(one.node), f"attention in {' and '.join(wide)}")


def all_or_none(subject: Subject) -> Iterator[Hit]:
    for one in subject.products.attentions:
        if one.quantized and set(one.quantized) != set(one.inputs):
            yield Hit(
                name_of(one.node), f"attention with {' '.join(one.quantized)} of {' '.join(one.inputs)} quantized"
            )


def whole(subject: Subject) -> Iterator[Attention]:
    """Attentions whose inputs are all quantized."""
    return (one for one in subject.products.attentions if one.products and set(one.quantized) == set(one.inputs))


def attention_output(subject: Subject) -> Iterator[Hit]:
    for one in whole(subject):
        if not one.output_quantized and not one.fp8:
            yield Hit(name_of(one.node), "attention quantized but for its output")


def fp8_attention(subject: Subject) -> Iterator[Hit]:
    for one in subject.products.attentions:
        if one.fp8:
            yield Hit(name_of(one.node), f"attention with {' '.join(one.quantized)} in float8")


def head_width(subject: Subject) -> Iterator[Hit]:
    for one in subject.products.attentions:
        if not one.fits:
            yield Hit(name_of(one.node), f"attention with heads {one.width} wide")


def norm_in_fp32(subject: Subject) -> Iterator[Hit]:
    for node in subject.facts.named("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2"):
        if subject.facts.dtype(node.inputs[0]) == HALF and sums_squares(node):
            yield Hit(name_of(node), f"{node.op_type} of squares in float16")
    for node in subject.facts.named("LayerNormalization", "RMSNormalization"):
        if attribute(node, "stash_type", 1) == HALF:
            yield Hit(name_of(node), f"{node.op_type} with stash_type float16")


def sums_squares(node: ir.Node) -> bool:
    """A reduction that squares what it sums, or sums what was squared."""
    if node.op_type in ("ReduceSumSquare", "ReduceL2"):
        return True
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    if producer is None:
        return False
    return producer.op_type == "Pow" or (producer.op_type == "Mul" and producer.inputs[0] is producer.inputs[1])


def within_fp16(subject: Subject) -> Iterator[Hit]:
    for value, worst in extreme_constants(subject):
        for node in sorted(infinite_at(subject, value), key=name_of):
            yield Hit(name_of(node), f"a constant of {worst:g} in float16")


def extreme_constants(subject: Subject) -> Iterator[tuple[ir.Value, float]]:
    """Small float constants with a value float16 has not, and that value."""
    facts = subject.facts
    made = (node.outputs[0] for node in facts.named("Constant", "ConstantOfShape"))
    for value in [*facts.model.graph.initializers.values(), *made]:
        if not any(node.op_type in MASKING or node.op_type == "Cast" for node, _ in value.uses()):
            continue  # a weight of products alone: it stays on disk
        producer = value.producer()
        filled = producer is not None and producer.op_type == "ConstantOfShape"
        tensor = attribute(producer, "value") if producer is not None and filled else facts.constant(value)
        if tensor is None or tensor.dtype not in (HALF, SINGLE) or tensor.size > READ:
            continue
        values = facts.array(tensor).astype(np.float32).reshape(-1)
        over = values[~(np.abs(values) <= LARGEST)]
        if over.size:
            yield value, float(over[0])


def infinite_at(subject: Subject, value: ir.Value) -> set[ir.Node]:
    """Where such a constant is, or becomes, float16."""
    found: set[ir.Node] = set()
    queue, seen = [value], set()
    while queue:
        value = queue.pop()
        if value in seen:
            continue
        seen.add(value)
        for node, _ in value.uses():
            if subject.facts.dtype(value) == HALF or (node.op_type == "Cast" and attribute(node, "to") == HALF):
                found.add(node)
            elif node.op_type in MASKING:
                queue.extend(node.outputs)
    return found


RULES: dict[str, Rule] = {
    "fp16-scales": Rule(
        "warning",
        "Q/DQ scales are float16, as all floats.",
        "what is dequantized has its scale's type: float32 all around, no fused attention, twice the memory"
        " [TensorRT-RTX 1.7.1, measured]",
        "store scales, biases and the rest of the floats as float16",
        half_scales,
    ),
    "fp16-attention": Rule(
        "warning",
        "Attention is computed in float16 or bfloat16.",
        "in float32 it is not fused: scores go through memory [TensorRT-RTX 1.7.1, measured]",
        "make queries, keys, values and the scales around them float16; the softmax alone may be float32",
        half_attention,
    ),
    "attention-all-or-none": Rule(
        "warning",
        "Of an attention's product inputs (q, k, probabilities, v) all are quantized, or none.",
        "partly quantized it is not fused, or is fused in float16 with the quantizing done for nothing"
        " [TensorRT-RTX 1.7.1, measured]",
        "leave both products of attention out of the quantization (NNCF: ignored scope)",
        all_or_none,
    ),
    "quantized-attention-output": Rule(
        "warning",
        "An INT8 attention's output is quantized too.",
        "quantized whole it is fused only if what comes out goes into a quantized layer [TensorRT-RTX 1.7.1, measured]",
        "quantize the output projection, or leave the attention in float16",
        attention_output,
    ),
    "fp8-attention": Rule(
        "warning",
        "Attention's products are not float8.",
        "TensorRT-RTX 1.7.1 fuses no float8 attention, whatever is around it (SM 8.9, measured)",
        "leave both products of attention out of the quantization",
        fp8_attention,
    ),
    "attention-head-width": Rule(
        "warning",
        "Attention's heads are 9 to 256 wide.",
        "there is no fused kernel for other widths [TensorRT-RTX 1.7.1, SM 7.5 to 12.0, measured]",
        "choose another number of heads; a model that is trained cannot be mended",
        head_width,
    ),
    "norm-in-fp32": Rule(
        "error",
        "Norms sum squares in float32.",
        "the square of 256 is already out of float16's range: the answer is inf or NaN, and nothing warns [arithmetic]",
        "cast to float32 before Pow and back after the division, or use LayerNormalization with stash_type 1",
        norm_in_fp32,
    ),
    "mask-in-fp16-range": Rule(
        "error",
        "Constants of a mask lie in float16's range.",
        "beyond 65504 float16 has only inf: a row that is masked out whole becomes NaN [arithmetic]",
        "clamp the mask to -65504 (numpy.finfo(numpy.float16).min)",
        within_fp16,
    ),
}
