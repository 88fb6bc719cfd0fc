"""Rounding to a grid: against brute force, against plain rounding, and properties for any weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from planish.compress import grid as grid_module
from planish.compress.grid import Grid, Quantized, round_to_grid
from planish.errors import CheckpointError, RecipeError

KINDS = [(4, 32, False), (4, 32, True), (4, None, False), (8, None, True), (8, 64, False)]
SMALLEST_NORMAL = 2.0**-14


def gaussian(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def squared_error(quantized: Quantized, weight: Tensor) -> Tensor:
    """Per group, ``[out, groups]``."""
    return (quantized.dequantize() - weight).square().view(*quantized.scale.shape, -1).sum(-1)


def brute_force(group: Tensor, grid: Grid) -> float:
    """Least squared error of one group over 1500 scales and every zero point, in float64."""
    w = group.double()
    scales = torch.linspace(0.3, 1.3, 1500, dtype=torch.float64) * (w.max() - w.min()) / (grid.highest - grid.lowest)
    if grid.symmetric:
        scales *= 2 * w.abs().max() / (w.max() - w.min())
    scales = scales.half().double()[:, None]
    zeros = [0] if grid.symmetric else list(range(grid.lowest, grid.highest + 1))
    errors = []
    for zero in zeros:
        q = (w / scales + zero).round().clamp(grid.lowest, grid.highest)
        errors.append(((q - zero) * scales - w).square().sum(-1).min())
    return float(torch.stack(errors).min())


@pytest.mark.parametrize("symmetric", [False, True])
def test_search_comes_close_to_brute_force(symmetric: bool) -> None:
    weight = gaussian(40, 32)
    found = squared_error(round_to_grid(weight, bits=4, group_size=32, symmetric=symmetric), weight)[:, 0]
    least = torch.tensor([brute_force(row, Grid(4, symmetric)) for row in weight])
    assert bool((found >= least * 0.999).all())  # brute force is the lower bound
    assert float(found.sum() / least.sum()) < 1.01
    assert float((found / least).max()) < 1.15


@pytest.mark.parametrize(
    ("bits", "group", "symmetric", "at_most"),
    [(4, 32, False, 0.94), (4, 32, True, 0.89), (4, None, False, 0.85), (8, None, True, 0.99)],
)
def test_searched_range_beats_the_weights_range(bits: int, group: int | None, symmetric: bool, at_most: float) -> None:
    weight = gaussian(64, 512)
    kind: dict[str, Any] = {"bits": bits, "group_size": group, "symmetric": symmetric}
    plain = squared_error(round_to_grid(weight, **kind, range="absmax"), weight)
    searched = squared_error(round_to_grid(weight, **kind, range="mse"), weight)
    assert bool((searched <= plain * 1.00001).all())
    assert float(searched.sum()) < at_most * float(plain.sum())


@pytest.mark.parametrize(("bits", "group", "symmetric"), KINDS)
def test_matches_elementwise_reference(bits: int, group: int | None, symmetric: bool) -> None:
    """absmax written down once more, group by group, in plain Python."""
    weight = gaussian(3, 64)
    found = round_to_grid(weight, bits=bits, group_size=group, symmetric=symmetric, range="absmax")
    low, high = (-127 if symmetric and bits == 8 else -(2 ** (bits - 1))), 2 ** (bits - 1) - 1
    for row in range(3):
        for index, members in enumerate(weight[row].view(found.scale.shape[1], -1)):
            top, bottom = max(0.0, float(members.max())), min(0.0, float(members.min()))
            spread = max(bottom / low, top / high) if symmetric else (top - bottom) / (high - low)
            scale = float(torch.tensor(spread).half())
            zero = 0 if symmetric else min(max(round(low - bottom / scale), low), high)
            assert float(found.scale[row, index]) == scale
            if found.zero_point is not None:
                assert int(found.zero_point[row, index]) == zero
            values = found.values[row].view(found.scale.shape[1], -1)[index]
            assert values.tolist() == [min(max(round(float(w) / scale + zero), low), high) for w in members]


def matrices(largest: float) -> st.SearchStrategy[Tensor]:
    """``[3, 32]`` with rows of very different size, zeros and outliers among them."""
    exponents = st.lists(st.floats(-12, largest), min_size=3, max_size=3)
    return st.builds(
        lambda seed, powers, outlier: _rows(seed, powers, outlier),
        st.integers(0, 10_000),
        exponents,
        st.integers(0, 40),
    )


def _rows(seed: int, powers: list[float], outlier: int) -> Tensor:
    weight = torch.randn(3, 32, generator=torch.Generator().manual_seed(seed))
    weight[0, : outlier % 32] = 0
    weight[1] = weight[1].abs()  # a group on one side of zero
    weight[2, outlier % 32] *= outlier
    return weight * torch.tensor([10.0**power for power in powers])[:, None]


@given(matrices(30), st.sampled_from(KINDS), st.sampled_from(["mse", "absmax"]))
@settings(max_examples=150, deadline=None)
def test_what_is_stored_can_be_stored(weight: Tensor, kind: tuple[int, int | None, bool], mode: Any) -> None:
    bits, _, symmetric = kind
    found = round_to_grid(weight, bits=bits, group_size=32, symmetric=symmetric, range=mode)
    assert found.values.dtype == torch.int8
    assert found.values.shape == weight.shape
    grid = Grid(bits, symmetric)
    assert int(found.values.min()) >= grid.lowest
    assert int(found.values.max()) <= grid.highest
    assert torch.equal(found.scale.half().float(), found.scale)
    assert bool(((found.scale >= SMALLEST_NORMAL) & torch.isfinite(found.scale)).all())
    assert (found.zero_point is None) == symmetric
    if found.zero_point is not None:
        assert found.zero_point.shape == found.scale.shape
        assert int(found.zero_point.min()) >= grid.lowest
        assert int(found.zero_point.max()) <= grid.highest
    assert bool(torch.isfinite(found.dequantize()).all())


@given(matrices(4), st.sampled_from(KINDS))
@settings(max_examples=150, deadline=None)
def test_plain_rounding_errs_by_at_most_one_step(weight: Tensor, kind: tuple[int, int | None, bool]) -> None:
    """Half a step by rounding, and at the ends half a step more where the zero point was rounded."""
    bits, _, symmetric = kind
    found = round_to_grid(weight, bits=bits, group_size=32, symmetric=symmetric, range="absmax")
    # fp16 may round the scale down by 2^-11: the outermost of up to 255 steps then lies that much further in
    steps = (0.5 if symmetric else 1.0) + 256 * 2.0**-11
    assert bool(((found.dequantize() - weight).abs() <= steps * found.scale).all())


@given(
    st.integers(0, 10_000),
    st.sampled_from([(4, False), (4, True), (8, True), (8, False)]),
    st.sampled_from(["mse", "absmax"]),
)
@settings(max_examples=100, deadline=None)
def test_weights_on_a_grid_stay(seed: int, kind: tuple[int, bool], mode: Any) -> None:
    grid = Grid(*kind)
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(grid.lowest, grid.highest + 1, (4, 32), generator=generator)
    q[:, 3], q[:, 20] = grid.lowest, grid.highest
    scale = (torch.rand(4, 1, generator=generator) + 0.01).half().float()
    zero = (
        torch.zeros(4, 1)
        if grid.symmetric
        else torch.randint(grid.lowest, grid.highest + 1, (4, 1), generator=generator)
    )
    weight = (q - zero) * scale
    found = round_to_grid(weight, bits=grid.bits, group_size=32, symmetric=grid.symmetric, range=mode)
    assert torch.equal(found.values, q.to(torch.int8))
    assert torch.equal(found.dequantize(), weight)


def test_four_bit_symmetric_uses_its_lowest_integer() -> None:
    """-8 costs nothing and is one more level: under MSE it can only help."""
    weight = gaussian(64, 64)
    found = round_to_grid(weight, bits=4, group_size=32, symmetric=True)
    assert int(found.values.min()) == -8


def test_rows_do_not_depend_on_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = gaussian(37, 96)
    whole = round_to_grid(weight, bits=4, group_size=32, symmetric=False)
    monkeypatch.setattr(grid_module, "_CHUNK", 96 * 5)
    pieces = round_to_grid(weight, bits=4, group_size=32, symmetric=False)
    assert torch.equal(whole.values, pieces.values)
    assert torch.equal(whole.scale, pieces.scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_views_are_read(dtype: torch.dtype) -> None:
    stored = gaussian(64, 32).to(dtype)
    found = round_to_grid(stored.t(), bits=8, group_size=None, symmetric=True)
    again = round_to_grid(stored.t().float().contiguous(), bits=8, group_size=None, symmetric=True)
    assert torch.equal(found.values, again.values)


def test_all_zero_rows_stay_zero() -> None:
    for bits, _, symmetric in KINDS:
        found = round_to_grid(torch.zeros(2, 64), bits=bits, group_size=32, symmetric=symmetric)
        assert float(found.dequantize().abs().max()) == 0


@pytest.mark.parametrize(("group", "advice"), [(48, "16 or 32 or 64"), (0, "choose"), (-32, "choose")])
def test_group_must_divide(group: int, advice: str) -> None:
    with pytest.raises(RecipeError, match=advice):
        round_to_grid(torch.ones(2, 64), bits=4, group_size=group, symmetric=True)


def test_group_advice_where_none_fits() -> None:
    with pytest.raises(RecipeError, match="exclude the layer"):
        round_to_grid(torch.ones(2, 65), bits=4, group_size=32, symmetric=True)


@pytest.mark.parametrize(
    "weight",
    [
        torch.tensor([[1.0, float("nan")]]),
        torch.tensor([[1.0, float("inf")]]),
        torch.ones(4),
        torch.ones(0, 4),
        torch.ones(2, 2, dtype=torch.int64),
    ],
)
def test_unusable_weights_are_refused(weight: Tensor) -> None:
    with pytest.raises(CheckpointError):
        round_to_grid(weight, bits=4, group_size=None, symmetric=True)


def test_bits_must_be_known() -> None:
    with pytest.raises(RecipeError, match="4 or 8"):
        round_to_grid(torch.ones(2, 2), bits=3, group_size=None, symmetric=True)
