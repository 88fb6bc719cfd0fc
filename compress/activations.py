"""8-bit activations in torch: quantize and dequantize a layer's input on the fly, as compressed-tensors does.

INT8: symmetric, one scale for each token (or the whole tensor) taken from the input itself, ``scale = max|x| / 127.5``,
or a scale that is given; integers ``round(clamp(x / scale, -128, 127))``. FP8: a scale that is given; the nearest E4M3
number to ``clamp(x / scale, -448, 448)``. A test holds this to compressed-tensors' own arithmetic, bit by bit.
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["FLOAT8", "FLOAT8_LARGEST", "HALF_STEPS", "fake_quantize", "quantize_inputs"]

FLOAT8 = torch.float8_e4m3fn
FLOAT8_LARGEST = 448.0
"""The largest E4M3 number."""


HALF_STEPS = 127.5
"""Half of the 255 steps between -128 and 127, as compressed-tensors counts."""

_EPSILON = torch.finfo(torch.float32).eps  # the scale of an input of zeros


def fake_quantize(x: torch.Tensor, strategy: str, scale: torch.Tensor | None = None) -> torch.Tensor:
    """``x`` rounded to INT8 and back; ``strategy`` is ``token`` (last axis shares a scale) or ``tensor``.

    An input without a token axis (two axes or less) shares one scale, as in compressed-tensors. ``scale`` is a static
    one, of one element.
    """
    return _round(x, _dynamic_scale(x, strategy) if scale is None else scale)


def fake_float8(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``x`` rounded to E4M3 and back, with a static ``scale`` of one element."""
    return torch.clamp(x / scale, -FLOAT8_LARGEST, FLOAT8_LARGEST).to(FLOAT8).to(x.dtype) * scale


def _round(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.round(torch.clamp(x / scale, -128, 127)) * scale


def _dynamic_scale(x: torch.Tensor, strategy: str) -> torch.Tensor:
    if strategy == "token" and x.ndim > 2:
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    else:
        low, high = torch.aminmax(x)
    scale = torch.maximum(low.clamp(max=0).abs(), high.clamp(min=0)) / HALF_STEPS
    return torch.where(scale == 0, _EPSILON, scale)


def quantize_inputs(
    module: nn.Module,
    strategy: str,
    scale: torch.Tensor | None = None,
    factor: torch.Tensor | None = None,
    *,
    float8: bool = False,
) -> None:
    """Make ``module`` quantize its first input before every call, times ``factor`` (``[in]``) first if there is one."""

    def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        x = inputs[0] if factor is None else inputs[0] * factor
        rounded = fake_float8(x, scale) if float8 and scale is not None else fake_quantize(x, strategy, scale)
        return (rounded, *inputs[1:])

    module.register_forward_pre_hook(hook)
