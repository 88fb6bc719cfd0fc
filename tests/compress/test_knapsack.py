"""The knapsack against brute force over all choices."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.compress.knapsack import Option, solve
from planish.errors import InputError

LOSSES = st.floats(0, 10, allow_nan=False).map(lambda x: round(x, 3))


def problems(costs: st.SearchStrategy[float]) -> st.SearchStrategy[list[list[Option]]]:
    return st.lists(st.lists(st.tuples(costs, LOSSES), min_size=1, max_size=4), min_size=1, max_size=5)


def brute(modules: Sequence[Sequence[Option]], budget: float) -> float:
    """The least loss of all choices within the budget; infinity if none fits."""
    choices = itertools.product(*modules)
    return min((sum(loss for _, loss in c) for c in choices if sum(cost for cost, _ in c) <= budget), default=math.inf)


@settings(max_examples=150, deadline=None)
@given(problems(st.integers(0, 60)), st.integers(0, 150))
def test_integers_are_solved_exactly(modules: list[list[Option]], budget: int) -> None:
    found = solve(modules, budget)
    expected = brute(modules, budget)
    assert found.feasible == (expected < math.inf)
    assert found.unit == 0
    if found.feasible:
        assert found.cost <= budget
        assert found.loss == pytest.approx(expected)
    else:
        assert found.cost == sum(min(cost for cost, _ in options) for options in modules) > budget


@settings(max_examples=150, deadline=None)
@given(problems(st.floats(0, 60, allow_nan=False)), st.floats(0, 150, allow_nan=False))
def test_milliseconds_stay_in_budget_and_near_the_best(modules: list[list[Option]], budget: float) -> None:
    found = solve(modules, budget, resolution=1000)
    if not found.feasible:
        assert brute(modules, budget) == math.inf
        return
    assert found.cost <= budget * (1 + 1e-12)
    assert brute(modules, budget) - 1e-9 <= found.loss
    assert found.loss <= brute(modules, budget - len(modules) * found.unit) + 1e-9


@settings(max_examples=50, deadline=None)
@given(problems(st.integers(0, 10**12)), st.integers(0, 10**12))
def test_large_integers_are_rounded_up(modules: list[list[Option]], budget: int) -> None:
    found = solve(modules, budget, resolution=500)
    if found.feasible:
        assert found.cost <= budget
        assert found.loss <= brute(modules, budget - len(modules) * found.unit) + 1e-9


def test_common_divisors_are_taken_out() -> None:
    scale = 10**9
    modules = [[(scale, 3.0), (2 * scale, 1.0)], [(0, 5.0), (3 * scale, 0.0)]]
    assert solve(modules, 4 * scale).picks == (0, 1)  # a table of 4 entries, not of 4e9
    assert solve(modules, 4 * scale).unit == 0
    assert solve(modules, 5 * scale).picks == (1, 1)


def test_equal_losses_take_the_cheaper_then_the_earlier_option() -> None:
    assert solve([[(5, 1.0), (2, 1.0), (2, 1.0)]], 10).picks == (1,)
    assert solve([[(5, 1.0), (2, 1.0)], [(7, 0.0), (7, 0.0)]], 100).picks == (1, 0)


def test_it_beats_taking_the_best_ratio_first() -> None:
    """Greedy by loss saved per cost takes (1, gain 6) and is stuck; the best is the two that cost 5."""
    modules: list[list[Option]] = [[(0, 6.0), (1, 0.0)], [(0, 20.0), (5, 0.0)], [(0, 20.0), (5, 0.0)]]
    assert solve(modules, 10).picks == (0, 1, 1)


@pytest.mark.parametrize("modules", [[[]], [[(1, math.nan)]], [[(-1, 0.0)]], [[(math.inf, 0.0)]]])
def test_bad_input(modules: list[list[Option]]) -> None:
    with pytest.raises(InputError):
        solve(modules, 10)
