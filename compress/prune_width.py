"""Make the residual stream narrower: the same hidden channels go from every table, norm, projection and head.

The channels with the least activations go, and the norms are refitted to those that stay
(:mod:`planish.compress.channel_importance`). Heads, their width and neurons stay as they are. It is meant to
be followed by distillation: at 256 of 384 channels the similarities of MiniLM's sentence vectors correlate 0.83 with
the parent's (0.79 without refitted norms), at 320 0.91 (0.90).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from planish.compress.bench import Bench, Context
from planish.compress.channel_importance import Fits, channel_importance, stream_norms
from planish.compress.passes import Pass
from planish.compress.slicing import cut_width
from planish.errors import RecipeError

__all__ = ["PruneWidth"]


@dataclass(frozen=True, kw_only=True)
class PruneWidth(Pass):
    """Keep ``width`` hidden channels, or a ``share`` of them to the nearest ``multiple``.

    ``multiple``: what the width is to be divisible by; 32 suits CPUs, 64 GPUs. ``refit``: fit the norms to what is
    left.
    """

    name: ClassVar[str] = "prune-width"
    roles: ClassVar[frozenset[str]] = frozenset()
    kinds: ClassVar[frozenset[str]] = frozenset()
    in_place: ClassVar[bool] = True
    judged: ClassVar[bool] = True

    width: int | None = None
    share: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    multiple: Annotated[int, Field(ge=1)] = 32
    refit: bool = True

    def __post_init__(self) -> None:
        if (self.width is None) == (self.share is None):
            got = "none" if self.width is None else "both"
            raise RecipeError(f"one of width and share in pass {self.name}", got, "write width: and a number")
        if self.include or self.exclude:
            got = "include or exclude"
            raise RecipeError(f"pass {self.name} on the whole model", got, "leave it out: a stream has one width")

    def apply(self, bench: Bench, context: Context) -> Bench:
        if bench.stored:
            got = f"{len(bench.stored)} layers quantized by an earlier pass"
            raise RecipeError(f"pass {self.name} before passes that quantize", got, "change their order")
        before = int(bench.model.config.hidden_size)  # type: ignore[union-attr,arg-type]
        width = self._width(before)
        self._check_tables(bench, width, before)
        norms, windows = stream_norms(bench.model), context.windows()
        runs = 2 if self.refit else 1
        importance = channel_importance(
            bench.model, norms, windows, tick=self._tick(context, 0, runs), pieces=context.pieces
        )
        keep = importance.argsort(descending=True, stable=True)[:width].sort().values
        fits = None
        if self.refit:
            tick = self._tick(context, 1, runs)
            fits = Fits.of(bench.model, norms, keep, windows, tick=tick, pieces=context.pieces)
        cut_width(bench, keep.tolist())
        if fits is not None:
            fits.set(bench.model)
        left = float(importance[keep].sum() / importance.sum())
        bench.facts.update(
            width_before=before, width=width, norms=len(norms), importance_left=float(f"{left:.6g}"), kept=keep.tolist()
        )
        return bench

    def _check_tables(self, bench: Bench, width: int, before: int) -> None:
        """transformers leaves the projection behind ELECTRA's tables out where they are as wide as the stream."""
        tables = getattr(bench.model.config, "embedding_size", before)
        if tables == width != before:
            got, fix = f"{width}, the width of the tables", f"choose {width + self.multiple} or another multiple"
            raise RecipeError("a width other than the tables', which are projected to it", got, fix)

    def _tick(self, context: Context, run: int, runs: int) -> Callable[[int, int], None]:
        return lambda done, total: context.progress(self.name, run * total + done, runs * total)

    def _width(self, before: int) -> int:
        """The width asked for, checked against what is possible."""
        last = (before - 1) // self.multiple * self.multiple
        if last < 1:
            fix = "choose a smaller multiple"
            raise RecipeError(f"a multiple below the model's width {before}", str(self.multiple), fix)
        possible = f"possible: {self.multiple}, {2 * self.multiple}, ... {last}" if last > self.multiple else str(last)
        if self.width is None:
            assert self.share is not None
            return min(max(round(self.share * before / self.multiple), 1) * self.multiple, last)
        if not 0 < self.width < before or self.width % self.multiple:
            expected = f"a width below {before} that is a multiple of {self.multiple}"
            raise RecipeError(expected, str(self.width), possible)
        return self.width
