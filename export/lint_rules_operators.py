"""Rules about operators: which ones TensorRT knows, since when, and what types they mix."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from planish.export.lint_graph import FLOATS, name_of
from planish.export.lint_rule import Hit, Rule, Subject, spelled

__all__ = ["RULES", "SINCE", "UNSUPPORTED"]

NO_IMPORTER = """
    AffineGrid Bernoulli BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im
    Compress ConcatFromSequence ConvInteger CumProd DFT DeformConv Det DynamicQuantizeLinear ImageDecoder
    MatMulInteger MaxRoiPool MaxUnpool MelWeightMatrix Multinomial NegativeLogLikelihoodLoss Optional
    OptionalGetElement OptionalHasElement QLinearConv QLinearMatMul RegexFullMatch SequenceAt
    SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SequenceMap
    SoftmaxCrossEntropyLoss SplitToSequence StringConcat StringNormalizer StringSplit SwiGLU TfIdfVectorizer
    Unique
"""
UNSUPPORTED = frozenset(NO_IMPORTER.split())
"""Standard operators for which ``OnnxParser.supports_operator`` of TensorRT-RTX 1.7.1 says no; a test asks it."""
UNDECLARED = frozenset({"SimplifiedLayerNormalization"})
"""What ONNX Runtime writes into the standard domain though ONNX has it not (ModelOpt: everything with TRT_)."""
SINCE: dict[str, tuple[int, ...]] = {
    "Attention": (10, 14),
    "RMSNormalization": (10, 15),
    "RotaryEmbedding": (10, 15),
    "TensorScatter": (10, 15),
}
"""The first TensorRT whose ONNX parser reads an operator (its changelog)."""
ONE_TYPE = (
    "Add",
    "Concat",
    "Div",
    "Equal",
    "Gemm",
    "Greater",
    "GreaterOrEqual",
    "LayerNormalization",
    "Less",
    "LessOrEqual",
    "MatMul",
    "Max",
    "Min",
    "Mul",
    "Sub",
    "Sum",
)


def standard_domain(subject: Subject) -> Iterator[Hit]:
    for node in subject.facts.nodes:
        if node.domain != "" or node.op_type.startswith("TRT_") or node.op_type in UNDECLARED:
            yield Hit(name_of(node), f"{node.domain}.{node.op_type}".lstrip("."))


def supported_operator(subject: Subject) -> Iterator[Hit]:
    for node in subject.facts.nodes:
        if node.domain == "" and node.op_type in UNSUPPORTED:
            yield Hit(name_of(node), node.op_type)


def attention_one_output(subject: Subject) -> Iterator[Hit]:
    for node in subject.facts.named("Attention"):
        wanted = [output.name for output in node.outputs if output.name]
        if len(wanted) > 1:
            yield Hit(name_of(node), f"Attention with {len(wanted)} outputs")


def operator_version(subject: Subject) -> Iterator[Hit]:
    for node in subject.facts.named(*SINCE, "Pow", "QuantizeLinear", "DequantizeLinear"):
        what, needed = since(subject, node)
        old = [name for name, found in subject.versions.items() if found < needed]
        if old:
            yield Hit(name_of(node), f"{what} needs TensorRT {'.'.join(map(str, needed))}, there is {old[0]}")


def since(subject: Subject, node: ir.Node) -> tuple[str, tuple[int, ...]]:
    """What a node is, and the first TensorRT that reads it."""
    types = {subject.facts.dtype(value) for value in (*node.inputs, *node.outputs) if value is not None}
    if node.op_type == "Pow" and types & {ir.DataType.INT32, ir.DataType.INT64}:
        return "Pow with integers", (10, 8)
    if ir.DataType.FLOAT4E2M1 in types:
        return "float4e2m1", (10, 8)
    return node.op_type, SINCE.get(node.op_type, (0,))


def float_types_agree(subject: Subject) -> Iterator[Hit]:
    for node in subject.facts.named(*ONE_TYPE, "Where"):
        inputs = node.inputs[1:] if node.op_type == "Where" else node.inputs
        found = {subject.facts.dtype(value) for value in inputs} & FLOATS
        if len(found) > 1:
            types = " and ".join(sorted(spelled(dtype) for dtype in found if isinstance(dtype, ir.DataType)))
            yield Hit(name_of(node), f"{node.op_type} of {types}")


RULES: dict[str, Rule] = {
    "standard-domain": Rule(
        "error",
        "Only operators of the standard ONNX domain.",
        "TensorRT takes an operator of another domain for a plugin, or for the standard operator of that name"
        " [parser, measured]",
        "spell it with standard operators; quantized layers with QuantizeLinear and DequantizeLinear",
        standard_domain,
    ),
    "supported-operator": Rule(
        "error",
        "Only operators TensorRT's ONNX parser reads; not MatMulInteger, QLinearMatMul or DynamicQuantizeLinear.",
        "TensorRT's ONNX parser has no such operator [supports_operator]",
        "spell it with supported operators; INT8 products as QuantizeLinear, DequantizeLinear, MatMul",
        supported_operator,
    ),
    "attention-one-output": Rule(
        "error",
        "An Attention operator has one output: no present key and value.",
        "TensorRT reads Attention nodes with one output only [parser]",
        "concatenate past and new keys and values before it, and give those out",
        attention_one_output,
    ),
    "operator-version": Rule(
        "error",
        "No operator newer than the TensorRT it is built with (Attention 10.14; RMSNormalization, RotaryEmbedding,"
        " TensorScatter 10.15; Pow with integers, float4e2m1 10.8).",
        "its ONNX parser does not know the operator yet [onnx-tensorrt changelog]",
        "decompose the operator, or install that TensorRT",
        operator_version,
        needs="profile",
    ),
    "float-types-agree": Rule(
        "error",
        "The floats an operator takes have one type.",
        "a strongly typed network never casts by itself, and refuses the node [builder]",
        "cast one input, or give the Q/DQ scales the other input's type",
        float_types_agree,
    ),
}
