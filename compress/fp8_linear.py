"""FP8 linear layers: weights and activations as E4M3 numbers, one static scale each (Micikevicius et al. 2022,
"FP8 Formats for Deep Learning").

A floating-point format is as exact for small numbers as for large ones, so neither channels nor smoothing are needed:
the scale only has to keep the largest number within 448. For GPUs of compute capability 8.9 and up; elsewhere it
saves bytes alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from planish.compress.activations import FLOAT8, FLOAT8_LARGEST
from planish.compress.bench import Bench, Context, Stored
from planish.compress.grid import Quantized, check_weight, to_scale
from planish.compress.input_range import input_scales
from planish.compress.passes import Pass

__all__ = ["Fp8Linear", "round_to_float8"]


@dataclass(frozen=True, kw_only=True)
class Fp8Linear(Pass):
    """Turn the linear layers of the blocks into FP8, weights and activations."""

    name: ClassVar[str] = "fp8-linear"
    roles: ClassVar[frozenset[str]] = frozenset({"body"})
    kinds: ClassVar[frozenset[str]] = frozenset({"linear"})
    in_place: ClassVar[bool] = True

    def apply(self, bench: Bench, context: Context) -> Bench:
        chosen = self.select(bench)
        inputs = input_scales(
            bench.model,
            chosen,
            context.windows(),
            method="absmax",
            percentile=100.0,
            smoothing=None,
            tick=lambda done, total: context.progress("calibrate", done, total),
            pieces=context.pieces,
            steps=FLOAT8_LARGEST,
        )
        for done, layer in enumerate(chosen):
            context.progress(self.name, done, len(chosen))
            quantized = round_to_float8(layer.weight)
            scale = inputs[layer.name].scale
            bench.store(layer, Stored(quantized, packed=False, activations="static", input_scale=scale))
        context.progress(self.name, len(chosen), len(chosen))
        return bench


def round_to_float8(weight: Tensor) -> Quantized:
    """The nearest E4M3 numbers to ``weight [out, in]`` over one scale, which puts the largest on 448.

    Raises ``CheckpointError`` for weights that are not a finite matrix.
    """
    check_weight(weight)
    scale = to_scale(weight.float().abs().amax() / FLOAT8_LARGEST)
    values = (weight.float() / scale).clamp(-FLOAT8_LARGEST, FLOAT8_LARGEST).to(FLOAT8)
    return Quantized(values, scale.reshape(1, 1), None, 8, None)
