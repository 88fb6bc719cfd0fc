"""Histograms of magnitudes: exact sums in any order, and ranges against searches over the values themselves."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.compress.magnitudes import Magnitudes, Range
from planish.errors import DataError

METHODS: list[Range] = ["absmax", "percentile", "mse", "entropy"]


def counted(values: torch.Tensor) -> Magnitudes:
    seen = Magnitudes()
    seen.add(values)
    return seen


def rounding_error(values: torch.Tensor, limit: float) -> float:
    step = limit / 127.5
    rounded = (values / step).round().clamp(-128, 127) * step
    return float((values - rounded).double().square().mean())


def heavy_tailed(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, generator=generator)
    values[: count // 5000] *= 12
    return values


@given(st.lists(st.integers(1, 400), min_size=1, max_size=6), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_cuts_and_order_do_not_matter(lengths: list[int], seed: int) -> None:
    values = heavy_tailed(sum(lengths), seed)
    whole, parts = counted(values), [counted(part) for part in values.split(lengths)]
    merged = Magnitudes()
    for part in reversed(parts):
        merged.merge(part)
    assert torch.equal(merged.counts, whole.counts)
    assert int(whole.counts.sum()) == len(values)
    for method in METHODS:
        assert merged.limit(method) == whole.limit(method)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("percent", [99.0, 99.9, 100.0])
def test_percentile_is_that_of_the_values(seed: int, percent: float) -> None:
    values = heavy_tailed(20_000, seed)
    ordered = values.abs().sort().values
    exact = float(ordered[math.ceil(len(values) * percent / 100) - 1])
    assert exact <= counted(values).limit("percentile", percent) <= exact * 1.016


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mse_is_as_good_as_a_search_over_the_values(seed: int) -> None:
    values = heavy_tailed(20_000, seed)
    found = rounding_error(values, counted(values).limit("mse"))
    largest = float(values.abs().max())
    best = min(rounding_error(values, largest * part / 400) for part in range(20, 401))
    assert found <= best * 1.02
    assert found < 0.95 * rounding_error(values, largest)


def test_entropy_cuts_what_hardly_ever_occurs() -> None:
    """A thousand times the values fill a twentieth of the range: keeping all of it would waste nearly all levels."""
    values = torch.cat([torch.rand(100_000, generator=torch.Generator().manual_seed(0)), torch.tensor([20.0])])
    assert 0.9 < counted(values).limit("entropy") < 2.0


@pytest.mark.parametrize("method", METHODS)
def test_ranges_of_odd_inputs(method: Range) -> None:
    assert Magnitudes().limit(method) == 0
    assert counted(torch.zeros(9)).limit(method) == 0
    assert counted(torch.full((9,), -3.0)).limit(method) == pytest.approx(3.0, rel=1e-6)
    assert 0 < counted(torch.tensor([1e-42, 3e38, 0.0])).limit(method) <= 3.0000001e38
    assert Magnitudes().limit(method) == counted(torch.empty(0)).limit(method)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(DataError, match="finite inputs of a layer"):
        Magnitudes().add(torch.tensor([1.0, value]), "a layer")
