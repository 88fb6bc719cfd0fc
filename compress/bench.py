"""The model on the bench: what passes work on, and what surrounds them while they do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from planish.compress.grid import Quantized
from planish.compress.walk import Layer, head_is_tied, walk
from planish.errors import RecipeError

if TYPE_CHECKING:
    from planish.compress.checkpoint import Checkpoint
    from planish.compress.examples import Examples
    from planish.compress.passes import Pass
    from planish.compress.recipe import Data
    from planish.compress.resume import Pieces

__all__ = ["Activations", "Bench", "Context", "Progress", "Stored", "relative_error"]

Activations = Literal["token", "tensor", "static"]
Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``, often."""


@dataclass(frozen=True)
class Stored:
    """A quantized layer as the checkpoint will hold it.

    ``packed``: several integers in one int32 (weight-only), else one int8 each. ``activations``: how inputs are
    quantized at run time, None = not at all; ``input_scale`` and ``pre_quant_scale`` (``[in]``, see input_range.py) are
    theirs if they are static. ``quality``: errors measured meanwhile, relative and squared.
    """

    quantized: Quantized
    packed: bool
    activations: Activations | None = None
    quality: dict[str, float] = field(default_factory=dict)
    input_scale: float | None = None
    pre_quant_scale: torch.Tensor | None = None

    def dequantize(self) -> torch.Tensor:
        """The float32 weight ``[out, in]`` this layer multiplies its unscaled input by."""
        weight = self.quantized.dequantize()
        return weight if self.pre_quant_scale is None else weight * self.pre_quant_scale

    @property
    def bits(self) -> int:
        """Bits the checkpoint spends on this layer: integers, fp16 scales (weights', inputs'), zero points."""
        q = self.quantized
        zero_points = 0 if q.zero_point is None else q.zero_point.numel() * q.bits
        scales = q.scale.numel() + (self.input_scale is not None)
        scales += 0 if self.pre_quant_scale is None else self.pre_quant_scale.numel()
        return q.values.numel() * q.bits + scales * 16 + zero_points


@dataclass
class Bench:
    """A float32 model, its layers, and the layers already quantized.

    A quantized layer's float weight is overwritten with the dequantized one: whatever runs next sees what is served.

    ``config``: entries of config.json that passes changed. ``files``: files beside the weights as rewritten, None
    = left out. ``vocabulary``: int64 ``[tokens]``, the row of the parent's token table each token is, None = all are
    there. ``facts``: what the pass at work wants in its receipt.
    """

    model: nn.Module
    layers: tuple[Layer, ...]
    stored: dict[str, Stored] = field(default_factory=dict)
    tied: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes | None] = field(default_factory=dict)
    vocabulary: torch.Tensor | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> Bench:
        return cls(model, tuple(walk(model)), {}, head_is_tied(model))

    def refresh(self) -> None:
        """Walk the layers anew, after some were cut.

        Raises:
            RecipeError: layers are quantized already; their integers would no longer fit.
        """
        if self.stored:
            got = f"{len(self.stored)} layers quantized by an earlier pass"
            raise RecipeError("what cuts the model to come before what quantizes it", got, "change their order")
        self.layers, self.tied = tuple(walk(self.model)), head_is_tied(self.model)

    def store(self, layer: Layer, stored: Stored) -> None:
        """Keep the integers of ``layer`` and give the model their dequantized values."""
        weight = stored.dequantize()
        stored.quality["weight_error"] = relative_error(layer.weight, weight)
        layer.set_weight(weight)
        self.stored[layer.name] = stored

    def versions(self) -> tuple[tuple[int, int], ...]:
        """A fingerprint that changes when any weight is written to or replaced."""
        return tuple((id(p), p._version) for p in self.model.parameters())

    def parameters(self) -> int:
        """Number of weights, a tied table counted once."""
        return sum(p.numel() for p in self.model.parameters())

    def bytes(self) -> int:
        """Bytes of all weights as stored now: float32, or integers with their scales."""
        quantized = {
            id(layer.module.weight): self.stored[layer.name] for layer in self.layers if layer.name in self.stored
        }
        return sum(
            (quantized[id(p)].bits + 7) // 8 if id(p) in quantized else p.numel() * p.element_size()
            for p in self.model.parameters()
        )


def relative_error(weight: torch.Tensor, other: torch.Tensor) -> float:
    """``||weight - other||^2 / ||weight||^2``."""
    return float((weight - other).square().sum() / weight.square().sum().clamp_min(1e-30))


@dataclass(frozen=True)
class Context:
    """What a pass may use besides the model.

    ``windows`` reads the calibration text: int64 ``[samples, length]`` for each length; ``examples`` what the model is
    trained and judged on; ``tokenizer`` is transformers' fast one. All three speak the vocabulary as it is now.
    ``pieces`` keeps what is finished for a run that continues after a kill. ``source`` is the parent, ``data`` the
    recipe's and ``folder`` what its paths are relative to; ``later`` are the passes that follow.
    """

    windows: Callable[[], tuple[torch.Tensor, ...]]
    pieces: Pieces
    progress: Progress
    seed: int
    source: Checkpoint
    tokenizer: Callable[[], Any]
    examples: Callable[[], Examples]
    data: Data
    folder: Path
    later: tuple[Pass, ...] = ()
