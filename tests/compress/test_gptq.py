"""GPTQ against a literal implementation of the paper's formulas, against plain rounding, and at its edges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import planish.compress.refine as refine_module
from planish.compress.gptq import HessianSum, gptq
from planish.compress.grid import Grid, Quantized, round_to_grid
from planish.errors import CheckpointError, InputError, PlanishError, RecipeError


def layer(rows: int, columns: int, seed: int = 0, samples: int = 400) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, correlated inputs with a few loud channels (as in trained models), and their Hessian."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 0.05
    factors = torch.randn(samples, columns // 4, generator=generator)
    inputs = factors @ torch.randn(columns // 4, columns, generator=generator)
    inputs += 0.3 * torch.randn(samples, columns, generator=generator)
    inputs[:, :: columns // 4] *= 8
    hessian = HessianSum(columns)
    hessian.add(inputs)
    return weight, inputs, hessian.matrix


def output_error(quantized: Quantized, weight: Tensor, inputs: Tensor) -> float:
    return float((inputs @ (quantized.dequantize() - weight).t()).square().sum())


def brain_surgeon(weight: Tensor, hessian: Tensor, grid: Grid, group: int, order: list[int]) -> tuple[Tensor, Tensor]:
    """The paper's equations 2 and 3 in float64, one column at a time, each with the explicit inverse of what remains.

    Returns the integers and, per row, the least distance of any weight to a tie between two integers.
    """
    w, h = weight.double(), hessian.double()
    h = h + 0.01 * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    integers, tie = torch.zeros(weight.shape, dtype=torch.int8), torch.ones(len(weight), dtype=torch.float64)
    static = order != sorted(order)
    parameters = [grid.fit(weight[:, i : i + group].t().contiguous(), "absmax") for i in range(0, len(order), group)]
    for done, column in enumerate(order):
        if not static and column % group == 0:
            current = w[:, column : column + group].t().float().contiguous()
            parameters[column // group] = grid.fit(current, "absmax")
        scale, zero = (p.double() for p in parameters[column // group])
        position = w[:, column] / scale + zero
        q = position.round().clamp(grid.lowest, grid.highest)
        tie = torch.minimum(tie, (position - position.floor() - 0.5).abs())
        integers[:, column] = q.to(torch.int8)
        remaining = order[done:]
        inverse = torch.linalg.inv(h[remaining][:, remaining])
        error = (w[:, column] - (q - zero) * scale) / inverse[0, 0]
        w[:, remaining] -= error[:, None] * inverse[0][None, :]
    return integers, tie


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("activation_order", [False, True])
@pytest.mark.parametrize(
    ("bits", "group", "symmetric", "block"),
    [(4, 16, False, 32), (4, 16, True, 16), (8, 48, True, 32), (4, 24, False, 16)],
)
def test_integers_equal_the_papers_formulas(
    seed: int, activation_order: bool, bits: int, group: int, symmetric: bool, block: int
) -> None:
    weight, _, hessian = layer(24, 48, seed)
    kind: dict[str, Any] = {"bits": bits, "group_size": group, "symmetric": symmetric, "range": "absmax", "sweeps": 0}
    found = gptq(weight, hessian, **kind, activation_order=activation_order, block=block)
    order = list(range(48))
    if activation_order:
        order.sort(key=lambda column: -float(hessian[column, column]))
    expected, tie = brain_surgeon(weight, hessian, Grid(bits, symmetric), group, order)
    decided = tie > (1e-5 if bits == 4 else 1e-4)  # float32 cannot tell which side of a nearer tie it is on
    assert int(decided.sum()) >= 22
    assert torch.equal(found.values[decided], expected[decided])


def coordinate_descent(quantized: Quantized, weight: Tensor, hessian: Tensor) -> Tensor:
    """One sweep over the columns by trying every integer in float64; scales and zero points stay."""
    h = hessian.double() + 0.01 * hessian.double().diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    width = weight.shape[1] // quantized.scale.shape[1]
    scale = quantized.scale.double().repeat_interleave(width, 1)
    assert quantized.zero_point is not None
    zero = quantized.zero_point.double().repeat_interleave(width, 1)
    q = quantized.values.double()
    for row in range(len(weight)):
        for column in range(weight.shape[1]):
            tried = q[row].repeat(16, 1)
            tried[:, column] = torch.arange(-8, 8)
            error = (tried - zero[row]) * scale[row] - weight[row].double()
            q[row, column] = tried[int(((error @ h) * error).sum(1).argmin()), column]
    return q.to(torch.int8)


def test_a_sweep_equals_trying_every_integer(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, _, hessian = layer(6, 32)
    start = gptq(weight, hessian, bits=4, group_size=16, symmetric=False, sweeps=0)
    monkeypatch.setattr(refine_module._Descent, "fit_scales", lambda self: None)
    monkeypatch.setattr(refine_module, "_BLOCK", 12)
    found = gptq(weight, hessian, bits=4, group_size=16, symmetric=False, sweeps=1)
    expected = coordinate_descent(start, weight, hessian)
    assert not torch.equal(start.values, expected)
    assert torch.equal(found.values, expected)


@pytest.mark.parametrize("activation_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_each_sweep_errs_less(symmetric: bool, activation_order: bool) -> None:
    weight, inputs, hessian = layer(48, 128)
    kind: dict[str, Any] = {"bits": 4, "group_size": 32, "symmetric": symmetric, "activation_order": activation_order}
    # without damping the refined quantity is exactly the output error
    errors = [output_error(gptq(weight, hessian, **kind, damping=1e-6, sweeps=n), weight, inputs) for n in (0, 1, 2, 4)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.95 * errors[0]


@pytest.mark.parametrize("activation_order", [False, True])
@pytest.mark.parametrize(
    ("bits", "group", "symmetric"), [(4, 32, False), (4, 32, True), (4, None, False), (8, 64, False)]
)
def test_output_error_is_far_below_roundings(
    bits: int, group: int | None, symmetric: bool, activation_order: bool
) -> None:
    weight, inputs, hessian = layer(96, 128)
    kind: dict[str, Any] = {"bits": bits, "group_size": group, "symmetric": symmetric}
    rounded = output_error(round_to_grid(weight, **kind), weight, inputs)
    paper = output_error(gptq(weight, hessian, **kind, sweeps=0, activation_order=activation_order), weight, inputs)
    ours = output_error(gptq(weight, hessian, **kind, activation_order=activation_order), weight, inputs)
    assert paper < 0.5 * rounded
    assert ours < 0.97 * paper


@pytest.mark.parametrize(("symmetric", "activation_order"), [(False, False), (True, False), (False, True)])
def test_uncorrelated_inputs_leave_plain_rounding(symmetric: bool, activation_order: bool) -> None:
    """A diagonal Hessian: no column can make up for another, so the nearest integer is the best one."""
    weight, _, _ = layer(16, 64)
    diagonal = torch.diag(torch.linspace(3.0, 1.0, 64))
    kind: dict[str, Any] = {"bits": 4, "group_size": 32, "symmetric": symmetric, "range": "absmax"}
    found = gptq(weight, diagonal, **kind, sweeps=0, activation_order=activation_order)
    rounded = round_to_grid(weight, **kind)
    assert torch.equal(found.values, rounded.values)
    assert torch.equal(found.scale, rounded.scale)


def test_same_input_same_bits() -> None:
    weight, _, hessian = layer(32, 64)
    kind: dict[str, Any] = {"bits": 4, "group_size": 32, "symmetric": False}
    first, again = gptq(weight, hessian, **kind), gptq(weight.clone(), hessian.clone(), **kind)
    assert torch.equal(first.values, again.values)
    assert torch.equal(first.scale, again.scale)


def test_arguments_are_left_as_they_were() -> None:
    weight, _, hessian = layer(8, 32)
    kept = weight.clone(), hessian.clone()
    gptq(weight, hessian, bits=4, group_size=16, symmetric=False, activation_order=True)
    assert torch.equal(weight, kept[0])
    assert torch.equal(hessian, kept[1])


def test_inputs_that_never_fire_are_rounded_plainly() -> None:
    """Zero in calibration need not be zero in use: such weights are kept, not erased."""
    weight, inputs, _ = layer(16, 64)
    inputs[:, 5::16] = 0
    silent = HessianSum(64)
    silent.add(inputs)
    found = gptq(weight, silent.matrix, bits=4, group_size=32, symmetric=False)
    steps = (found.dequantize() - weight).abs() / found.scale.repeat_interleave(32, 1)
    assert float(steps[:, 5::16].max()) < 1.6
    assert bool((found.values[:, 5::16] != 0).any())
    nothing = gptq(weight, torch.zeros(64, 64), bits=4, group_size=32, symmetric=False, sweeps=0)
    assert torch.equal(nothing.values, round_to_grid(weight, bits=4, group_size=32, symmetric=False).values)


def test_indefinite_hessian_gets_more_damping_then_an_error() -> None:
    weight, _, hessian = layer(8, 32)
    mean = hessian.diagonal().mean()
    slightly = hessian - torch.linalg.eigvalsh(hessian)[0] * torch.eye(32) - 0.05 * mean * torch.eye(32)
    slightly = slightly + torch.diag(torch.relu(-slightly.diagonal()))
    assert float(torch.linalg.eigvalsh(slightly)[0]) < -0.01 * float(mean)
    assert bool(torch.isfinite(gptq(weight, slightly, bits=4, group_size=16, symmetric=False).dequantize()).all())
    hopeless = torch.ones(32, 32) * -100 + torch.eye(32) * 101
    with pytest.raises(CheckpointError, match="positive definite"):
        gptq(weight, hopeless, bits=4, group_size=16, symmetric=False)


def test_broken_numbers_are_refused() -> None:
    weight, _, hessian = layer(8, 32)
    kind: dict[str, Any] = {"bits": 4, "group_size": 16, "symmetric": False}
    for broken in (torch.nan, torch.inf):
        bad = hessian.clone()
        bad[3, 4] = broken
        with pytest.raises(CheckpointError, match="finite activations"):
            gptq(weight, bad, **kind)
        worse = weight.clone()
        worse[0, 0] = broken
        with pytest.raises(CheckpointError, match="finite weights"):
            gptq(worse, hessian, **kind)
    with pytest.raises(InputError, match=r"\[32, 32\]"):
        gptq(weight, hessian[:16, :16], **kind)
    with pytest.raises(RecipeError, match="divides"):
        gptq(weight, hessian, bits=4, group_size=24, symmetric=False)
    with pytest.raises(RecipeError, match="damping"):
        gptq(weight, hessian, **kind, damping=-0.1)


def test_hessian_is_the_mean_of_batches_of_any_size() -> None:
    inputs = torch.randn(60, 16, generator=torch.Generator().manual_seed(0))
    whole, parts = HessianSum(16), HessianSum(16)
    whole.add(inputs)
    for part in (inputs[:7], inputs[7:20].half().float(), inputs[20:].view(4, 10, 16)):
        parts.add(part)
    expected = 2 / 60 * inputs.double().t() @ inputs.double()
    assert torch.allclose(whole.matrix.double(), expected, atol=1e-5)
    assert torch.allclose(parts.matrix, whole.matrix, atol=2e-3)
    with pytest.raises(PlanishError, match="none"):
        _ = HessianSum(4).matrix


def test_weights_count_positions_more_or_less() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, weights = torch.randn(2, 30, 16, generator=generator), torch.rand(2, 30, generator=generator)
    weighted = HessianSum(16)
    weighted.add(inputs, weights)
    rows, diagonal = inputs.view(60, 16).double(), torch.diag(weights.flatten().double())
    assert torch.allclose(weighted.matrix.double(), 2 / 60 * rows.t() @ diagonal @ rows, atol=1e-5)


def test_only_ratios_of_weights_matter() -> None:
    weight, inputs, _ = layer(16, 64)
    weights = torch.rand(len(inputs), generator=torch.Generator().manual_seed(1)) + 0.1
    one, four = HessianSum(64), HessianSum(64)
    one.add(inputs, weights)
    four.add(inputs, weights * 4)  # a power of two scales every product exactly
    kind: dict[str, Any] = {"bits": 4, "group_size": 32, "symmetric": False}
    assert torch.equal(gptq(weight, one.matrix, **kind).values, gptq(weight, four.matrix, **kind).values)
