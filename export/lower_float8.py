"""FP8 linear layers, spelled alike in both dialects: E4M3 quantize and dequantize nodes around a product.

TensorRT makes one FP8 product of them; ONNX Runtime on CPU computes them as they stand, in float, and so checks them.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from planish.export.lower_builder import Builder
from planish.export.reader import QuantizedLinear

__all__ = ["lower_float8"]


def lower_float8(build: Builder, x: ir.Value, layer: QuantizedLinear, name: str) -> ir.Value:
    """``x @ weight.T + bias`` for ``x`` float ``[..., in]``; E4M3 numbers become ``<name>.weight`` ``[in, out]``."""
    zero = build.once("float8 zero", lambda: build.weight("float8.zero", np.array(0, ml_dtypes.float8_e4m3fn)))

    def rounded() -> ir.Value:
        scale = build.constant(layer.input_scale, "float32")
        return build.op("DequantizeLinear", build.op("QuantizeLinear", x, scale, zero), scale, zero)

    values = build.weight(f"{name}.weight", layer.values.T)
    weight = build.op("DequantizeLinear", values, build.weight(f"{name}.scale", layer.scale[0, 0]))
    product = build.op("MatMul", build.once((layer.input_scale, x), rounded), weight)
    return product if layer.bias is None else build.op("Add", product, build.weight(f"{name}.bias", layer.bias))
