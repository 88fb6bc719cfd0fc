"""A linear layer or embedding table as a checkpoint stores it: in floating point, or as integers with scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

__all__ = ["Activations", "FloatLinear", "QuantizedLinear"]

Array = NDArray[Any]
Activations = Literal["token", "tensor", "static"] | None


@dataclass(frozen=True)
class FloatLinear:
    """A weight left in floating point: ``weight`` float32 ``[out, in]``, ``bias`` float32 ``[out]`` or None."""

    weight: Array
    bias: Array | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.weight.shape[0]), int(self.weight.shape[1])

    def dequantized(self) -> Array:
        """The float32 weight ``[out, in]``."""
        return self.weight


@dataclass(frozen=True)
class QuantizedLinear:
    """Integers and scales as stored; weight = ``(values - zero_point) * scale``.

    ``values`` int8 ``[out, in]`` in the signed range of ``bits``, or float8_e4m3fn; ``scale`` float32
    ``[out, groups]``; ``zero_point`` int8 of the same shape, None if symmetric; ``group_size`` None means one group a
    row. ``activations`` says whether inputs are quantized to 8 bits too: dynamically per token or with one scale a
    tensor, or with the static ``input_scale``, after they were multiplied by ``pre_quant_scale`` (float32 ``[in]``) if
    there is one.
    """

    values: Array
    scale: Array
    zero_point: Array | None
    bits: int
    group_size: int | None
    activations: Activations = None
    bias: Array | None = None
    input_scale: float | None = None
    pre_quant_scale: Array | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.values.shape[0]), int(self.values.shape[1])

    @property
    def is_float8(self) -> bool:
        """Whether the values are E4M3 numbers, and so are the inputs."""
        return bool(self.values.dtype == ml_dtypes.float8_e4m3fn)

    @property
    def is_narrow(self) -> bool:
        """Whether two products of its integers with unsigned 8-bit inputs fit 16 bits: all are in -64..63."""
        return not self.is_float8 and bool(self.values.min() >= -64) and bool(self.values.max() <= 63)

    @property
    def words(self) -> str:
        """How the weight is stored, for a person to read."""
        return "fp8" if self.is_float8 else f"int{self.bits}"

    @property
    def input_words(self) -> str:
        """How inputs are quantized, for a person to read."""
        if self.activations is None:
            return "float"
        kind = "fp8" if self.is_float8 else "int8"
        return f"{kind} static" if self.activations == "static" else f"{kind} per {self.activations}"

    def dequantized(self) -> Array:
        """The float32 weight ``[out, in]`` that the integers stand for, ``pre_quant_scale`` included."""
        weight = self.grid_weight()
        return weight if self.pre_quant_scale is None else weight * self.pre_quant_scale

    def grid_weight(self) -> Array:
        """Integers times scales, float32 ``[out, in]``: what a quantized input is multiplied by."""
        rows, width = self.shape
        groups = self.scale.shape[1]
        q = self.values.reshape(rows, groups, width // groups).astype(np.float32)
        if self.zero_point is not None:
            q -= self.zero_point[:, :, None]
        q *= self.scale[:, :, None]
        return q.reshape(rows, width)
