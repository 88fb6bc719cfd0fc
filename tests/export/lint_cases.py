"""For every lint rule a graph that breaks it, the graph its fix makes of it, and what TensorRT-RTX does with both.

``rtx`` says what becomes of the broken graph: ``refused`` by the parser or builder; ``slower``: it builds, and
``costs`` says what the plan of the fixed one has over it; ``wrong``: it builds, and computes something else;
``elsewhere``: TensorRT-RTX takes it, and the rule is about another TensorRT or the device (``why``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from planish.export.lint import Build
from tests.export.lint_models import (
    attention_operator,
    biased,
    computed_scale,
    contrib,
    decomposed,
    dynamic,
    eight_bit_floats,
    embedding,
    float_weight,
    four_bits,
    inner_scales,
    int4_activation,
    int8_blocks,
    linear,
    masked,
    mixed_scales,
    packed,
    per_channel_activation,
    product_in,
    product_output,
    rms_norm,
    squared,
    stacked,
    stashed,
    sum_of,
    turned,
    unsigned_activation,
    weight_with,
)
from tests.export.tiny_graphs import SINGLE, Built, attention, int4_weight, int8_weight, quantized

__all__ = ["CASES", "Case"]

Maker = Callable[[], ir.Model]


@dataclass(frozen=True)
class Case:
    """One example. ``sm`` is what both graphs are built for, ``profile`` and ``build`` what the linter is told."""

    rule: str
    name: str
    broken: Maker
    fixed: Maker
    rtx: str = "refused"
    why: str = ""
    costs: Callable[[Built], Any] | None = None
    sm: str = "8.9"
    profile: str | None = None
    build: Build | None = None
    fixed_build: Build | None = None


def fused(built: Built) -> int:
    return built.fused_attentions


def int8_products(built: Built) -> int:
    return built.products.count("int8")


def saved_kernels(built: Built) -> int:
    return -len(built.kernels)


static = partial(linear, int8_weight, quantize=quantized)
weight_only = partial(linear, int8_weight)
w4 = partial(linear, int4_weight)
plain = partial(linear, float_weight)
RTX = partial(Build, "tensorrt_rtx", "1.7.1.116")

CASES = [
    Case("standard-domain", "BiasGelu", partial(contrib, "com.microsoft"), partial(contrib, "")),
    Case("standard-domain", "MatMulNBits", partial(packed, "com.microsoft"), partial(packed, "")),
    Case("supported-operator", "MatMulInteger", partial(dynamic, True), partial(dynamic, False)),
    Case(
        "attention-one-output",
        "present",
        partial(attention_operator, "present"),
        partial(attention_operator, "concat"),
    ),
    Case(
        "operator-version",
        "JetPack 6",
        partial(rms_norm, True),
        partial(rms_norm, False),
        "elsewhere",
        "TensorRT 10.3 of JetPack 6",
        profile="jetson-agx-orin-64gb",
    ),
    Case(
        "operator-version",
        "integer exponent",
        partial(squared, np.int64(2)),
        partial(squared, np.float16(2)),
        "elsewhere",
        "TensorRT 10.3 of JetPack 6",
        profile="jetson-orin-nano-8gb",
    ),
    Case("float-types-agree", "sum", partial(sum_of, np.float32), partial(sum_of, np.float16)),
    Case("float-types-agree", "scales", partial(mixed_scales, np.float32), partial(mixed_scales, np.float16)),
    Case("symmetric-zero-point", "weight", partial(linear, weight_with(zero=3)), partial(linear, weight_with(zero=0))),
    Case(
        "symmetric-zero-point",
        "activation",
        partial(linear, int8_weight, quantize=lambda tiny, x: quantized(tiny, x, zero=-5)),
        static,
    ),
    Case("signed-type", "uint8 weight", partial(linear, weight_with(dtype=np.uint8)), weight_only),
    Case("signed-type", "uint4 weight", partial(four_bits, (64, 64), (2, 64), dtype=ir.DataType.UINT4), w4),
    Case(
        "signed-type",
        "no zero point",
        partial(linear, int8_weight, quantize=unsigned_activation),
        static,
        "wrong",
        "read as int8, so that what lies above 127 steps is cut off",
    ),
    Case("int32-bias", "bias", partial(biased, True), partial(biased, False)),
    Case("positive-scale", "negative", partial(linear, weight_with(-0.01)), weight_only),
    Case("positive-scale", "zero", partial(linear, weight_with(0.0)), weight_only),
    Case("positive-scale", "NaN", partial(linear, weight_with(np.nan)), weight_only),
    Case("positive-scale", "inf", partial(linear, weight_with(np.inf)), weight_only, "wrong", "a column of inf or NaN"),
    Case(
        "constant-scale",
        "computed",
        partial(linear, int8_weight, quantize=computed_scale),
        static,
        "elsewhere",
        "TensorRT wants the scale at build time",
    ),
    Case("quantized-constant", "embedding", partial(embedding, True), partial(embedding, False)),
    Case("quantized-constant", "transpose", partial(turned, True), partial(turned, False)),
    Case("qdq-opset", "float16 scales", partial(static, opset=17), static, "elsewhere", "ONNX Runtime, the checker"),
    Case("qdq-opset", "int4", partial(w4, opset=20), w4, "elsewhere", "ONNX Runtime, the checker"),
    Case(
        "per-tensor-activation",
        "channels",
        partial(linear, int8_weight, quantize=per_channel_activation),
        static,
        "slower",
        "the product is done in float16",
        int8_products,
    ),
    Case(
        "output-channel-scale",
        "inner axis",
        partial(inner_scales, 0),
        partial(inner_scales, 1),
        "slower",
        "the product is done in float16",
        int8_products,
    ),
    Case(
        "quantized-product-output",
        "before the bias",
        partial(product_output, True),
        partial(product_output, False),
        "elsewhere",
        "TensorRT-RTX rounds within the kernel that adds the bias: no gain, and less exact",
    ),
    Case(
        "quantized-product-output",
        "scores",
        partial(attention, "qkpv", scores_quantized=True),
        partial(attention, "qkpv"),
        "slower",
        "no fused attention",
        fused,
    ),
    Case(
        "quantize-feeds-nothing",
        "float weight",
        partial(linear, float_weight, quantize=quantized),
        plain,
        "slower",
        "a kernel that quantizes, for a float16 product",
        saved_kernels,
    ),
    Case(
        "int4-constant",
        "activation",
        partial(linear, int4_weight, quantize=int4_activation),
        w4,
        "elsewhere",
        "TensorRT has INT4 for weights only",
    ),
    Case(
        "int4-rank", "3 axes", partial(stacked, True), partial(stacked, False), "elsewhere", "documented for matrices"
    ),
    Case(
        "int4-even-width",
        "33",
        partial(four_bits, (64, 33), (2, 33)),
        partial(four_bits, (64, 34), (2, 34)),
        "elsewhere",
        "the parser of TensorRT 10 refuses it",
    ),
    Case(
        "int4-blocked",
        "a scale a channel",
        partial(four_bits, (64, 64), (64,), axis=1, block=0),
        w4,
        "slower",
        "a kernel that dequantizes to memory at every run",
        saved_kernels,
    ),
    Case("one-blocked-axis", "two axes", partial(four_bits, (64, 64), (2, 2)), w4),
    Case("one-blocked-axis", "ragged", partial(four_bits, (80, 64), (3, 64)), partial(four_bits, (96, 64), (3, 64))),
    Case(
        "int8-block-slow",
        "blocks",
        partial(linear, int8_blocks),
        weight_only,
        "slower",
        "a kernel that dequantizes to memory at every run",
        saved_kernels,
    ),
    Case(
        "fp16-scales",
        "float32 scales",
        partial(attention, floats=np.float32),
        attention,
        "slower",
        "no fused attention",
        fused,
    ),
    Case(
        "fp16-attention",
        "float32",
        partial(attention, floats=np.float32, linears="float"),
        partial(attention, linears="float"),
        "slower",
        "no fused attention",
        fused,
    ),
    Case("attention-all-or-none", "q k", partial(attention, "qk"), attention, "slower", "no fused attention", fused),
    Case("attention-all-or-none", "p v", partial(attention, "pv"), attention, "slower", "no fused attention", fused),
    Case(
        "attention-all-or-none",
        "v alone",
        partial(attention, "v"),
        partial(attention, "qkpv"),
        "elsewhere",
        "TensorRT-RTX fuses it in float16 all the same; what is quantized is lost accuracy for nothing",
    ),
    Case(
        "quantized-attention-output",
        "float projection",
        partial(attention, "qkpv", output_quantized=False),
        partial(attention, "qkpv"),
        "slower",
        "no fused attention",
        fused,
    ),
    Case(
        "fp8-attention", "all", partial(attention, "qkpv", fp8=True), attention, "slower", "no fused attention", fused
    ),
    Case(
        "attention-head-width",
        "8",
        partial(attention, width=8),
        partial(attention, width=16),
        "slower",
        "no fused attention",
        fused,
    ),
    Case(
        "norm-in-fp32",
        "decomposed",
        partial(decomposed, False),
        partial(decomposed, True),
        "wrong",
        "inf where a square passes 65504",
    ),
    Case("norm-in-fp32", "stash_type", partial(stashed, 10), partial(stashed, 1), "wrong", "sums in float16"),
    Case(
        "mask-in-fp16-range",
        "-inf",
        partial(masked, -np.inf, "where"),
        partial(masked, -65504.0, "where"),
        "wrong",
        "NaN where all is masked",
    ),
    Case(
        "mask-in-fp16-range",
        "cast",
        partial(masked, -3.4e38, "cast"),
        partial(masked, -65504.0, "cast"),
        "wrong",
        "NaN where all is masked",
    ),
    Case("fp8-compute-capability", "A10", eight_bit_floats, static, sm="8.6", profile="a10"),
    Case("int4-compute-capability", "T4", w4, weight_only, sm="7.5", profile="t4"),
    Case(
        "bf16-compute-capability",
        "T4",
        partial(product_in, ir.DataType.BFLOAT16, ml_dtypes.bfloat16),
        plain,
        sm="7.5",
        profile="t4",
    ),
    Case(
        "turing-fp32-product",
        "T4",
        partial(product_in, SINGLE, np.float32),
        plain,
        sm="7.5",
        profile="t4",
        build=RTX(("7.5",)),
    ),
    Case(
        "int8-block-version",
        "JetPack 6",
        partial(linear, int8_blocks),
        weight_only,
        "elsewhere",
        "TensorRT 10.3 of JetPack 6",
        profile="jetson-orin-nano-8gb",
    ),
    Case(
        "explicit-targets",
        "FP8",
        eight_bit_floats,
        eight_bit_floats,
        "elsewhere",
        "it builds, also for GPUs that cannot run it",
        build=RTX(),
        fixed_build=RTX(("8.9",)),
    ),
    Case(
        "refit-needs-gpu",
        "REFIT",
        plain,
        plain,
        "elsewhere",
        "a flag of the build; see test_refit_without_a_gpu_is_refused",
        build=RTX(("8.9",), ("REFIT",)),
        fixed_build=RTX(("8.9",)),
    ),
    Case(
        "rtx-timing-cache",
        "cache",
        plain,
        plain,
        "elsewhere",
        "a setting of the build",
        build=RTX(("8.9",), timing_cache=True),
        fixed_build=RTX(("8.9",)),
    ),
]
