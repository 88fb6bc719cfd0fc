"""Drop whole blocks: fewer layers and nothing else changed, so every engine gains.

Which blocks go is said (``keep``), or found by their importance (:mod:`planish.compress.block_importance`) until
``count`` blocks or ``share`` of the blocks' parameters are left. ``first`` and ``uniform`` take no measure: the first
blocks, or evenly spread ones with first and last among them, as DistilBERT takes its layers (Sanh et al. 2019). A model
with dropped blocks is meant to be distilled: untrained, MiniLM's sentence vectors keep a cosine of 0.92 to the parent's
without one of six blocks, 0.83 without two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from planish.compress.bench import Bench, Context
from planish.compress.block_importance import Losses, influence
from planish.compress.passes import Pass
from planish.compress.slicing import cut_blocks
from planish.compress.walk import find_blocks
from planish.errors import DataError, RecipeError

__all__ = ["DropLayers"]

_TOKENS_PER_BATCH = 2048


@dataclass(frozen=True, kw_only=True)
class DropLayers(Pass):
    """Keep some of the blocks: those named, or ``count`` / ``share`` of them by importance.

    ``tokens``: how many tokens of the training examples a candidate is judged on with ``importance: loss``.
    """

    name: ClassVar[str] = "drop-layers"
    roles: ClassVar[frozenset[str]] = frozenset()
    kinds: ClassVar[frozenset[str]] = frozenset()
    in_place: ClassVar[bool] = True
    judged: ClassVar[bool] = True

    keep: list[int] | None = None
    count: Annotated[int, Field(ge=1)] | None = None
    share: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    importance: Literal["influence", "loss", "first", "uniform"] = "influence"
    tokens: Annotated[int, Field(ge=64)] = 8192

    def __post_init__(self) -> None:
        given = [key for key in ("keep", "count", "share") if getattr(self, key) is not None]
        if len(given) != 1:
            expected = f"one of keep, count and share in pass {self.name}"
            raise RecipeError(expected, ", ".join(given) or "none", "write count: and how many layers stay")
        if self.include or self.exclude:
            raise RecipeError(f"pass {self.name} without include / exclude", "one of them", "write keep: [0, 2, ...]")

    def apply(self, bench: Bench, context: Context) -> Bench:
        if bench.stored:
            got = f"{len(bench.stored)} layers quantized by an earlier pass"
            raise RecipeError(f"pass {self.name} before passes that quantize", got, "change their order")
        blocks = find_blocks(bench.model)[1]
        sizes = [sum(weight.numel() for weight in block.parameters()) for block in blocks]
        measured: dict[str, Any] = {}
        kept = self._kept(bench, context, blocks, sizes, measured)
        share = sum(sizes[index] for index in kept) / sum(sizes)
        cut_blocks(bench, kept)
        dropped = [index for index in range(len(sizes)) if index not in kept]
        bench.facts.update(kept=kept, dropped=dropped, share_left=_short(share), **measured)
        return bench

    def _kept(
        self, bench: Bench, context: Context, blocks: nn.ModuleList, sizes: list[int], measured: dict[str, Any]
    ) -> list[int]:
        """Indices of the blocks that stay, sorted."""
        if self.keep is not None:
            return _checked(self.keep, len(sizes))
        if self.count is not None and self.count >= len(sizes):
            raise RecipeError(f"count below the model's {len(sizes)} layers", str(self.count), "keep fewer")
        if self.importance in ("first", "uniform"):
            return self._without_measure(sizes)
        if self.importance == "influence":
            values = influence(
                bench.model,
                blocks,
                context.windows(),
                tick=lambda done, total: context.progress(self.name, done, total),
                pieces=context.pieces,
            )
            measured["influence"] = [_short(value) for value in values]
            order = iter(sorted(range(len(sizes)), key=lambda index: (values[index], index)))
        else:
            order = self._greedy(bench, context, blocks, measured)
        left = list(range(len(sizes)))
        while not self._enough(left, sizes):
            if len(left) == 1:
                raise self._impossible(left, sizes)
            left.remove(next(order))
        return left

    def _without_measure(self, sizes: list[int]) -> list[int]:
        layers = len(sizes)
        kept: list[int] = []
        for count in [self.count] if self.count is not None else range(layers - 1, 0, -1):
            kept = list(range(count)) if self.importance == "first" else spread(layers, count)
            if self._enough(kept, sizes):
                return kept
        raise self._impossible(kept, sizes)

    def _enough(self, left: list[int], sizes: list[int]) -> bool:
        """Whether few enough blocks are left."""
        if self.count is not None:
            return len(left) <= self.count
        assert self.share is not None
        return sum(sizes[index] for index in left) <= self.share * sum(sizes) * (1 + 1e-9)

    def _impossible(self, left: list[int], sizes: list[int]) -> RecipeError:
        least = sum(sizes[index] for index in left) / sum(sizes)
        fix = f"the nearest possible is {least + 5e-4:.3f}, one of {len(sizes)} layers"
        return RecipeError(f"a share that leaves pass {self.name} a layer", str(self.share), fix)

    def _greedy(self, bench: Bench, context: Context, blocks: nn.ModuleList, measured: dict[str, Any]) -> Iterator[int]:
        """The block whose loss is least without it, again and again; each candidate's loss is kept for a killed run."""
        examples = context.examples()
        batches = self._batches(context)
        labelled = examples.labelled or "labels" in batches[0]
        losses = Losses(bench.model, blocks, batches, labelled)
        tag = f"{examples.digest} {self.tokens} {len(blocks)}"
        saved = context.pieces.load_state("losses", tag)
        known: dict[str, float] = {} if saved is None else saved[1]
        done, total = 0, sum(len(blocks) - step for step in range(len(blocks) - (self.count or 1)))

        def tick() -> None:
            context.progress(self.name, done, total)

        def loss(dropped: list[int]) -> float:
            nonlocal done
            key = " ".join(map(str, sorted(dropped)))
            if key not in known:
                known[key] = losses.without(dropped, tick)
                context.pieces.save_state("losses", tag, {"candidates": torch.tensor(len(known))}, known)
            done += 1
            tick()
            return known[key]

        dropped: list[int] = []
        measured["loss_before"] = _short(loss([]))
        steps = measured["steps"] = []
        while True:
            found = {index: loss([*dropped, index]) for index in range(len(blocks)) if index not in dropped}
            worst = min(found, key=lambda index: (found[index], index))
            steps.append({"dropped": worst, "losses": {str(index): _short(value) for index, value in found.items()}})
            dropped.append(worst)
            yield worst

    def _batches(self, context: Context) -> list[dict[str, Tensor]]:
        """Batches of training examples with at least ``tokens`` tokens together, or all there are."""
        longest = max(context.data.lengths) if context.examples().task == "text-generation" else context.data.max_length
        size = min(32, max(1, _TOKENS_PER_BATCH // longest))
        chosen: list[dict[str, Tensor]] = []
        count = 0
        for batch in context.examples().batches("train", size, seed=context.seed):
            if count >= self.tokens:
                break
            chosen.append(batch)
            count += int(batch["attention_mask"].sum())
        if not chosen:
            raise DataError("training examples to judge layers on", "none", "give data.train, or importance: influence")
        return chosen


def spread(layers: int, count: int) -> list[int]:
    """``count`` of ``layers`` indices, evenly spread, the first and the last among them.

    >>> spread(12, 6)
    [0, 2, 4, 7, 9, 11]
    """
    if count == 1:
        return [0]
    return [round(number * (layers - 1) / (count - 1)) for number in range(count)]


def _checked(keep: list[int], layers: int) -> list[int]:
    wrong = [index for index in keep if not 0 <= index < layers]
    fix = f"write some of 0 to {layers - 1}, each once"
    if wrong or not keep or len(set(keep)) != len(keep):
        raise RecipeError("keep to name layers", f"{wrong[0]}" if wrong else str(keep)[:60], fix)
    if len(keep) == layers:
        raise RecipeError("a layer to drop", "all of them in keep", fix)
    return sorted(keep)


def _short(value: float) -> float:
    return float(f"{value:.6g}")
