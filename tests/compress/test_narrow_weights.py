"""7 bits, stored in 8: the grid of ``weight_bits: 7``."""

from __future__ import annotations

import pytest
import torch

from planish.compress.grid import Grid, round_to_grid
from planish.errors import RecipeError


@pytest.mark.parametrize("range", ["mse", "absmax"])
def test_seven_bits_use_their_range_and_no_more(range: str) -> None:
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    weight[0, 0], weight[1, 0] = 30.0, -30.0
    found = round_to_grid(weight, bits=7, group_size=None, symmetric=True, range=range)  # type: ignore[arg-type]
    assert (found.bits, found.values.dtype) == (8, torch.int8)
    assert (int(found.values.min()), int(found.values.max())) == (-64, 63)
    assert torch.equal(found.scale.half().float(), found.scale)
    inside = found.values.abs() < 63  # what was not cut off errs by half a step
    assert bool(((found.dequantize() - weight).abs() <= 0.501 * found.scale)[inside].all())


def test_seven_bits_err_twice_as_far_as_eight() -> None:
    """A step twice as wide: four times the squared error."""
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))

    def error(bits: int) -> float:
        found = round_to_grid(weight, bits=bits, group_size=None, symmetric=True)
        return float((found.dequantize() - weight).square().mean())

    assert 3 < error(7) / error(8) < 5


def test_pairs_of_products_fit_sixteen_bits() -> None:
    grid = Grid(7, symmetric=True)
    assert 2 * 255 * grid.lowest >= -(2**15)
    assert 2 * 255 * grid.highest < 2**15


def test_only_symmetric() -> None:
    with pytest.raises(RecipeError, match="7 if symmetric"):
        Grid(7, symmetric=False)
