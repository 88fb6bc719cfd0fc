"""Static ranges for quantized inputs, and the smoothing that makes one range a layer enough.

The whole range is the default. Cutting it to lessen the rounding error, as one does with weights, is what ruins an
encoder: the rare token with a huge channel is the one the following layers steer by (on MiniLM cosine to the parent
0.988 with the least squared error at query, key and value, 0.998 with the whole range).

SmoothQuant (Xiao et al. 2023, equation 4) divides channel ``c`` of an input by ``s_c = max|x_c|^a / max|w_c|^(1-a)``
and multiplies the weights of that channel by it. In a model that normalizes after the residual the division cannot be
folded into LayerNorm, for the residual reads it too: so ``1 / s`` is stored with the layer as its ``pre_quant_scale``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from planish.compress.activations import HALF_STEPS
from planish.compress.calibrate import observe
from planish.compress.grid import to_scale
from planish.compress.magnitudes import Magnitudes, Range
from planish.compress.resume import Pieces
from planish.compress.walk import Layer
from planish.errors import DataError

__all__ = ["InputScale", "input_scales", "static_scale"]


@dataclass(frozen=True)
class InputScale:
    """How a layer's input becomes int8: times ``pre_quant_scale`` (float32 ``[in]``) if any, over ``scale``."""

    scale: float
    pre_quant_scale: Tensor | None = None


class ChannelLimits:
    """The largest magnitude of every channel a layer reads."""

    def __init__(self) -> None:
        self.largest: dict[str, Tensor] = {}

    def add(self, name: str, inputs: Tensor) -> None:
        """Raises ``DataError`` if a value is infinite or no number."""
        seen = inputs.detach().float().abs().reshape(-1, inputs.shape[-1]).amax(0)
        if not bool(torch.isfinite(seen).all()):
            raise DataError(f"finite inputs of {name} on calibration text", str(float(seen.max())), "check the weights")
        self.largest[name] = torch.maximum(self.largest[name], seen) if name in self.largest else seen

    def state(self) -> dict[str, Tensor]:
        return dict(self.largest)

    def restore(self, state: dict[str, Tensor]) -> None:
        self.largest = dict(state)


class Histograms:
    """The magnitudes each layer reads, its channels times ``factors`` first."""

    def __init__(self, factors: dict[str, Tensor]) -> None:
        self.factors = factors
        self.seen: dict[str, Magnitudes] = {}

    def add(self, name: str, inputs: Tensor) -> None:
        """Raises ``DataError`` if a value is infinite or no number."""
        factor = self.factors.get(name)
        self.seen.setdefault(name, Magnitudes()).add(inputs if factor is None else inputs * factor, name)

    def state(self) -> dict[str, Tensor]:
        largest = {
            f"{name}:largest": torch.tensor(seen.largest, dtype=torch.float64) for name, seen in self.seen.items()
        }
        return largest | {f"{name}:counts": seen.counts for name, seen in self.seen.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        for key, value in state.items():
            name, _, part = key.rpartition(":")
            seen = self.seen.setdefault(name, Magnitudes())
            if part == "counts":
                seen.counts = value
            else:
                seen.largest = float(value)


def input_scales(
    model: nn.Module,
    layers: list[Layer],
    windows: Sequence[Tensor],
    *,
    method: Range,
    percentile: float,
    smoothing: float | None,
    plain: Collection[str] = (),
    steps: float = HALF_STEPS,
    tick: Callable[[int, int], None],
    pieces: Pieces,
) -> dict[str, InputScale]:
    """Module name -> how its input is quantized, from calibration ``windows`` (int64 ``[n, tokens]`` each, no padding).

    Layers that read the same tensor get the same. ``smoothing`` is SmoothQuant's ``a``, None for none; the inputs of
    ``plain`` layers are left out of it. ``steps`` is what the largest magnitude becomes.

    Raises:
        RecipeError: a layer is not called.
        DataError: a layer's inputs are not finite.
    """
    limits = ChannelLimits()
    leaders = observe(model, layers, windows, limits, tick=tick, pieces=pieces, piece="channel-limits")
    factors: dict[str, Tensor] = {}
    if smoothing is not None:
        for leader, largest in limits.largest.items():
            readers = [layer for layer in layers if leaders[layer.name] == leader]
            if not any(layer.name in plain for layer in readers):
                factors[leader] = pre_quant_scale(largest, [layer.weight for layer in readers], smoothing)
    if method == "absmax":
        reached = {name: float((seen * factors.get(name, 1.0)).max()) for name, seen in limits.largest.items()}
    else:
        counted = Histograms(factors)
        observe(model, layers, windows, counted, tick=tick, pieces=pieces, piece="histograms")
        reached = {name: seen.limit(method, percentile) for name, seen in counted.seen.items()}
    made = {name: InputScale(static_scale(limit, steps), factors.get(name)) for name, limit in reached.items()}
    return {name: made[leader] for name, leader in leaders.items()}


def pre_quant_scale(largest: Tensor, weights: list[Tensor], smoothing: float) -> Tensor:
    """``1 / s`` of SmoothQuant as normal float16 numbers in float32, ``[in]``; its geometric mean is about 1.

    ``largest`` is max|x| of each channel, ``weights`` (``[out, in]`` each) are those of all layers that read it.
    """
    heaviest = torch.stack([weight.float().abs().amax(0) for weight in weights]).amax(0)
    s = largest.clamp_min(1e-5) ** smoothing / heaviest.clamp_min(1e-5) ** (1 - smoothing)
    return to_scale(s.log().mean().exp() / s)


def static_scale(limit: float, steps: float = HALF_STEPS) -> float:
    """The scale that puts ``limit`` on ``steps``; a float16, as all scales are stored, and never 0."""
    scale = torch.tensor(limit / steps).clamp(min=2.0**-23, max=torch.finfo(torch.float16).max)
    return float(scale.to(torch.float16))
