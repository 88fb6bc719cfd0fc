"""Prune attention heads and feed-forward neurons without training: within a budget, what the loss misses least.

After Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", NeurIPS 2022: importances of all heads and
neurons (:mod:`~planish.compress.fisher`), the best masks within the budget (:mod:`~planish.compress.mask_search`), then
least squares on what stays (:mod:`~planish.compress.mask_tuning`). What goes is cut out of the weights, and each block
may keep another number of heads and neurons.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from planish.compress.bench import Bench, Context
from planish.compress.budget import Budget, Unit, budget_of
from planish.compress.cut_and_tune import Kept, cut_and_tune
from planish.compress.digest import tensors_digest
from planish.compress.fisher import Importance, Method, measure_importance
from planish.compress.flops import Costs, costs
from planish.compress.latency_table import LatencyTable
from planish.compress.mask_search import Masks, Module, search
from planish.compress.mask_tuning import Fit, Tuning
from planish.compress.passes import Pass
from planish.errors import RecipeError
from planish.families import Parts, block_parts
from planish.sliced import shapes_of

__all__ = ["Prune"]

_UNITS: tuple[Unit, ...] = ("flops", "parameters", "bytes", "latency", "milliseconds")
_MOST_TOKENS = 1 << 16
"""Of long examples fewer are taken than ``samples``: as many as have so many tokens."""

Share = Annotated[float, Field(gt=0.0, le=1.0)]


@dataclass(frozen=True, kw_only=True)
class Prune(Pass):
    """Cut heads and neurons down to one budget.

    Budgets: ``flops``, ``parameters`` (shares of the blocks' that stay, at ``length`` tokens), ``bytes`` (of the whole
    model in float32), ``latency`` (share) and ``milliseconds`` of the whole model by the device's ``table``.
    ``multiple``: neurons stay in multiples of it (default 32; 16 where a block has fewer than 512). ``uniform``: as
    many of them in every block. ``labels``: importance on the examples' labels where they have some, else on labels
    drawn from what the model predicts. ``samples``: how many training examples are read, 65,536 tokens at most.
    """

    name: ClassVar[str] = "prune"
    roles: ClassVar[frozenset[str]] = frozenset()
    kinds: ClassVar[frozenset[str]] = frozenset()
    in_place: ClassVar[bool] = True
    judged: ClassVar[bool] = True

    flops: Share | None = None
    parameters: Share | None = None
    bytes: Annotated[int, Field(ge=1)] | None = None
    latency: Share | None = None
    milliseconds: Annotated[float, Field(gt=0.0, le=1e6)] | None = None
    table: str | None = None
    heads: bool = True
    neurons: bool = True
    importance: Method = "fisher"
    labels: bool = True
    samples: Annotated[int, Field(ge=8, le=1_000_000)] = 512
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    length: Annotated[int, Field(ge=1, le=131_072)] = 128
    multiple: Annotated[int, Field(ge=1, le=4096)] | None = None
    uniform: bool = False
    tuning: Tuning = "weights"

    def __post_init__(self) -> None:
        given = [unit for unit in _UNITS if getattr(self, unit) is not None]
        if len(given) != 1:
            expected = f"one of {', '.join(_UNITS)} in pass {self.name}"
            raise RecipeError(expected, " and ".join(given) or "none", "write flops: 0.7")
        timed = given[0] in ("latency", "milliseconds")
        if timed != (self.table is not None):
            got = f"{given[0]} {'without a' if timed else 'and'} table"
            fix = "write table: and the path of a latency table" if timed else "remove table, or write latency: 0.5"
            raise RecipeError(f"a table with latency or milliseconds in pass {self.name}", got, fix)
        if not (self.heads or self.neurons):
            raise RecipeError(f"heads or neurons to cut in pass {self.name}", "neither", "write neurons: true")
        if self.include or self.exclude:
            got = "one of them"
            raise RecipeError(f"pass {self.name} without include / exclude", got, "write heads: or neurons: false")

    @property
    def unit(self) -> Unit:
        return next(unit for unit in _UNITS if getattr(self, unit) is not None)

    def apply(self, bench: Bench, context: Context) -> Bench:
        heads = self._checked(bench)
        table = None if self.table is None else LatencyTable.load(context.folder / self.table)
        parts, before = block_parts(bench.model), costs(bench.model, self.length)
        budget = budget_of(bench.model, self.unit, float(getattr(self, self.unit)), self.length, table)
        examples = context.examples()
        decoder = examples.task == "text-generation"
        _search(_modules(parts, None, budget, heads, self), budget, decoder, self.uniform)  # impossible: says so now
        batches = _first(examples.batches("train", self.batch_size, seed=context.seed), self.samples)
        importance = measure_importance(
            bench.model,
            batches,
            task=examples.task,
            method=self.importance,
            labelled=self.labels and examples.labelled,
            several=examples.several,
            seed=context.seed,
            tick=lambda done, total: context.progress(f"{self.name}: importance", done, total),
            pieces=context.pieces,
            tag=examples.digest,
        )
        masks = _search(_modules(parts, importance, budget, heads, self), budget, decoder, self.uniform)
        kept = _kept(parts, masks)
        fits = cut_and_tune(
            bench,
            kept,
            batches,
            method=self.tuning,
            tick=lambda done, total: context.progress(f"{self.name}: tuning", done, total),
            pieces=context.pieces,
            tag=f"{self.tuning} {examples.digest} {_digest(kept)}",
        )
        bench.facts.update(
            kept=_sizes(before, kept),
            budget=_spent(budget, masks),
            **_shares(before, costs(bench.model, self.length)),
            importance_lost=_short(masks.loss),
            importance_lost_unswapped=_short(masks.diagonal_loss),
            samples=importance.samples,
            heads_cut=heads,
            tuning=[_gain(pair) for pair in fits],
            **({} if table is None else {"predicted_ms": _short(table.predict(shapes_of(bench.model)))}),
        )
        return bench

    def _checked(self, bench: Bench) -> bool:
        """Whether heads are cut.

        Raises:
            RecipeError: layers are quantized already, or heads of a model whose heads cannot be cut.
        """
        if bench.stored:
            got = f"{len(bench.stored)} layers quantized by an earlier pass"
            raise RecipeError(f"pass {self.name} before passes that quantize", got, "change their order")
        if bench.model.config.model_type != "mpnet":  # type: ignore[union-attr]
            return self.heads
        if not self.neurons:
            got = "MPNet, whose blocks share one position bias for each head"
            raise RecipeError("a model whose heads can be cut", got, "write neurons: true, heads: false")
        return False


def _modules(
    parts: Sequence[Parts], importance: Importance | None, budget: Budget, heads: bool, step: Prune
) -> list[Module]:
    """First all blocks' heads, then all blocks' neurons; without importance all units weigh nothing."""
    multiple = step.multiple or (32 if min(part.ffn for part in parts) >= 512 else 16)
    modules = []
    for block, part in enumerate(parts):
        fisher = torch.zeros(part.kv_heads, dtype=torch.float64) if importance is None else importance.heads[block]
        counts = tuple(range(1, part.kv_heads + 1)) if heads else (part.kv_heads,)
        modules.append(Module(block, "heads", fisher, counts, lambda kept, block=block: budget.attention(block, kept)))  # type: ignore[misc]
    for block, part in enumerate(parts):
        fisher = torch.zeros(part.ffn, dtype=torch.float64) if importance is None else importance.neurons[block]
        counts = (*range(multiple, part.ffn, multiple), part.ffn) if step.neurons else (part.ffn,)
        modules.append(Module(block, "neurons", fisher, counts, lambda kept, block=block: budget.ffn(block, kept)))  # type: ignore[misc]
    return modules


def _search(modules: list[Module], budget: Budget, decoder: bool, uniform: bool) -> Masks:
    """The best masks; a decoder's blocks keep as many key/value heads each, since its cache has one shape.

    Raises:
        RecipeError: the budget is too small; the message says the smallest possible.
    """
    half = len(modules) // 2
    tied = [list(range(half))] if decoder or uniform else []
    tied += [list(range(half, len(modules)))] if uniform else []
    found = search(modules, budget.limit, fixed=budget.fixed, tied=tied)
    if not found.feasible:
        raise budget.impossible(found.solution.cost + budget.fixed)
    return found


def _kept(parts: Sequence[Parts], masks: Masks) -> list[Kept]:
    half = len(parts)
    return [Kept(masks.keep[block], masks.keep[half + block]) for block in range(half)]


def _first(batches: list[dict[str, torch.Tensor]], samples: int) -> list[dict[str, torch.Tensor]]:
    """The first batches with ``samples`` examples, or with as many as there may be tokens; at least one."""
    chosen, tokens = list[dict[str, torch.Tensor]](), 0
    for batch in batches:
        if samples <= 0 or tokens >= _MOST_TOKENS:
            break
        room = max(1, (_MOST_TOKENS - tokens) // batch["input_ids"].shape[1])
        part = {name: one[: min(samples, room)] for name, one in batch.items()}
        chosen.append(part)
        samples -= len(part["input_ids"])
        tokens += part["input_ids"].numel()
    return chosen


def _digest(kept: Sequence[Kept]) -> str:
    numbers = itertools.chain.from_iterable((*one.heads, -1, *one.neurons, -1) for one in kept)
    return tensors_digest({"kept": torch.tensor(list(numbers))})


def _sizes(before: Costs, kept: Sequence[Kept]) -> dict[str, Any]:
    """Head groups and neurons of each block, kept and of how many."""
    return {
        "heads": [len(one.heads) for one in kept],
        "of_heads": [block.groups for block in before.blocks],
        "neurons": [len(one.neurons) for one in kept],
        "of_neurons": [block.neurons for block in before.blocks],
    }


def _spent(budget: Budget, masks: Masks) -> dict[str, Any]:
    spent = masks.solution.cost + budget.fixed
    return {
        "unit": budget.unit,
        "limit": _short(budget.limit),
        "spent": _short(spent),
        "before": _short(budget.whole),
        "share_left": _short(spent / budget.whole),
    }


def _shares(before: Costs, after: Costs) -> dict[str, float]:
    return {
        "block_flops_left": _short(after.block_flops / before.block_flops),
        "block_parameters_left": _short(after.block_parameters / before.block_parameters),
        "flops_left": _short(after.flops / before.flops),
        "parameters_left": _short(after.parameters / before.parameters),
    }


def _gain(pair: tuple[Fit, Fit]) -> dict[str, float]:
    """Relative squared errors of what is written into the stream, on samples held out."""
    first, second = pair
    return {
        "attention_before": _short(first.before),
        "attention_after": _short(first.after),
        "ffn_before": _short(second.before),
        "ffn_after": _short(second.after),
    }


def _short(value: float) -> float:
    return float(f"{value:.6g}")
