"""Rules about weights stored in 4 bits or in blocks."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from planish.export.lint_graph import attribute, name_of
from planish.export.lint_rule import Hit, Rule, Subject

__all__ = ["RULES", "blocked"]

FOUR_BITS = frozenset({ir.DataType.INT4, ir.DataType.UINT4})


def int4_nodes(subject: Subject) -> Iterator[ir.Node]:
    """Every DequantizeLinear of 4 bits."""
    return (
        node for node in subject.facts.named("DequantizeLinear") if subject.facts.dtype(node.inputs[0]) in FOUR_BITS
    )


def weight_shape(subject: Subject, node: ir.Node) -> tuple[int | None, ...]:
    """The shape of what a node dequantizes; () if it is not known."""
    return subject.facts.shape(node.inputs[0]) or ()


def scale_shape(subject: Subject, node: ir.Node) -> tuple[int | None, ...]:
    return subject.facts.shape(node.inputs[1]) or () if len(node.inputs) > 1 else ()


def blocked(subject: Subject, node: ir.Node) -> bool:
    """It has as many scale axes as the weight has: blocks."""
    return bool(attribute(node, "block_size", 0)) or len(scale_shape(subject, node)) > 1


def int4_constant(subject: Subject) -> Iterator[Hit]:
    for node in int4_nodes(subject):
        if not subject.products.is_weight(node):
            yield Hit(name_of(node), "4 bits that are no constant")


def int4_rank(subject: Subject) -> Iterator[Hit]:
    for node in int4_nodes(subject):
        shape = weight_shape(subject, node)
        if shape and len(shape) != 2:
            yield Hit(name_of(node), f"an INT4 weight of {len(shape)} axes")


def int4_even_width(subject: Subject) -> Iterator[Hit]:
    for node in int4_nodes(subject):
        shape = weight_shape(subject, node)
        if shape and shape[-1] is not None and shape[-1] % 2:
            yield Hit(name_of(node), f"an INT4 weight {shape[-1]} wide")


def int4_blocked(subject: Subject) -> Iterator[Hit]:
    for node in int4_nodes(subject):
        if not blocked(subject, node):
            yield Hit(name_of(node), "INT4 without blocks")


def one_blocked_axis(subject: Subject) -> Iterator[Hit]:
    for node in subject.facts.named("DequantizeLinear"):
        weight, scale = weight_shape(subject, node), scale_shape(subject, node)
        if not blocked(subject, node) or len(weight) != len(scale):
            continue
        cut = [at for at, (size, parts) in enumerate(zip(weight, scale, strict=True)) if size != parts]
        ragged = [at for at in cut if not whole_blocks(weight[at], scale[at])]
        if len(cut) > 1 or ragged:
            yield Hit(name_of(node), f"a weight {list(weight)} with scales {list(scale)}")


def whole_blocks(size: int | None, parts: int | None) -> bool:
    return size is None or not parts or size % parts == 0


def int8_block_slow(subject: Subject) -> Iterator[Hit]:
    for node in subject.facts.named("DequantizeLinear"):
        if subject.facts.dtype(node.inputs[0]) == ir.DataType.INT8 and blocked(subject, node):
            yield Hit(name_of(node), "an INT8 weight in blocks")


RULES: dict[str, Rule] = {
    "int4-constant": Rule(
        "error",
        "INT4 is for constant weights.",
        "TensorRT quantizes to INT4 weights only [TensorRT documentation, quantized types]",
        "keep activations in int8 or float16",
        int4_constant,
    ),
    "int4-rank": Rule(
        "error",
        "An INT4 weight has two axes.",
        "INT4 blocks are documented for matrices; the parser refuses one axis [TensorRT documentation, parser]",
        "split or reshape the weight into matrices before it is quantized",
        int4_rank,
    ),
    "int4-even-width": Rule(
        "error",
        "The last axis of an INT4 weight is even.",
        "two values share a byte, and the parser up to TensorRT 10.x refuses an odd last axis [onnx-tensorrt 10]",
        "store the weight transposed, or keep this one in int8",
        int4_even_width,
    ),
    "int4-blocked": Rule(
        "error",
        "An INT4 weight is quantized in blocks.",
        "TensorRT has INT4 in blocks only; TensorRT-RTX takes a scale a channel, and dequantizes to memory at every run"
        " [TensorRT documentation, measured]",
        "quantize with a group size of 32, 64 or 128: one scale a group",
        int4_blocked,
    ),
    "one-blocked-axis": Rule(
        "error",
        "Blocks run along one axis and fill it.",
        "the parser wants one blocked axis, divided into whole blocks [parser]",
        "group along the input axis, with a group size that divides it",
        one_blocked_axis,
    ),
    "int8-block-slow": Rule(
        "warning",
        "An INT8 weight has one scale an output channel, not blocks.",
        "TensorRT-RTX 1.7.1 dequantizes blocks of int8 to memory before every product; scales a channel are fused"
        " [measured]",
        "one scale an output channel (group_size null)",
        int8_block_slow,
    ),
}
