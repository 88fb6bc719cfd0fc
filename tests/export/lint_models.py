"""Graphs that break one lint rule, and what the rule's fix makes of them: the same maker, called otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from tests.export.tiny_graphs import HALF, SINGLE, WIDTH, Tiny, dequantized, float8, int4_weight, int8_weight, quantized

__all__ = [
    "attention_operator",
    "biased",
    "computed_scale",
    "contrib",
    "decomposed",
    "dynamic",
    "eight_bit_floats",
    "embedding",
    "float_weight",
    "four_bits",
    "inner_scales",
    "int4_activation",
    "int8_blocks",
    "linear",
    "masked",
    "mixed_scales",
    "norm",
    "packed",
    "per_channel_activation",
    "product_in",
    "product_output",
    "rms_norm",
    "squared",
    "stacked",
    "stashed",
    "sum_of",
    "turned",
    "unsigned_activation",
    "weight_with",
]


def linear(
    weight: Callable[[Tiny], ir.Value], *, quantize: Any = None, width: int = WIDTH, opset: int = 21
) -> ir.Model:
    """``x @ weight``, ``x`` quantized by ``quantize`` if given."""
    tiny = Tiny(opset)
    x = tiny.x(width=width)
    return tiny.model(tiny.op("MatMul", quantize(tiny, x) if quantize else x, weight(tiny)))


def float_weight(tiny: Tiny) -> ir.Value:
    return tiny.floats(WIDTH, WIDTH)


def weight_with(
    scale: float | None = None, zero: int | None = None, dtype: Any = np.int8
) -> Callable[[Tiny], ir.Value]:
    """An int8 weight whose third scale, zero point or type is another."""

    def make(tiny: Tiny) -> ir.Value:
        scales = np.full(WIDTH, 0.01, np.float16)
        scales[3] = 0.01 if scale is None else scale
        weight = tiny.const(tiny.random.integers(0, 127, (WIDTH, WIDTH)).astype(dtype))
        zeros = [] if zero is None else [tiny.const(np.full(WIDTH, zero, dtype))]
        return tiny.op("DequantizeLinear", weight, tiny.const(scales), *zeros, axis=1)

    return make


def contrib(domain: str) -> ir.Model:
    tiny = Tiny()
    x = tiny.x()
    bias = tiny.half(np.ones(WIDTH))
    if domain:
        return tiny.model(tiny.op("BiasGelu", x, bias, domain=domain))
    return tiny.model(tiny.op("Gelu", tiny.op("Add", x, bias)))


def packed(domain: str) -> ir.Model:
    tiny = Tiny()
    x = tiny.x()
    if not domain:
        return tiny.model(tiny.op("MatMul", x, int4_weight(tiny)))
    weight = tiny.const(tiny.random.integers(0, 255, (WIDTH, 2, 16)).astype(np.uint8))
    scales = tiny.half(np.full((WIDTH, 2), 0.01))
    settings = {"K": WIDTH, "N": WIDTH, "bits": 4, "block_size": 32}
    return tiny.model(tiny.op("MatMulNBits", x, weight, scales, domain=domain, **settings))


def dynamic(integer: bool) -> ir.Model:
    """ONNX Runtime's dynamic quantization against a static pair."""
    if not integer:
        return linear(int8_weight, quantize=quantized)
    tiny = Tiny()
    x = tiny.x(SINGLE)
    weight = tiny.const(tiny.random.integers(-127, 128, (WIDTH, WIDTH)).astype(np.int8))
    eight, scale, zero = tiny.op("DynamicQuantizeLinear", x, outputs=3)
    product = tiny.op("Cast", tiny.op("MatMulInteger", eight, weight, zero), to=int(SINGLE))
    return tiny.model(tiny.op("Mul", product, scale), dtype=SINGLE)


def attention_operator(cache: str) -> ir.Model:
    tiny = Tiny(opset=23)
    q, k, v = (tiny.input(name, ["batch", 4, "sequence", 32]) for name in "qkv")
    past = [tiny.input(f"past_{name}", ["batch", 4, "past", 32]) for name in "kv"]
    if cache == "present":
        out, key, value = tiny.op("Attention", q, k, v, None, *past, outputs=3)
        return tiny.model(out, key, value)
    keys, values = (tiny.op("Concat", old, new, axis=2) for old, new in zip(past, (k, v), strict=True))
    return tiny.model(tiny.op("Attention", q, keys, values), keys, values)


def rms_norm(whole: bool) -> ir.Model:
    tiny = Tiny(opset=23)
    x = tiny.x()
    if whole:
        return tiny.model(tiny.op("RMSNormalization", x, tiny.half(np.ones(WIDTH)), axis=-1))
    return tiny.model(norm(tiny, x, single=True))


def norm(tiny: Tiny, x: ir.Value, *, single: bool) -> ir.Value:
    """A decomposed RMS norm, in float32 or as it comes."""
    floats = np.float32 if single else np.float16
    wide = tiny.op("Cast", x, to=int(SINGLE)) if single else x
    squares = tiny.op("Pow", wide, tiny.const(np.asarray(2, floats)))
    mean = tiny.op("ReduceMean", squares, tiny.const(np.array([-1])), keepdims=1)
    root = tiny.op("Sqrt", tiny.op("Add", mean, tiny.const(np.asarray(1e-3, floats))))
    normed = tiny.op("Div", wide, root)
    return tiny.op("Cast", normed, to=int(HALF)) if single else normed


def decomposed(single: bool) -> ir.Model:
    tiny = Tiny()
    return tiny.model(norm(tiny, tiny.x(), single=single))


def stashed(stash: int) -> ir.Model:
    tiny = Tiny()
    ones, zeros = tiny.half(np.ones(WIDTH)), tiny.half(np.zeros(WIDTH))
    return tiny.model(tiny.op("LayerNormalization", tiny.x(), ones, zeros, axis=-1, stash_type=stash))


def sum_of(floats: Any) -> ir.Model:
    tiny = Tiny()
    return tiny.model(tiny.op("Add", tiny.x(), tiny.const(np.ones(WIDTH, floats))))


def mixed_scales(floats: Any) -> ir.Model:
    return linear(lambda tiny: int8_weight(tiny, floats=floats))


def squared(exponent: Any) -> ir.Model:
    tiny = Tiny()
    return tiny.model(tiny.op("Pow", tiny.x(), tiny.const(np.asarray(exponent))))


def masked(fill: float, how: str) -> ir.Model:
    """Scores masked with ``fill``: by Where in float16, or by a product in float32 that is cast."""
    tiny = Tiny()
    x = tiny.input("x", ["batch", "sequence", 32])
    scores = tiny.op("MatMul", x, tiny.op("Transpose", x, perm=[0, 2, 1]))
    if how == "where":
        mask = tiny.input("mask", [1, 1, 1], ir.DataType.BOOL)
        return tiny.model(tiny.op("Softmax", tiny.op("Where", mask, scores, tiny.half(fill)), axis=-1))
    mask = tiny.input("mask", [1, 1, 1], SINGLE)
    added = tiny.op("Cast", tiny.op("Mul", mask, tiny.const(np.asarray(fill, np.float32))), to=int(HALF))
    return tiny.model(tiny.op("Softmax", tiny.op("Add", scores, added), axis=-1))


def unsigned_activation(tiny: Tiny, x: ir.Value) -> ir.Value:
    """A QuantizeLinear without a zero point makes uint8, says ONNX."""
    scale = tiny.half(0.05)
    return tiny.op("DequantizeLinear", tiny.op("QuantizeLinear", x, scale), scale)


def biased(integer: bool) -> ir.Model:
    tiny = Tiny()
    product = tiny.op("MatMul", quantized(tiny, tiny.x()), int8_weight(tiny))
    if integer:
        bias = dequantized(tiny, tiny.const(np.arange(WIDTH, dtype=np.int32)), np.float16(0.001))
    else:
        bias = tiny.half(np.arange(WIDTH) * 0.001)
    return tiny.model(tiny.op("Add", product, bias))


def computed_scale(tiny: Tiny, x: ir.Value) -> ir.Value:
    return quantized(tiny, x, tiny.op("ReduceMax", tiny.op("Abs", x), keepdims=0))


def embedding(gather_first: bool) -> ir.Model:
    tiny = Tiny()
    ids = tiny.input("ids", ["batch", "sequence"], ir.DataType.INT64)
    table = tiny.const(tiny.random.integers(-127, 128, (100, WIDTH)).astype(np.int8))
    if gather_first:
        return tiny.model(dequantized(tiny, tiny.op("Gather", table, ids), np.float16(0.01)))
    return tiny.model(tiny.op("Gather", dequantized(tiny, table, np.full(100, 0.01), axis=0), ids))


def turned(transpose_first: bool) -> ir.Model:
    """A weight stored ``[out, in]``."""
    tiny = Tiny()
    x = tiny.x()
    weight = tiny.const(tiny.random.integers(-127, 128, (WIDTH, WIDTH)).astype(np.int8))
    scales = np.full(WIDTH, 0.01)
    if transpose_first:
        right = dequantized(tiny, tiny.op("Transpose", weight, perm=[1, 0]), scales, axis=1)
    else:
        right = tiny.op("Transpose", dequantized(tiny, weight, scales, axis=0), perm=[1, 0])
    return tiny.model(tiny.op("MatMul", x, right))


def per_channel_activation(tiny: Tiny, x: ir.Value) -> ir.Value:
    scale, zero = tiny.half(np.linspace(0.01, 0.1, WIDTH)), tiny.const(np.zeros(WIDTH, np.int8))
    eight = tiny.op("QuantizeLinear", x, scale, zero, axis=1)
    return tiny.op("DequantizeLinear", eight, scale, zero, axis=1)


def inner_scales(axis: int) -> ir.Model:
    def weight(tiny: Tiny) -> ir.Value:
        integers = tiny.const(tiny.random.integers(-127, 128, (WIDTH, WIDTH)).astype(np.int8))
        return dequantized(tiny, integers, np.linspace(0.01, 0.02, WIDTH), axis=axis)

    return linear(weight, quantize=quantized)


def product_output(quantize: bool) -> ir.Model:
    tiny = Tiny()
    product = tiny.op("MatMul", quantized(tiny, tiny.x()), int8_weight(tiny))
    out = quantized(tiny, product) if quantize else product
    return tiny.model(tiny.op("Mul", tiny.op("Add", out, tiny.half(np.ones(WIDTH))), tiny.half(0.5)))


def four_bits(shape: tuple[int, ...], scales: tuple[int, ...], **settings: Any) -> ir.Model:
    return linear(lambda tiny: int4_weight(tiny, shape, scales, **settings), width=shape[-2])


def stacked(whole: bool) -> ir.Model:
    """A weight of three axes, and the same as two."""
    tiny = Tiny()
    x = tiny.input("x", ["batch", "sequence", WIDTH])
    weight = int4_weight(tiny, (1, WIDTH, WIDTH), (1, 2, WIDTH), axis=1) if whole else int4_weight(tiny)
    return tiny.model(tiny.op("MatMul", x, weight))


def int4_activation(tiny: Tiny, x: ir.Value) -> ir.Value:
    return quantized(tiny, x, 0.1, tiny.const(np.zeros((), ml_dtypes.int4), ir.DataType.INT4))


def int8_blocks(tiny: Tiny) -> ir.Value:
    weight = tiny.const(tiny.random.integers(-127, 128, (WIDTH, WIDTH)).astype(np.int8))
    return dequantized(tiny, weight, np.full((2, WIDTH), 0.01), axis=0, block_size=32)


def eight_bit_floats() -> ir.Model:
    tiny = Tiny()
    weight = tiny.const(
        tiny.random.normal(size=(WIDTH, WIDTH)).astype(ml_dtypes.float8_e4m3fn), ir.DataType.FLOAT8E4M3FN
    )
    right = tiny.op("DequantizeLinear", weight, tiny.half(0.01), float8(tiny))
    return tiny.model(tiny.op("MatMul", quantized(tiny, tiny.x(), 0.05, float8(tiny)), right))


def product_in(dtype: ir.DataType, floats: Any) -> ir.Model:
    tiny = Tiny()
    x = tiny.x(dtype)
    weight = (tiny.random.normal(size=(WIDTH, WIDTH)) * 0.1).astype(floats)
    return tiny.model(tiny.op("MatMul", x, tiny.const(weight, dtype)), dtype=dtype)
