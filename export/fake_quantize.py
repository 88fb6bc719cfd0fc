"""Quantized inputs in torch, for checkpoints that transformers cannot load by itself.

The formula is that of docs/formats.md, section 1; a test holds it to the arithmetic of `planish.compress`, bit by bit.
"""

from __future__ import annotations

import torch
from torch import nn

from planish.export.layers import QuantizedLinear

__all__ = ["quantize_inputs"]

_HALF_STEPS = 127.5
_FLOAT8 = 448.0  # the largest E4M3 number
_SMALLEST = torch.finfo(torch.float32).eps


def quantize_inputs(module: nn.Module, layer: QuantizedLinear) -> None:
    """Let ``module`` round its first input to int8 and back before every call, as ``layer`` says."""
    factor = None if layer.pre_quant_scale is None else torch.from_numpy(layer.pre_quant_scale)
    static = None if layer.input_scale is None else torch.tensor(layer.input_scale)

    def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        x = inputs[0] if factor is None else inputs[0] * factor
        scale = _scale(x, layer.activations == "token") if static is None else static
        if layer.is_float8:
            return ((x / scale).clamp(-_FLOAT8, _FLOAT8).to(torch.float8_e4m3fn).to(x.dtype) * scale, *inputs[1:])
        return (torch.round(torch.clamp(x / scale, -128, 127)) * scale, *inputs[1:])

    module.register_forward_pre_hook(hook)


def _scale(x: torch.Tensor, per_token: bool) -> torch.Tensor:
    magnitudes = x.abs()
    largest = magnitudes.amax(-1, keepdim=True) if per_token and x.ndim > 2 else magnitudes.amax()
    scale = largest / _HALF_STEPS
    return torch.where(scale == 0, _SMALLEST, scale)
