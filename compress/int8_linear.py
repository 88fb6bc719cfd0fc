"""INT8 linear layers: symmetric per-channel weights, and activations quantized while the model runs.

The weight range minimizes the squared error of rounding (see grid.py). ``token`` takes each token's scale from the
token itself: no data needed, and the most exact. ``static`` takes one scale a layer from calibration text (see
input_range.py): nothing is left to be found out while the model runs, so it is faster, and it is all TensorRT takes;
``smoothing`` moves what is uneven between channels into the weights, without which one scale is not enough for
feed-forward layers. Either way a text's answer does
not depend on what else is in its batch; with ``tensor``, one scale found for the whole batch, it does. (So it does for
OPT with ``token``: transformers flattens what its feed-forward layers read, and all tokens of a batch are one there.)
Heads, classifiers and poolers stay float: they are small, and they decide.

``weight_bits: 7`` keeps the weights in -64..63, stored in 8 bits as before: for x86 processors without VNNI, whose
fastest kernels add two products in 16 bits and cut off what does not fit (Intel 64 and IA-32 Architectures Software
Developer's Manual, vol. 2, PMADDUBSW). With such weights it always fits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from planish.compress.bench import Bench, Context, Stored
from planish.compress.grid import round_to_grid
from planish.compress.input_range import InputScale, input_scales
from planish.compress.magnitudes import Range as InputRange
from planish.compress.passes import Pass
from planish.compress.walk import Layer
from planish.errors import RecipeError

__all__ = ["Int8Linear"]


@dataclass(frozen=True, kw_only=True)
class Int8Linear(Pass):
    """Quantize the linear layers of the blocks to INT8, weights and activations."""

    name: ClassVar[str] = "int8-linear"
    roles: ClassVar[frozenset[str]] = frozenset({"body"})
    kinds: ClassVar[frozenset[str]] = frozenset({"linear", "conv1d"})
    in_place: ClassVar[bool] = True

    activations: Literal["token", "tensor", "static"] = "token"
    weight_bits: Literal[7, 8] = 8
    range: Literal["mse", "absmax"] = "mse"
    input_range: InputRange = "absmax"
    percentile: Annotated[float, Field(gt=50.0, le=100.0)] = 99.99
    smoothing: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    smoothing_exclude: list[str] = field(default_factory=list)

    def apply(self, bench: Bench, context: Context) -> Bench:
        chosen = self.select(bench)
        if self.smoothing is not None and self.activations != "static":
            raise RecipeError(
                f"pass {self.name} with smoothing to have static activations", self.activations, "activations: static"
            )
        inputs = self._inputs(bench, context, chosen)
        for done, layer in enumerate(chosen):
            context.progress(self.name, done, len(chosen))
            how = inputs.get(layer.name)  # None: found while the model runs
            factor = how.pre_quant_scale if how is not None else None
            weight = layer.weight if factor is None else layer.weight / factor
            bits = self.weight_bits
            quantized = round_to_grid(weight, bits=bits, group_size=None, symmetric=True, range=self.range)
            bench.store(
                layer,
                Stored(
                    quantized,
                    packed=False,
                    activations=self.activations,
                    input_scale=how.scale if how is not None else None,
                    pre_quant_scale=factor,
                ),
            )
        context.progress(self.name, len(chosen), len(chosen))
        return bench

    def _unsmoothed(self, chosen: list[Layer]) -> set[str]:
        """Layers whose inputs stay as they are; one of the patterns has to match, as families name them differently."""
        patterns = self.smoothing_exclude
        found = {layer.name for layer in chosen if any(fnmatchcase(layer.name, pattern) for pattern in patterns)}
        if patterns and not found:
            got = f"no match for {', '.join(patterns)}"
            raise RecipeError(f"smoothing_exclude of pass {self.name} to match a layer", got, f"e.g. {chosen[0].name}")
        return found

    def _inputs(self, bench: Bench, context: Context, chosen: list[Layer]) -> dict[str, InputScale]:
        if self.activations != "static":
            return {}
        return input_scales(
            bench.model,
            chosen,
            context.windows(),
            method=self.input_range,
            percentile=self.percentile,
            smoothing=self.smoothing,
            plain=self._unsmoothed(chosen),
            tick=lambda done, total: context.progress("calibrate", done, total),
            pieces=context.pieces,
        )
