"""Which heads and neurons stay: the best masks within a budget, by how much each one's loss would cost.

Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", NeurIPS 2022. With ``m`` the mask of what goes,
the model's loss grows by ``m^T F m / 2``, F the Fisher information of the masks. First F is taken as diagonal: of every
module (a block's heads, or its neurons) the most important ones stay, so a module's options are how many, and the best
counts of all modules together are a knapsack, solved exactly (the paper: a search over thresholds for FLOPs). Then F is
taken as block diagonal, and within each module what stays is swapped for what goes as long as the loss sinks (the
paper's algorithm 2, there one round of greedy choices; here always the best swap, until none is left).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from planish.compress.knapsack import Solution, solve
from planish.errors import InputError

__all__ = ["Masks", "Module", "quadratic", "rearrange", "search"]

_MOST_SWAPS = 10_000


@dataclass(frozen=True)
class Module:
    """What can be cut in one place.

    ``fisher``: float64, ``[n]`` diagonal or ``[n, n]`` whole, of the masks of its n units. ``counts``: how many may
    stay, ascending, the last n. ``cost(k)``: what k of them cost.
    """

    block: int
    kind: Literal["heads", "neurons"]
    fisher: Tensor
    counts: tuple[int, ...]
    cost: Callable[[int], float]

    @property
    def diagonal(self) -> Tensor:
        """``[n]``."""
        return self.fisher.diagonal() if self.fisher.ndim == 2 else self.fisher

    @property
    def ranked(self) -> Tensor:
        """Units from the most important to the least; of equals the first comes first."""
        return torch.argsort(self.diagonal, descending=True, stable=True)

    def losses(self) -> list[float]:
        """Half the diagonal of what goes, for each of ``counts``."""
        kept = torch.cumsum(self.diagonal[self.ranked.flip(0)], 0).flip(0)  # kept[k]: sum of all from rank k on
        return [float(kept[count]) / 2 if count < len(kept) else 0.0 for count in self.counts]


@dataclass(frozen=True)
class Masks:
    """What stays of each module (sorted indices), and what the knapsack found.

    ``loss``: ``m^T F m / 2`` by the block diagonal F, ``diagonal_loss`` before anything was swapped.
    """

    keep: tuple[tuple[int, ...], ...]
    solution: Solution
    loss: float
    diagonal_loss: float

    @property
    def feasible(self) -> bool:
        return self.solution.feasible


def search(modules: Sequence[Module], budget: float, *, fixed: float = 0, tied: Sequence[Sequence[int]] = ()) -> Masks:
    """Masks of least loss whose costs and ``fixed`` are within ``budget``.

    Modules whose numbers stand together in ``tied`` keep the same number of units. If nothing fits, ``feasible`` is
    false and what stays is the least there can be.

    Raises:
        InputError: importances that are negative or not finite, or tied modules with different counts.
    """
    groups = _groups(len(modules), tied)
    problem = [_options([modules[number] for number in group]) for group in groups]
    solution = solve(problem, budget - fixed)
    counts = [0] * len(modules)
    for group, pick in zip(groups, solution.picks, strict=True):
        for number in group:
            counts[number] = modules[number].counts[pick]
    start = [sorted(module.ranked[:count].tolist()) for module, count in zip(modules, counts, strict=True)]
    keep = [rearrange(module.fisher, kept) for module, kept in zip(modules, start, strict=True)]
    before = sum(quadratic(module.fisher, kept) for module, kept in zip(modules, start, strict=True))
    after = sum(quadratic(module.fisher, kept) for module, kept in zip(modules, keep, strict=True))
    return Masks(tuple(map(tuple, keep)), solution, after, before)


def quadratic(fisher: Tensor, keep: Sequence[int]) -> float:
    """``m^T F m / 2``, m the mask of what is not kept; ``fisher`` ``[n]`` or ``[n, n]``."""
    gone = _gone(len(fisher), keep)
    if fisher.ndim == 1:
        return float(fisher[gone].sum()) / 2
    return float(fisher[gone][:, gone].sum()) / 2


def rearrange(fisher: Tensor, keep: Sequence[int]) -> list[int]:
    """Swap what stays for what goes, the best swap first, while ``m^T F m`` sinks; as many stay as before.

    A diagonal F has nothing to gain where the most important stay already.
    """
    if fisher.ndim == 1 or not 0 < len(keep) < len(fisher):
        return sorted(keep)
    gone = _gone(len(fisher), keep)
    diagonal = fisher.diagonal()
    smallest = 1e-12 * float(diagonal.sum())
    for _ in range(_MOST_SWAPS):
        pull = fisher[:, gone].sum(1)  # F m
        back, out = gone.nonzero().flatten(), (~gone).nonzero().flatten()
        change = (diagonal[back] - 2 * pull[back])[:, None] + (diagonal[out] + 2 * pull[out])[None]
        change = change - 2 * fisher[back][:, out]
        best = int(change.argmin())
        if float(change.flatten()[best]) >= -smallest:
            break
        first, second = back[best // len(out)], out[best % len(out)]
        gone[first], gone[second] = False, True
    kept: list[int] = (~gone).nonzero().flatten().tolist()
    return kept


def _gone(size: int, keep: Sequence[int]) -> Tensor:
    gone = torch.ones(size, dtype=torch.bool)
    gone[list(keep)] = False
    return gone


def _groups(count: int, tied: Sequence[Sequence[int]]) -> list[list[int]]:
    """Each module once: the tied ones together, the others alone."""
    together = [list(group) for group in tied if group]
    seen = {number for group in together for number in group}
    return together + [[number] for number in range(count) if number not in seen]


def _options(group: Sequence[Module]) -> list[tuple[float, float]]:
    """(cost, loss) of keeping each count in all modules of the group."""
    if any(module.counts != group[0].counts for module in group):
        raise InputError("tied modules of one size", "different ones", "set uniform: false")
    losses = [module.losses() for module in group]
    return [
        (sum(module.cost(count) for module in group), sum(loss[index] for loss in losses))
        for index, count in enumerate(group[0].counts)
    ]
