"""Rules about the device, and about how the engine is built."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from planish.export.lint_graph import name_of
from planish.export.lint_rule import Hit, Rule, Subject, version
from planish.export.lint_rules_weights import blocked

__all__ = ["RULES"]

INT4 = frozenset({ir.DataType.INT4, ir.DataType.UINT4})
FP8 = frozenset({ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2})
BF16 = frozenset({ir.DataType.BFLOAT16})


def needs_capability(types: frozenset[ir.DataType], least: str) -> Callable[[Subject], Iterator[Hit]]:
    """A check that all targets have compute capability ``least``, if a node works with ``types``."""

    def check(subject: Subject) -> Iterator[Hit]:
        low = [target for target in subject.targets if version(target) < version(least)]
        if not low:
            return
        for node in subject.facts.nodes:
            if types & {subject.facts.dtype(value) for value in node.inputs if value is not None}:
                yield Hit(name_of(node), f"{node.op_type} for compute capability {', '.join(low)}")

    return check


def turing_product(subject: Subject) -> Iterator[Hit]:
    if not subject.rtx or "7.5" not in subject.targets:
        return
    for product in subject.products.all:
        if product.dtype == ir.DataType.FLOAT and not product.quantized:
            yield Hit(name_of(product.node), "a float32 product for compute capability 7.5")


def int8_block_version(subject: Subject) -> Iterator[Hit]:
    old = [name for name, found in subject.versions.items() if found[:2] <= (10, 3)]
    if not old:
        return
    for node in subject.facts.named("DequantizeLinear"):
        if subject.facts.dtype(node.inputs[0]) == ir.DataType.INT8 and blocked(subject, node):
            yield Hit(name_of(node), f"int8 in blocks, with {old[0]}")


def explicit_targets(subject: Subject) -> Iterator[Hit]:
    if subject.build is not None and subject.build.module == "tensorrt_rtx" and not subject.build.targets:
        yield Hit("the build", "no compute capability")


def refit_needs_gpu(subject: Subject) -> Iterator[Hit]:
    wanted = {"REFIT", "STRIP_PLAN"} & set(subject.build.flags) if subject.build is not None else set()
    if wanted and subject.build is not None and not subject.build.gpu:
        yield Hit("the build", f"{' and '.join(sorted(wanted))} without a GPU")


def rtx_timing_cache(subject: Subject) -> Iterator[Hit]:
    if subject.build is not None and subject.build.module == "tensorrt_rtx" and subject.build.timing_cache:
        yield Hit("the build", "a timing cache")


RULES: dict[str, Rule] = {
    "fp8-compute-capability": Rule(
        "error",
        "FP8 needs compute capability 8.9: no Turing, no Ampere, no Orin.",
        "the GPU has no such type, and the builder refuses it [builder, measured]",
        "export with INT8 for this device",
        needs_capability(FP8, "8.9"),
        needs="profile",
    ),
    "int4-compute-capability": Rule(
        "error",
        "INT4 weights need compute capability 8.0.",
        "the builder refuses INT4 for Turing [builder, measured]",
        "export with INT8 weights for this device",
        needs_capability(INT4, "8.0"),
        needs="profile",
    ),
    "bf16-compute-capability": Rule(
        "error",
        "bfloat16 needs compute capability 8.0.",
        "the builder refuses bfloat16 for Turing [builder, measured]",
        "export with float16 for this device",
        needs_capability(BF16, "8.0"),
        needs="profile",
    ),
    "turing-fp32-product": Rule(
        "error",
        "TensorRT-RTX has no float32 product for Turing (compute capability 7.5).",
        "the builder says: FP32 GEMM is not supported [builder, measured]",
        "make the floats float16",
        turing_product,
        needs="profile",
    ),
    "int8-block-version": Rule(
        "error",
        "INT8 weights in blocks need TensorRT above 10.3.",
        "TensorRT 10.3 (JetPack 6) has blocks for INT4 weights alone [TensorRT documentation, not tried here]",
        "one scale an output channel (group_size null), or a newer JetPack",
        int8_block_version,
        needs="profile",
    ),
    "explicit-targets": Rule(
        "error",
        "A build with TensorRT-RTX names its compute capabilities.",
        "without them FP8 builds silently for GPUs that cannot run it [measured]",
        "give the build its targets, or a profile with a GPU",
        explicit_targets,
        needs="build",
    ),
    "refit-needs-gpu": Rule(
        "error",
        "REFIT and STRIP_PLAN are asked for only where there is a GPU.",
        "the builder needs the device for them [builder, measured]",
        "build without these flags, or on the device",
        refit_needs_gpu,
        needs="build",
    ),
    "rtx-timing-cache": Rule(
        "error",
        "TensorRT-RTX is given no timing cache.",
        "it times nothing when it builds: it compiles kernels on the device [TensorRT-RTX documentation]",
        "leave the timing cache away; keep the runtime cache instead",
        rtx_timing_cache,
        needs="build",
    ),
}
