"""Rules about QuantizeLinear and DequantizeLinear: types, zero points, scales, and where the pairs stand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from planish.export.graph_products import Product, Quantized, reaches, source, transposed_right
from planish.export.lint_graph import attribute, name_of
from planish.export.lint_rule import Hit, Rule, Subject, spelled
from planish.export.lint_rules_operators import UNSUPPORTED

__all__ = ["PAIR", "RULES"]

PAIR = ("QuantizeLinear", "DequantizeLinear")
TYPES = frozenset({ir.DataType.INT8, ir.DataType.INT4, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT4E2M1})
OPSETS: dict[ir.DataType, int] = {ir.DataType.FLOAT8E4M3FN: 19, ir.DataType.INT4: 21, ir.DataType.FLOAT4E2M1: 23}
"""The first opset whose Q/DQ take a type (ONNX operator reference)."""


def quantized_type(subject: Subject, node: ir.Node) -> ir.DataType | None:
    """What a Q makes, or a DQ takes."""
    facts = subject.facts
    return facts.dtype(node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0])


def follows_quantize(node: ir.Node) -> bool:
    """A DQ whose Q says the same already."""
    found = source(node.inputs[0])
    producer = found.producer() if found is not None else None
    return node.op_type == "DequantizeLinear" and producer is not None and producer.op_type == "QuantizeLinear"


def given(node: ir.Node, index: int) -> ir.Value | None:
    """An optional input."""
    return node.inputs[index] if len(node.inputs) > index else None


def symmetric_zero_point(subject: Subject) -> Iterator[Hit]:
    for node in subject.facts.named(*PAIR):
        zero = given(node, 2)
        tensor = subject.facts.constant(zero)
        if zero is not None and tensor is None:
            yield Hit(name_of(node), f"zero point {zero.name} is computed")
        elif tensor is not None and np.any(subject.facts.array(tensor).astype(np.float32) != 0):
            values = subject.facts.array(tensor).astype(np.float32)
            yield Hit(name_of(node), f"zero point {values.reshape(-1)[np.flatnonzero(values)[0]]:g}")


def signed_type(subject: Subject) -> Iterator[Hit]:
    for node in subject.facts.named(*PAIR):
        dtype = quantized_type(subject, node)
        if dtype is not None and dtype not in TYPES and dtype != ir.DataType.INT32 and not follows_quantize(node):
            missing = " (no zero point: uint8 by default)" if node.op_type == PAIR[0] and given(node, 2) is None else ""
            yield Hit(name_of(node), f"{node.op_type} of {spelled(dtype)}{missing}")


def int32_bias(subject: Subject) -> Iterator[Hit]:
    for node in subject.facts.named("DequantizeLinear"):
        if subject.facts.dtype(node.inputs[0]) == ir.DataType.INT32:
            yield Hit(name_of(node), "DequantizeLinear of int32")


def positive_scale(subject: Subject) -> Iterator[Hit]:
    for node in subject.facts.named(*PAIR):
        tensor = subject.facts.constant(given(node, 1))
        if tensor is None:
            continue
        values = subject.facts.array(tensor).astype(np.float32)
        wrong = values[~(np.isfinite(values) & (values > 0))]
        if wrong.size:
            yield Hit(name_of(node), f"{wrong.size} of {values.size} scales like {wrong.reshape(-1)[0]:g}")


def constant_scale(subject: Subject) -> Iterator[Hit]:
    for node in subject.facts.named(*PAIR):
        scale = given(node, 1)
        if not subject.facts.foldable(scale):
            yield Hit(name_of(node), f"scale {scale.name if scale is not None else 'missing'} is computed")


def quantized_constant(subject: Subject) -> Iterator[Hit]:
    graph = subject.facts.model.graph
    constants = [*graph.initializers.values(), *(node.outputs[0] for node in subject.facts.named("Constant"))]
    for value in constants:
        tensor = subject.facts.constant(value)
        if tensor is None or tensor.dtype not in TYPES:
            continue
        for node, index in value.uses():
            if node.domain or node.op_type in UNSUPPORTED:
                continue  # refused for a better reason
            if not (node.op_type in PAIR and (index == 2 or (index == 0 and node.op_type == PAIR[1]))):
                yield Hit(name_of(node), f"{spelled(tensor.dtype)} constant {value.name} before {node.op_type}")


def qdq_opset(subject: Subject) -> Iterator[Hit]:
    for node in subject.facts.named(*PAIR):
        needed = 13
        if subject.facts.dtype(given(node, 1)) in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            needed = 19
        dtype = quantized_type(subject, node)
        needed = max(needed, OPSETS.get(dtype, 13) if dtype is not None else 13)
        needed = max(needed, 21 if attribute(node, "block_size", 0) else 13)
        if subject.facts.opset < needed and not follows_quantize(node):
            yield Hit(name_of(node), f"opset {subject.facts.opset}, {spelled(dtype)} so spelled needs {needed}")


def channels(subject: Subject, node: ir.Node) -> int | None:
    """How many scales a Q or DQ has along its axis; None for one scale, or blocks."""
    shape = subject.facts.shape(given(node, 1))
    return shape[0] if shape is not None and len(shape) == 1 and shape[0] != 1 else None


def per_tensor_activation(subject: Subject) -> Iterator[Hit]:
    for node in subject.facts.named("QuantizeLinear"):
        if subject.facts.constant(node.inputs[0]) is None and (found := channels(subject, node)) is not None:
            yield Hit(name_of(node), f"an activation with {found} scales")


def output_channel_scale(subject: Subject) -> Iterator[Hit]:
    for product in subject.products.all:
        if product.quantized and product.right is not None and product.right.weight:
            axis = scale_axis(subject, product, product.right)
            if axis == 0:
                yield Hit(name_of(product.right.node), f"scales along the inner axis of {name_of(product.node)}")


def scale_axis(subject: Subject, product: Product, weight: Quantized) -> int | None:
    """The axis, 0 inner or 1 output channels, of ``[in, out]`` that a two-axis weight's scales run along."""
    shape = subject.facts.shape(weight.node.inputs[0])
    if channels(subject, weight.node) is None or shape is None or len(shape) != 2:
        return None
    axis = attribute(weight.node, "axis", 1) % 2
    value = product.node.inputs[1]
    turned = transposed_right(product.node)
    while value is not None and (node := value.producer()) is not None and node is not weight.node:
        turned ^= node.op_type == "Transpose"
        value = node.inputs[0]
    return int(axis ^ turned)


def feeds(subject: Subject, quantize: ir.Node) -> list[bool]:
    """For each reader of what a Q makes, dequantized: is it a product whose inputs are all quantized?"""
    told = []
    for node, _ in reaches(quantize.outputs[0]):
        if node.op_type != "DequantizeLinear":
            told.append(False)
            continue
        for user, _ in reaches(node.outputs[0]):
            product = subject.products.of_node.get(user)
            told.append(product.quantized if product is not None else user.op_type in ("Attention", "Conv"))
    return told


def after_product(subject: Subject, node: ir.Node) -> bool:
    """A Q straight on a product's output, that is not the input of a quantized product alone."""
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    told = feeds(subject, node)
    return producer is not None and producer in subject.products.of_node and not (told and all(told))


def quantized_product_output(subject: Subject) -> Iterator[Hit]:
    for node in subject.facts.named("QuantizeLinear"):
        if after_product(subject, node):
            producer = node.inputs[0].producer() if node.inputs[0] is not None else None
            yield Hit(name_of(node), f"on the output of {name_of(producer) if producer is not None else 'a product'}")


def quantize_feeds_nothing(subject: Subject) -> Iterator[Hit]:
    for node in subject.facts.named("QuantizeLinear"):
        idle = subject.facts.constant(node.inputs[0]) is None and not any(feeds(subject, node))
        if idle and not after_product(subject, node):
            yield Hit(name_of(node), "no product is computed from it in 8 bits")


RULES: dict[str, Rule] = {
    "symmetric-zero-point": Rule(
        "error",
        "Zero points are absent or 0.",
        "TensorRT quantizes symmetrically, and its parser refuses any other zero point [parser]",
        "quantize symmetrically: zero point 0, scale = largest magnitude / 127",
        symmetric_zero_point,
    ),
    "signed-type": Rule(
        "error",
        "Quantized types are int8, int4, float8e4m3fn (or float4e2m1); no uint8, uint4, int16.",
        "TensorRT refuses unsigned constants, and reads an unsigned activation as int8, which changes what is computed"
        " [parser, measured]",
        "quantize to int8 or int4, and give every QuantizeLinear a zero point of that type",
        signed_type,
    ),
    "int32-bias": Rule(
        "error",
        "No DequantizeLinear of int32: biases are floats.",
        "TensorRT dequantizes 8 and 4 bit types only [parser]",
        "store the bias as float16 (the product of its integers and scales)",
        int32_bias,
    ),
    "positive-scale": Rule(
        "error",
        "Scales are above 0 and finite.",
        "the parser wants scales above 0; an infinite one builds and answers nothing of use [parser, measured]",
        "write abs(scale) and negate the integers; replace a scale of 0, or one lost in float16, by 2**-23",
        positive_scale,
    ),
    "constant-scale": Rule(
        "error",
        "Scales are constants.",
        "TensorRT wants the scales when it builds; TensorRT-RTX 1.7.1 takes others and computes them at every run"
        " [TensorRT documentation, quantized types]",
        "calibrate, and store the scale as an initializer",
        constant_scale,
    ),
    "quantized-constant": Rule(
        "error",
        "An int8, int4 or float8 constant goes straight into a DequantizeLinear.",
        "the builder allows quantized constants before DequantizeLinear only [builder]",
        "dequantize first; Gather, Transpose, Reshape come after DequantizeLinear",
        quantized_constant,
    ),
    "qdq-opset": Rule(
        "error",
        "Opset 19 for 16 bit scales and float8, 21 for int4 and blocks.",
        "older versions of these operators do not take such inputs; ONNX Runtime refuses the file [ONNX operators]",
        "export with opset 21",
        qdq_opset,
    ),
    "per-tensor-activation": Rule(
        "warning",
        "An activation has one scale.",
        "with a scale a channel the product is computed in float16 [measured; onnx-tensorrt: activations per tensor]",
        "one scale an activation; move outlier channels into the weight (SmoothQuant)",
        per_tensor_activation,
    ),
    "output-channel-scale": Rule(
        "warning",
        "Scales of an INT8 weight run along its output channels.",
        "scales along the inner axis cannot be taken out of the sum: the product is computed in float16 [measured]",
        "one scale an output channel: axis 1 of [in, out], axis 0 of [out, in]",
        output_channel_scale,
    ),
    "quantized-product-output": Rule(
        "warning",
        "The output of a MatMul is not quantized, but for a quantized product.",
        "it rounds and no product gets faster; with quantized scores an INT8 attention is not fused [measured]",
        "remove this QuantizeLinear and its DequantizeLinear",
        quantized_product_output,
    ),
    "quantize-feeds-nothing": Rule(
        "warning",
        "What is quantized feeds a product whose inputs are all quantized.",
        "rounding and a pass over memory for nothing: the product stays in float [measured]",
        "quantize the other input too, or remove this pair",
        quantize_feeds_nothing,
    ),
}
