"""Weight-only INT4 / INT8: integers in groups along the inputs, activations float.

``method: round`` takes the nearest grid point and needs no data; it is a baseline (at 4 bits it costs a small decoder a
quarter of its perplexity). ``method: gptq`` chooses integers so that the layer's *outputs* on calibration text stay
(Frantar et al. 2022, arXiv:2210.17323), block after block, each seeing what the quantized blocks before it produce.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from planish.compress.bench import Bench, Context, Stored
from planish.compress.grid import round_to_grid
from planish.compress.passes import Pass
from planish.compress.walk import Layer
from planish.compress.widths import check_group

__all__ = ["WeightOnly"]


@dataclass(frozen=True, kw_only=True)
class WeightOnly(Pass):
    """Quantize the linear layers of the blocks to 4 or 8 bits, weights only."""

    name: ClassVar[str] = "weight-only"
    roles: ClassVar[frozenset[str]] = frozenset({"body"})
    kinds: ClassVar[frozenset[str]] = frozenset({"linear", "conv1d"})
    in_place: ClassVar[bool] = True

    bits: Literal[4, 8] = 4
    group_size: Annotated[int, Field(ge=16, le=128)] = 32
    symmetric: bool = False
    method: Literal["gptq", "round"] = "gptq"
    range: Literal["mse", "absmax"] = "mse"
    activation_order: bool = False
    damping: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01

    @property
    def needs_data(self) -> bool:  # type: ignore[override]
        return self.method == "gptq"

    def apply(self, bench: Bench, context: Context) -> Bench:
        chosen = self.select(bench)
        for layer in chosen:
            check_group(layer, self.group_size, self.name)
        if self.method == "round":
            self._round(bench, context, chosen)
        else:
            raise NotImplementedError
        return bench

    def _round(self, bench: Bench, context: Context, chosen: list[Layer]) -> None:
        for done, layer in enumerate(chosen):
            context.progress(self.name, done, len(chosen))
            quantized = round_to_grid(
                layer.weight, bits=self.bits, group_size=self.group_size, symmetric=self.symmetric, range=self.range
            )
            bench.store(layer, Stored(quantized, packed=True))
        context.progress(self.name, len(chosen), len(chosen))
