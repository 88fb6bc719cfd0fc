"""The mask search against brute force, and against choosing without looking."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.compress.mask_search import Module, quadratic, rearrange, search
from planish.errors import InputError


def fisher(size: int, seed: int, *, whole: bool = True) -> torch.Tensor:
    """A random positive semidefinite ``[size, size]``, or its diagonal."""
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(size + 2, size, generator=generator, dtype=torch.float64)
    found = samples.t() @ samples / size
    return found if whole else found.diagonal().clone()


def module(size: int, seed: int, price: int, *, step: int = 1, whole: bool = True, block: int = 0) -> Module:
    counts = (*range(step, size, step), size)
    return Module(block, "neurons", fisher(size, seed, whole=whole), counts, lambda count: price * count)


def brute(modules: Sequence[Module], budget: float) -> float:
    """The least ``m^T F m / 2`` of all masks in the budget."""
    choices = [
        [
            (keep, quadratic(one.fisher, keep), one.cost(count))
            for count in one.counts
            for keep in itertools.combinations(range(len(one.fisher)), count)
        ]
        for one in modules
    ]
    return min(
        sum(loss for _, loss, _ in choice)
        for choice in itertools.product(*choices)
        if sum(cost for _, _, cost in choice) <= budget
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.36, 1.0), st.integers(1, 2))  # 12 of 34 is the least there can be
def test_a_diagonal_is_searched_exactly(seed: int, share: float, step: int) -> None:
    modules = [module(4, seed, 3, step=step, whole=False), module(5, seed + 1, 2, whole=False), module(3, seed + 2, 4)]
    modules[2] = Module(0, "heads", modules[2].diagonal, (1, 2, 3), lambda count: 4 * count)
    budget = share * (12 + 10 + 12)
    found = search(modules, budget)
    assert found.loss == pytest.approx(brute(modules, budget))
    assert sum(one.cost(len(keep)) for one, keep in zip(modules, found.keep, strict=True)) <= budget


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 9), st.integers(1, 8))
def test_swapping_never_loses_and_nearly_finds_the_best(seed: int, size: int, count: int) -> None:
    matrix = fisher(size, seed)
    count = min(count, size)
    start = torch.argsort(matrix.diagonal(), descending=True)[:count].tolist()
    found = rearrange(matrix, start)
    assert len(found) == count
    assert found == sorted(set(found))
    assert quadratic(matrix, found) <= quadratic(matrix, start) + 1e-12
    for inside, outside in itertools.product(found, set(range(size)) - set(found)):  # no single swap is left
        other = sorted({*found, outside} - {inside})
        assert quadratic(matrix, other) >= quadratic(matrix, found) - 1e-9


def test_swapping_finds_what_the_diagonal_hides() -> None:
    """Two units do the same work: each alone is cheap to lose, both together are not."""
    matrix = torch.eye(4, dtype=torch.float64) * 2
    matrix[0, 0] = matrix[1, 1] = 1.5
    matrix[0, 1] = matrix[1, 0] = 1.5
    assert rearrange(matrix, [2, 3]) in ([0, 2], [0, 3], [1, 2], [1, 3])
    twins = [Module(0, "heads", matrix, (2,), float), Module(1, "heads", matrix, (2,), float)]
    found = search(twins, 4)
    assert found.loss < found.diagonal_loss == pytest.approx(6.0)


def test_whole_matrices_come_close_to_brute_force() -> None:
    """Counts come from the diagonal, so the whole matrix is not searched exactly: within a tenth on average."""
    ratios = []
    for seed in range(12):
        modules = [module(5, seed, 3), module(4, 50 + seed, 2)]
        found = search(modules, 14)
        ratios.append(found.loss / brute(modules, 14))
    assert min(ratios) >= 1 - 1e-9
    assert sum(ratios) / len(ratios) < 1.25


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_it_beats_chance_and_equal_shares(share: float) -> None:
    modules = [
        Module(number, "neurons", fisher(24, number, whole=False) * 4.0**number, tuple(range(1, 25)), lambda k: 5.0 * k)
        for number in range(4)
    ]
    budget = share * 4 * 24 * 5
    found = search(modules, budget)
    each = int(24 * share)
    equal = sum(quadratic(one.fisher, one.ranked[:each].tolist()) for one in modules)
    assert found.loss < 0.9 * equal
    chance = random.Random(0)
    drawn = [sum(quadratic(one.fisher, chance.sample(range(24), each)) for one in modules) for _ in range(50)]
    assert found.loss < 0.5 * min(drawn)


def test_tied_modules_keep_the_same_number() -> None:
    modules = [module(6, number, 1, whole=False, block=number) for number in range(3)]
    scaled = [Module(m.block, m.kind, m.fisher * 100**m.block, m.counts, m.cost) for m in modules]
    free, tied = search(scaled, 9), search(scaled, 9, tied=[[0, 1, 2]])
    assert len({len(keep) for keep in tied.keep}) == 1
    assert len({len(keep) for keep in free.keep}) > 1
    assert free.loss < tied.loss
    best = min(sum(quadratic(one.fisher, one.ranked[:k].tolist()) for one in scaled) for k in (1, 2, 3))
    assert tied.loss == pytest.approx(best)
    assert search(scaled, 9, tied=[[0, 2]]).loss <= tied.loss


def test_what_does_not_fit() -> None:
    found = search([module(4, 0, 5), module(4, 1, 5)], 20, fixed=11)
    assert not found.feasible
    assert found.solution.cost == 10
    assert search([module(4, 0, 5), module(4, 1, 5)], 21, fixed=11).feasible


def test_bad_input() -> None:
    odd = module(4, 0, 1, whole=False)
    broken = Module(0, "heads", torch.full((4,), torch.nan, dtype=torch.float64), odd.counts, odd.cost)
    with pytest.raises(InputError, match="finite"):
        search([broken], 3)
    with pytest.raises(InputError, match="one size"):
        search([odd, module(5, 0, 1)], 7, tied=[[0, 1]])
