"""The model on the bench: what passes work on, and what surrounds them while they do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from planish.compress.grid import Quantized
from planish.compress.walk import Layer, head_is_tied, walk

__all__ = ["Activations", "Bench", "Context", "Progress", "Stored"]

Activations = Literal["token", "tensor"]
Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``, often."""


@dataclass(frozen=True)
class Stored:
    """A quantized layer as the checkpoint will hold it.

    ``packed``: several integers in one int32 (weight-only), else one int8 each. ``activations``: how inputs are quantized
    at run time, None = not at all.
    """

    quantized: Quantized
    packed: bool
    activations: Activations | None = None

    @property
    def bits(self) -> int:
        """Bits the checkpoint spends on this layer: integers, fp16 scales, zero points."""
        q = self.quantized
        zero_points = 0 if q.zero_point is None else q.zero_point.numel() * q.bits
        return q.values.numel() * q.bits + q.scale.numel() * 16 + zero_points


@dataclass
class Bench:
    """A float32 model, its layers, and the layers already quantized.

    A quantized layer's float weight is overwritten with the dequantized one, so whatever runs next sees what will be served.
    """

    model: nn.Module
    layers: tuple[Layer, ...]
    stored: dict[str, Stored] = field(default_factory=dict)
    tied: bool = False

    @classmethod
    def of(cls, model: nn.Module) -> Bench:
        return cls(model, tuple(walk(model)), {}, head_is_tied(model))

    def store(self, layer: Layer, stored: Stored) -> None:
        """Keep the integers of ``layer`` and give the model their dequantized values."""
        layer.set_weight(stored.quantized.dequantize())
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


@dataclass(frozen=True)
class Context:
    """What a pass may use besides the model.

    ``windows`` reads the calibration text: int64 ``[samples, sequence_length]``. ``work`` is the pass's own folder, where
    it leaves finished pieces for a run that continues.
    """

    windows: Callable[[], torch.Tensor]
    work: Path
    progress: Progress
    seed: int
