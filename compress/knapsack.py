"""The multiple-choice knapsack, exactly: one option of every module, least loss, total cost within a budget.

Dynamic programming over integer costs (Dudzinski & Walukiewicz, "Exact methods for the knapsack problem and its
generalizations", 1987): what the cheapest options cost is taken off the budget, the rest is divided by the greatest
common divisor of all cost differences, and one pass over each module's options fills a table of the budget's length.

Costs that are no integers (milliseconds), and integers whose table would be longer than ``resolution``, are counted in
units of the ``resolution``-th part of the budget's slack, each rounded up. So the budget is never exceeded, and the
loss is at most that of the best choice within ``budget - modules * unit``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planish.errors import InputError

__all__ = ["Option", "Solution", "solve"]

Option = tuple[float, float]
"""(cost, loss) of an option; costs are compared exactly where all of them are ``int``."""


@dataclass(frozen=True)
class Solution:
    """The option picked of each module, and what they come to.

    Where ``feasible`` is false no choice fits: ``picks`` are then the cheapest options, ``cost`` the least possible.
    """

    picks: tuple[int, ...]
    cost: float
    loss: float
    feasible: bool
    unit: float = 0.0
    """What one step of rounding up is worth, in the unit of the costs; 0 where nothing was rounded."""


def solve(modules: Sequence[Sequence[Option]], budget: float, *, resolution: int = 1 << 18) -> Solution:
    """Pick one option of each module so that the sum of costs is at most ``budget`` and the sum of losses least.

    Equal losses go to the cheaper option of a module, then to the earlier one: the answer is always the same.

    Raises:
        InputError: a module without options, or a cost or loss that is negative or not finite.
    """
    _check(modules)
    cheapest = tuple(min(range(len(options)), key=lambda i: (options[i][0], options[i][1], i)) for options in modules)
    least = sum(options[pick][0] for options, pick in zip(modules, cheapest, strict=True))
    if least > budget:
        return _solution(modules, cheapest, feasible=False)
    floors = [options[pick][0] for options, pick in zip(modules, cheapest, strict=True)]
    extra = [[cost - floor for cost, _ in options] for options, floor in zip(modules, floors, strict=True)]
    slack = budget - least
    if slack >= sum(max(costs) for costs in extra):  # room for everything: nothing to trade
        best_each = [min(range(len(options)), key=lambda i: (options[i][1], options[i][0], i)) for options in modules]
        return _solution(modules, tuple(best_each), feasible=True)
    steps, capacity, unit = _in_units(extra, slack, resolution)
    orders = [sorted(range(len(costs)), key=lambda i, costs=costs: (costs[i], i)) for costs in steps]  # type: ignore[misc]
    tables: list[NDArray[np.int16]] = []
    best = np.zeros(capacity + 1)
    for options, costs, order in zip(modules, steps, orders, strict=True):
        best, table = _add_module(best, [(costs[i], options[i][1]) for i in order])
        tables.append(table)
    picks = [0] * len(modules)
    left = capacity
    for index in reversed(range(len(modules))):
        picks[index] = orders[index][int(tables[index][left])]
        left -= steps[index][picks[index]]
    return _solution(modules, tuple(picks), feasible=True, unit=unit)


def _add_module(
    best: NDArray[np.float64], options: list[tuple[int, float]]
) -> tuple[NDArray[np.float64], NDArray[np.int16]]:
    """Least loss with this module for every budget, and which option gives it; ``best`` is without the module."""
    size = len(best)
    found = np.full(size, np.inf)
    picked = np.zeros(size, dtype=np.int16)
    for number, (cost, loss) in enumerate(options):
        if cost >= size:
            continue
        candidate = best[: size - cost] + loss
        better = candidate < found[cost:]
        found[cost:][better] = candidate[better]
        picked[cost:][better] = number
    return found, picked


def _in_units(extra: list[list[float]], slack: float, resolution: int) -> tuple[list[list[int]], int, float]:
    """Costs above the cheapest in whole units, the slack in whole units, and the unit if anything was rounded."""
    if all(isinstance(cost, int) for costs in extra for cost in costs):
        divisor = math.gcd(*(int(cost) for costs in extra for cost in costs)) or 1
        if slack // divisor <= resolution:
            return [[int(cost) // divisor for cost in costs] for costs in extra], int(slack // divisor), 0.0
    unit = slack / resolution
    if unit <= 0:
        return [[0 if cost <= 0 else 1 for cost in costs] for costs in extra], 0, 0.0
    return [[math.ceil(cost / unit) for cost in costs] for costs in extra], resolution, unit


def _solution(
    modules: Sequence[Sequence[Option]], picks: tuple[int, ...], *, feasible: bool, unit: float = 0.0
) -> Solution:
    chosen = [options[pick] for options, pick in zip(modules, picks, strict=True)]
    return Solution(picks, sum(cost for cost, _ in chosen), math.fsum(loss for _, loss in chosen), feasible, unit)


def _check(modules: Sequence[Sequence[Option]]) -> None:
    for index, options in enumerate(modules):
        if not options or len(options) > np.iinfo(np.int16).max:
            raise InputError(f"1 to 32767 options for module {index}", str(len(options)), "give each module options")
        for cost, loss in options:
            if not (0 <= cost < math.inf and 0 <= loss < math.inf):
                got = f"cost {cost}, loss {loss}"
                raise InputError(f"finite costs and losses of 0 or more in module {index}", got, "check the importance")
