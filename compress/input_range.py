"""Static ranges for quantized inputs: the magnitudes each layer reads on calibration text.

The whole range is the default. Cutting it to lessen the rounding error, as one does with weights, is what ruins an
encoder: the rare token with a huge channel is the one the following layers steer by (on MiniLM cosine to the parent
0.988 with the least squared error at query, key and value, 0.998 with the whole range).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from planish.compress.magnitudes import Magnitudes
from planish.compress.stream import no_cache
from planish.compress.walk import Layer
from planish.errors import RecipeError

__all__ = ["input_magnitudes", "static_scale"]

_TOKENS_PER_BATCH = 2048
_HALF_STEPS = 127.5
"""Half of the 255 steps between -128 and 127, as compressed-tensors counts."""


def input_magnitudes(
    model: nn.Module, layers: list[Layer], windows: torch.Tensor, tick: Callable[[int, int], None]
) -> dict[str, Magnitudes]:
    """Module name -> magnitudes of all its inputs on ``windows`` (int64 ``[n, tokens]``, no padding).

    Raises:
        RecipeError: a layer is not called.
        DataError: a layer's inputs are not finite.
    """
    found: dict[str, Magnitudes] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def see(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            found.setdefault(name, Magnitudes()).add(inputs[0], name)

        return see

    handles = [layer.module.register_forward_pre_hook(watch(layer.name)) for layer in layers]
    runner = _without_head(model, layers)
    parts = torch.split(windows, max(1, _TOKENS_PER_BATCH // windows.shape[1]))
    try:
        for done, ids in enumerate(parts):
            tick(done, len(parts))
            runner(**_inputs(runner, ids))
        tick(len(parts), len(parts))
    finally:
        for handle in handles:
            handle.remove()
    for layer in layers:
        if layer.name not in found:
            raise RecipeError(f"{layer.name} to be called on calibration text", "no call", "exclude it")
    return found


def static_scale(limit: float) -> float:
    """The scale of int8 inputs up to ``limit``; a float16, as all scales are stored, and never 0."""
    scale = torch.tensor(limit / _HALF_STEPS).clamp(min=2.0**-23, max=torch.finfo(torch.float16).max)
    return float(scale.to(torch.float16))


def _without_head(model: nn.Module, layers: list[Layer]) -> nn.Module:
    """The base model if all layers are in it: nobody reads the logits, which are large where the vocabulary is."""
    body = getattr(model, "base_model", model)
    inside = {id(module) for module in body.modules()}
    return body if all(id(layer.module) in inside for layer in layers) else model


def _inputs(model: nn.Module, ids: torch.Tensor) -> dict[str, Any]:
    known = inspect.signature(model.forward).parameters
    mask = {"attention_mask": torch.ones_like(ids)} if "attention_mask" in known else {}
    return {"input_ids": ids, **mask, **no_cache(model)}
