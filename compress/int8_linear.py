"""INT8 linear layers: symmetric per-channel weights, and activations quantized per token while the model runs.

The weight range minimizes the squared error of rounding (see grid.py). Activations need no calibration: each token's
scale is taken from the token itself, which is what keeps encoders at 0.99 of the parent where one scale a tensor loses
them. Heads, classifiers and poolers stay float: they are small, and they decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from planish.compress.bench import Bench, Context, Stored
from planish.compress.grid import round_to_grid
from planish.compress.passes import Pass

__all__ = ["Int8Linear"]


@dataclass(frozen=True, kw_only=True)
class Int8Linear(Pass):
    """Quantize the linear layers of the blocks to INT8, weights and activations."""

    name: ClassVar[str] = "int8-linear"
    roles: ClassVar[frozenset[str]] = frozenset({"body"})
    kinds: ClassVar[frozenset[str]] = frozenset({"linear", "conv1d"})
    in_place: ClassVar[bool] = True

    activations: Literal["token", "tensor"] = "token"
    range: Literal["mse", "absmax"] = "mse"

    def apply(self, bench: Bench, context: Context) -> Bench:
        chosen = self.select(bench)
        for done, layer in enumerate(chosen):
            context.progress(self.name, done, len(chosen))
            quantized = round_to_grid(layer.weight, bits=8, group_size=None, symmetric=True, range=self.range)
            bench.store(layer, Stored(quantized, packed=False, activations=self.activations))
        context.progress(self.name, len(chosen), len(chosen))
        return bench
