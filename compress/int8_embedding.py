"""INT8 embedding tables: the token table, and the head that projects onto the vocabulary, one scale a row (or a group).

Tables are half of a small encoder's bytes and a quarter of a small decoder's. A head tied to the table gets the same
integers; an untied one its own. Activations stay float. ``positions`` takes tables of learned positions, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from planish.compress.bench import Bench, Context, Stored
from planish.compress.grid import Quantized, round_to_grid
from planish.compress.passes import Pass
from planish.compress.walk import Layer
from planish.compress.widths import check_group

__all__ = ["Int8Embedding"]


@dataclass(frozen=True, kw_only=True)
class Int8Embedding(Pass):
    """Quantize the token table and the vocabulary head to INT8, weights only."""

    name: ClassVar[str] = "int8-embedding"
    roles: ClassVar[frozenset[str]] = frozenset({"embedding", "head"})
    kinds: ClassVar[frozenset[str]] = frozenset({"embedding", "linear"})
    in_place: ClassVar[bool] = True

    positions: bool = False
    group_size: Annotated[int, Field(ge=16, le=1024)] | None = None
    range: Literal["mse", "absmax"] = "mse"

    def apply(self, bench: Bench, context: Context) -> Bench:
        chosen = self.select(bench) + self._positions(bench)
        for layer in chosen:
            check_group(layer, self.group_size, self.name)
        made: dict[int, Quantized] = {}
        for done, layer in enumerate(chosen):
            context.progress(self.name, done, len(chosen))
            key = layer.weight.data_ptr()
            if key not in made:
                made[key] = round_to_grid(
                    layer.weight, bits=8, group_size=self.group_size, symmetric=True, range=self.range
                )
            bench.store(layer, Stored(made[key], packed=False))
        context.progress(self.name, len(chosen), len(chosen))
        return bench

    def _positions(self, bench: Bench) -> list[Layer]:
        asked = [layer for layer in bench.layers if layer.role == "positions"] if self.positions else []
        return [layer for layer in asked if layer.name not in bench.stored and not self._excluded(layer)]
