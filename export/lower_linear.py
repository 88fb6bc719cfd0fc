"""Linear layers in the `ort` dialect.

A quantized linear is spelled so that ONNX Runtime reaches its fastest integer kernel (unsigned activations times
signed weights) and still computes what the checkpoint computes: symmetric int8 activations, the formula of
compressed-tensors (``scale = max|x| / 127.5`` unless it is static, round half to even, clamp to -128..127).
QuantizeLinear does that with zero point 128; the int32 sums, corrected by that zero point, are the same integers. With
one scale a token it works in blocks, a token a block (opset 21), and the product is scaled and biased by nodes of its
own; with one scale a tensor the product's own node does both. Operator contracts: ONNX's Operators.md, ONNX Runtime's
ContribOperators.md.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import onnx_ir as ir

from planish.errors import CheckpointError
from planish.export.emit_graph import EmitGraph
from planish.export.emit_linear import emit_linear
from planish.export.lower_builder import CONTRIB, Builder
from planish.export.lower_float8 import lower_float8
from planish.export.reader import FloatLinear, QuantizedLinear

__all__ = ["lower_linear", "smoothed"]

_RANGE = 127.5
"""Half of the 255 steps between -128 and 127, as compressed-tensors counts."""


def lower_linear(build: Builder, x: ir.Value, layer: FloatLinear | QuantizedLinear, name: str) -> ir.Value:
    """``x @ weight.T + bias`` for ``x`` float ``[..., in]``; returns float ``[..., out]``.

    ``name`` is the module's; its integers become the initializer ``<name>.weight`` ``[in, out]``.
    """
    if isinstance(layer, FloatLinear) or layer.activations is None:
        # the emitter asks no more of a graph than Builder gives
        return emit_linear(cast(EmitGraph, build), x, layer, name, accuracy_level=4)
    if layer.is_float8:
        return lower_float8(build, x, layer, name)
    _check(layer, name)
    return _per_token(build, x, layer, name) if layer.activations == "token" else _one_scale(build, x, layer, name)


def _per_token(build: Builder, x: ir.Value, layer: QuantizedLinear, name: str) -> ir.Value:
    integers, scale = build.once(("token", x), lambda: _quantize_tokens(build, x, layer.shape[1]))
    product = _product(build, integers, build.constant(1.0, "float32"), build.constant(128, "uint8"), layer, name)
    scaled = build.op("Mul", product, scale)
    return scaled if layer.bias is None else build.op("Add", scaled, build.weight(f"{name}.bias", layer.bias))


def _one_scale(build: Builder, x: ir.Value, layer: QuantizedLinear, name: str) -> ir.Value:
    factor = layer.pre_quant_scale
    key = (layer.input_scale, None if factor is None else factor.tobytes(), x)
    integers, scale = build.once(
        key, lambda: _quantize_tensor(build, smoothed(build, x, layer, name), layer.input_scale)
    )
    bias = None if layer.bias is None else build.weight(f"{name}.bias", layer.bias)
    return _product(build, integers, scale, build.constant(128, "uint8"), layer, name, bias)


def smoothed(build: Builder, x: ir.Value, layer: QuantizedLinear, name: str) -> ir.Value:
    """``x`` times the layer's ``pre_quant_scale``, if it has one."""
    factor = layer.pre_quant_scale
    return x if factor is None else build.op("Mul", x, build.weight(f"{name}.pre_quant_scale", factor))


def _product(
    build: Builder,
    integers: ir.Value,
    scale: ir.Value,
    zero_point: ir.Value,
    layer: QuantizedLinear,
    name: str,
    bias: ir.Value | None = None,
) -> ir.Value:
    weight = build.weight(f"{name}.weight", layer.values.T)
    column = build.weight(f"{name}.scale", layer.scale[:, 0])
    return build.op("MatMulIntegerToFloat", integers, weight, scale, column, zero_point, None, bias, domain=CONTRIB)


def _quantize_tokens(build: Builder, x: ir.Value, width: int) -> tuple[ir.Value, ir.Value]:
    """uint8 ``[..., in]`` and float scales ``[..., 1]``."""
    largest = build.op("ReduceMax", build.op("Abs", x), build.constant([-1]), keepdims=1)
    scale = _scale(build, largest)
    # Every layer sees the same tokens: one tensor of zero points serves the whole graph.
    zero_point = build.once(
        "zero points", lambda: build.op("Expand", build.constant([128], "uint8"), build.op("Shape", scale))
    )
    integers = build.op("QuantizeLinear", x, scale, zero_point, axis=-1, block_size=width)
    return integers, scale


def _quantize_tensor(build: Builder, x: ir.Value, static: float | None) -> tuple[ir.Value, ir.Value]:
    """uint8 of the shape of ``x`` and one float scale, the ``static`` one or the input's own."""
    if static is not None:
        scale = build.constant(static, "float32")
    else:
        scale = _scale(build, build.op("ReduceMax", build.op("Abs", x), keepdims=0))
    return build.op("QuantizeLinear", x, scale, build.constant(128, "uint8")), scale


def _scale(build: Builder, largest: ir.Value) -> ir.Value:
    smallest = build.constant(np.finfo(np.float32).tiny, "float32")
    return build.op("Max", build.op("Div", largest, build.constant(_RANGE, "float32")), smallest)


def _check(layer: QuantizedLinear, name: str) -> None:
    if layer.bits != 8 or layer.zero_point is not None or layer.scale.shape[1] != 1:
        raise CheckpointError(
            f"{name} with symmetric 8-bit weights by channel, as its activations are 8 bit",
            f"{layer.bits} bits in {layer.scale.shape[1]} groups a row",
            "use the pass int8-linear, or weight-only without activations",
        )
