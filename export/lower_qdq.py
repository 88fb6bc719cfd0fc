"""Spell a traced encoder in the `qdq` dialect: standard operators, explicit quantize and dequantize nodes.

What comes out is still float32, the *twin* whose arithmetic is compared with torch; `to_half.py` makes the float16
graph of it that is shipped. TensorRT fuses ``QuantizeLinear, DequantizeLinear, MatMul`` with the weight's
``DequantizeLinear`` into an int8 product, the Mul of a ``pre_quant_scale`` into the kernel that quantizes, and
``MatMul, Add, Softmax, MatMul`` into one attention kernel if none of its products is quantized (NVIDIA, TensorRT
documentation, "Working with Quantized Types"; seen in plans of TensorRT-RTX 1.7, docs/LOG.md).
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from planish.errors import CheckpointError
from planish.export.lower_float8 import lower_float8
from planish.export.lower_linear import smoothed
from planish.export.lower_walk import Lowering
from planish.export.reader import CheckpointReader, QuantizedLinear

__all__ = ["lower_to_qdq"]


def lower_to_qdq(model: ir.Model, reader: CheckpointReader, prefix: str) -> dict[str, str]:
    """Replace, in place, every marker node and every Gather of a quantized table; returns words for ``precision``.

    Raises ``CheckpointError`` for layers TensorRT has no form for: scales found at run time, zero points.
    """
    lowering = _ToQdq(model, reader, prefix)
    lowering.run()
    return lowering.precision()


class _ToQdq(Lowering):
    def __init__(self, model: ir.Model, reader: CheckpointReader, prefix: str) -> None:
        super().__init__(model, reader, prefix)
        self.tables: dict[str, tuple[ir.Value, ir.Value]] = {}

    def float_linear(self, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
        product = self.build.op("MatMul", x, self.build.op("Transpose", weight, perm=[1, 0]))
        return product if bias is None else self.build.op("Add", product, bias)

    def integers(self, x: ir.Value, layer: QuantizedLinear, module: str) -> ir.Value:
        name = f"{module}.quantized"
        _check(layer, module)
        if layer.is_float8:
            return lower_float8(self.build, x, layer, name)
        if layer.activations is not None:
            x = self._rounded(x, layer, name)
        product = self.build.op("MatMul", x, self._weight(layer, module, name))
        return product if layer.bias is None else self.build.op("Add", product, self._bias(layer, name))

    def rows(self, ids: ir.Value, table: QuantizedLinear, module: str, tied: list[str]) -> ir.Value:
        """Integers are dequantized to themselves, gathered, and only then scaled.

        TensorRT takes no Gather on integers, but moves the first step behind it, so that the plan keeps int8.
        """
        if table.bits != 8 or table.zero_point is not None or table.scale.shape[1] != 1:
            raise CheckpointError(
                f"embedding {module} in symmetric 8 bits, one scale a row",
                f"{table.bits} bits in {table.scale.shape[1]} groups a row",
                "use the pass int8-embedding with group_size: null",
            )
        build, name = self.build, f"{module}.quantized"
        integers, scale = build.weight(f"{name}.weight", table.values), build.weight(f"{name}.scale", table.scale)
        self.tables |= dict.fromkeys(tied, (integers, scale))
        whole = build.op("DequantizeLinear", integers, build.constant(1.0, "float32"))
        return build.op("Mul", build.op("Gather", whole, ids), build.op("Gather", scale, ids))

    def attention(self, node: ir.Node) -> None:
        """The query is scaled before the product, so that the scores stay small in float16."""
        query, key, value, bias = node.inputs
        build = self.build
        scaled = build.op("Mul", query, build.constant(node.attributes["scale"].as_float(), "float32"))
        scores = build.op("MatMul", scaled, build.op("Transpose", key, perm=[0, 1, 3, 2]))
        mixed = build.op("MatMul", build.op("Softmax", build.op("Add", scores, bias), axis=-1), value)
        build.replace(node.outputs[0], build.op("Transpose", mixed, perm=[0, 2, 1, 3]))

    def _rounded(self, x: ir.Value, layer: QuantizedLinear, name: str) -> ir.Value:
        factor = layer.pre_quant_scale
        key = (layer.input_scale, None if factor is None else factor.tobytes(), x)

        def make() -> ir.Value:
            build = self.build
            scale, zero = build.constant(layer.input_scale, "float32"), build.constant(0, "int8")
            integers = build.op("QuantizeLinear", smoothed(build, x, layer, name), scale, zero)
            return build.op("DequantizeLinear", integers, scale, zero)

        found: ir.Value = self.build.once(key, make)
        return found

    def _weight(self, layer: QuantizedLinear, module: str, name: str) -> ir.Value:
        """The dequantized weight ``[in, out]``; integers lie so too, but those of a tied table as ``[out, in]``."""
        build = self.build
        if module in self.tables:
            integers, scale = self.tables[module]
            flat = build.op("Squeeze", scale, build.constant([1]))
            return build.op("Transpose", build.op("DequantizeLinear", integers, flat, axis=0), perm=[1, 0])
        integers = build.weight(f"{name}.weight", _integers(layer))
        if layer.bits == 8 and layer.scale.shape[1] == 1:
            return build.op("DequantizeLinear", integers, build.weight(f"{name}.scale", layer.scale[:, 0]), axis=1)
        scale = build.weight(f"{name}.scale", np.ascontiguousarray(layer.scale.T))
        size = layer.shape[1] // layer.scale.shape[1]
        return build.op("DequantizeLinear", integers, scale, axis=0, block_size=size)

    def _bias(self, layer: QuantizedLinear, name: str) -> ir.Value:
        assert layer.bias is not None
        return self.build.weight(f"{name}.bias", layer.bias)


def _integers(layer: QuantizedLinear) -> NDArray[Any]:
    """``[in, out]``, int8 or int4."""
    turned: NDArray[Any] = layer.values.T
    return turned if layer.bits == 8 else turned.astype(ml_dtypes.int4)


def _check(layer: QuantizedLinear, module: str) -> None:
    if layer.activations in ("token", "tensor"):
        raise CheckpointError(
            f"{module} with static input scales, which TensorRT needs",
            f"{layer.input_words} inputs, found at run time",
            "compress with the recipe int8, or choose a profile of the dialect ort alone",
        )
    if layer.zero_point is not None:
        raise CheckpointError(
            f"{module} with symmetric integers, which TensorRT needs",
            "zero points",
            "compress with symmetric: true (the recipes int8, int8-weight-only, int4-symmetric)",
        )
    if layer.bits == 4 and layer.group_size is None:
        fix = "compress with a group_size (the recipe int4-symmetric), or with bits: 8"
        raise CheckpointError(f"{module} in groups, which TensorRT needs", "4 bits with one scale a row", fix)
    if layer.bits == 4 and layer.shape[0] % 2:
        got, fix = f"{layer.shape[0]} outputs", "exclude the layer in the recipe, or take bits: 8 for it"
        raise CheckpointError(f"an even number of outputs of {module}, for TensorRT to read 4 bits", got, fix)
    if layer.bits not in (4, 8):
        raise CheckpointError(f"{module} in 4 or 8 bits", f"{layer.bits} bits", "choose another `bits` in the recipe")
