"""What interrupts the low precision of a graph: idle quantizers, float32 regions, casts, residuals kept in floats."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from planish.export.graph_products import MOVES, source
from planish.export.lint_graph import FLOATS, LintGraph, attribute, name_of
from planish.export.lint_rule import Subject
from planish.export.lint_rules_quantizers import feeds

__all__ = ["fp32_regions", "idle_pairs", "is_float_cast", "residual_adds"]

THROUGH = MOVES | {"Add", "Cast", "DequantizeLinear", "Mul", "QuantizeLinear"}
"""What may stand between a layer's last product and the sum of a residual."""
PRODUCTS = frozenset({"Attention", "Gemm", "MatMul"})
LAYER = 500  # values in a layer, at most


def is_float_cast(facts: LintGraph, node: ir.Node) -> bool:
    return facts.dtype(node.inputs[0]) in FLOATS and ir.DataType(attribute(node, "to", 0)) in FLOATS


def idle_pairs(subject: Subject) -> Iterator[ir.Node]:
    """Q/DQ pairs on activations from which no 8-bit product comes."""
    for node in subject.facts.named("QuantizeLinear"):
        if subject.facts.constant(node.inputs[0]) is None and not any(feeds(subject, node)):
            yield node


def fp32_regions(facts: LintGraph) -> list[list[ir.Node]]:
    """Connected float32 nodes between casts, if floats elsewhere are 16 bits wide; largest first."""
    wide = {node for node in facts.nodes if node.op_type not in ("Cast", "Constant") and computes_fp32(facts, node)}
    halves = (facts.dtype(output) for node in facts.nodes for output in node.outputs)
    if not any(dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) for dtype in halves):
        return []
    regions = []
    while wide:
        region, queue = [], [wide.pop()]
        while queue:
            node = queue.pop()
            region.append(node)
            near = [value.producer() for value in node.inputs if value is not None]
            near += [user for output in node.outputs for user, _ in output.uses()]
            fresh = {other for other in near if other in wide}
            wide -= fresh
            queue += [other for other in fresh if other is not None]
        regions.append(region)
    return sorted(regions, key=lambda region: (-len(region), name_of(region[0])))


def computes_fp32(facts: LintGraph, node: ir.Node) -> bool:
    return any(facts.dtype(output) == ir.DataType.FLOAT for output in node.outputs)


def residual_adds(facts: LintGraph) -> Iterator[bool]:
    """Each residual sum of a layer's output and what the layer began with; True if what it began with is quantized."""
    for node in facts.named("Add"):
        sides = [value for value in node.inputs if value is not None]
        if len(sides) == 2 and all(facts.constant(value) is None for value in sides):
            pairs = (sides, sides[::-1]) if facts.shape(sides[0]) == facts.shape(sides[1]) else ()  # else: a mask
            if any(from_product(facts, branch) and comes_from(branch, skipped) for skipped, branch in pairs):
                yield any(dequantized(side) for side in sides)


def comes_from(branch: ir.Value, skipped: ir.Value) -> bool:
    """``branch`` is computed from what ``skipped`` is, at most a layer earlier."""
    start = source(skipped, THROUGH - {"Add", "Mul"})
    queue, seen = [branch], {branch}
    while queue and len(seen) < LAYER:
        value = queue.pop(0)
        if value is start:
            return True
        node = value.producer()
        fresh = [one for one in (node.inputs if node is not None else ()) if one is not None and one not in seen]
        seen.update(fresh)
        queue += fresh
    return False


def dequantized(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def from_product(facts: LintGraph, value: ir.Value) -> bool:
    """A product's output, its bias added."""
    seen = 0
    queue = [value]
    while queue and seen < 16:
        seen += 1
        node = queue.pop().producer()
        if node is None:
            continue
        if node.op_type in PRODUCTS:
            return True
        if node.op_type in THROUGH:
            queue += [given for given in node.inputs if given is not None and facts.constant(given) is None]
    return False
