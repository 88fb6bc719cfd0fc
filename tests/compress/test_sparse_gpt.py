"""SparseGPT against the paper's formulas, against least squares for its mask, and against the simpler importances."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from planish.compress.gptq import HessianSum
from planish.compress.sparse_gpt import refit, sparse_gpt
from planish.compress.sparse_importance import IMPORTANCES, Pattern, mask, output_error, scores
from planish.errors import CheckpointError, InputError, RecipeError

from .test_gptq import layer

KINDS = [0.5, 0.7, Pattern(2, 4), Pattern(1, 4)]
DAMPING = 0.01


def damped(hessian: Tensor) -> Tensor:
    h = hessian.double()
    return h + DAMPING * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)


def paper(weight: Tensor, hessian: Tensor, kind: float | Pattern, block: int) -> Tensor:
    """Algorithm 1 of the paper in float64, each column with the explicit inverse of what remains."""
    w, h = weight.double().clone(), damped(hessian)
    rows, columns = w.shape
    gone = torch.zeros(rows, columns, dtype=torch.bool)
    zeros = 0

    def cost(column: int) -> Tensor:
        return w[:, column].square() / torch.linalg.inv(h[column:, column:])[0, 0]

    for column in range(columns):
        width = kind.group if isinstance(kind, Pattern) else block
        if column % width == 0:
            members = list(range(column, min(column + width, columns)))
            found = torch.stack([cost(member) for member in members], 1)
            if isinstance(kind, Pattern):
                for row, order in enumerate(found.argsort(1)[:, : kind.group - kind.kept].tolist()):
                    gone[row, [members[position] for position in order]] = True
            else:
                count = round(kind * (members[-1] + 1) * rows) - zeros
                zeros += count
                flat = torch.zeros(found.numel(), dtype=torch.bool)
                flat[found.flatten().argsort()[:count]] = True
                gone[:, members] = flat.view(found.shape)
        inverse = torch.linalg.inv(h[column:, column:])
        error = torch.where(gone[:, column], w[:, column], 0.0) / inverse[0, 0]
        w[:, column:] -= error[:, None] * inverse[0]
    return w.masked_fill(gone, 0.0)


def least_squares(weight: Tensor, gone: Tensor, hessian: Tensor) -> Tensor:
    """The best weights there are for a mask: every row's normal equations solved by themselves."""
    h, w = hessian.double(), weight.double()
    found = torch.zeros_like(w)
    for row in range(len(w)):
        kept = (~gone[row]).nonzero().flatten()
        found[row, kept] = torch.linalg.solve(h[kept][:, kept], h[kept] @ w[row])
    return found


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("block", [16, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_papers_algorithm(kind: float | Pattern, block: int, seed: int) -> None:
    weight, _, hessian = layer(24, 48, seed)
    found = sparse_gpt(weight, hessian, kind, refine=0, block=block)
    expected = paper(weight, hessian, kind, block)
    assert torch.equal(found == 0, expected == 0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-5)


def test_one_column_is_exact() -> None:
    """Where only the first column goes, one step makes up for it as well as can be."""
    weight, _, hessian = layer(16, 32)
    weight[:, 0] *= 1e-4
    found = sparse_gpt(weight, hessian, 1 / 32, refine=0, damping=DAMPING)
    gone = found == 0
    assert bool(gone[:, 0].all())
    assert int(gone.sum()) == 16
    torch.testing.assert_close(found.double(), least_squares(weight, gone, damped(hessian)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_for_its_mask_it_is_near_the_best_there_is(kind: float | Pattern) -> None:
    weight, _, hessian = layer(48, 64)
    h = damped(hessian).float()
    for refine, factor in ((0, 60), (10, 1.6), (100, 1.001)):
        found = sparse_gpt(weight, hessian, kind, refine=refine, damping=DAMPING)
        best = least_squares(weight, found == 0, h).float()
        assert output_error(weight, best, h) <= output_error(weight, found, h) * 1.001
        assert output_error(weight, found, h) < factor * output_error(weight, best, h), refine


def test_refitting_never_errs_more_and_keeps_zeros() -> None:
    weight, _, hessian = layer(32, 64)
    h = damped(hessian).float()
    start = sparse_gpt(weight, hessian, 0.5, refine=0)
    errors = []
    for steps in (0, 1, 2, 4, 8, 200):
        found = refit(weight, start, start == 0, h, steps=steps)
        assert torch.equal(found == 0, start == 0)
        errors.append(output_error(weight, found, h))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]
    nothing_to_do = refit(weight, weight, torch.zeros_like(weight, dtype=torch.bool), h, steps=5)
    torch.testing.assert_close(nothing_to_do, weight)


@pytest.mark.parametrize("kind", KINDS)
def test_each_importance_beats_the_simpler_one(kind: float | Pattern) -> None:
    weight, inputs, _ = layer(96, 128)
    calibration = HessianSum(128)
    calibration.add(inputs[:300])

    def error(sparse: Tensor) -> float:
        """On inputs that were not calibrated on."""
        return float((inputs[300:] @ (sparse - weight).t()).square().sum())

    def masked(name: str) -> Tensor:
        importance = IMPORTANCES[name]
        return weight.masked_fill(mask(scores(weight, calibration.matrix, importance), kind, importance.scope), 0)

    magnitude, wanda = error(masked("magnitude")), error(masked("wanda"))
    plain = error(sparse_gpt(weight, calibration.matrix, kind, refine=0))
    ours = error(sparse_gpt(weight, calibration.matrix, kind))
    assert wanda < 0.8 * magnitude
    assert plain < 0.6 * wanda
    assert ours < 0.7 * plain


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 7),
    groups=st.integers(1, 9),
    group=st.integers(2, 6),
    kept=st.integers(1, 5),
    share=st.floats(0.01, 0.99),
    block=st.integers(1, 20),
)
def test_zeros_are_exactly_as_many_as_asked(
    rows: int, groups: int, group: int, kept: int, share: float, block: int
) -> None:
    columns, pattern = groups * group, Pattern(min(kept, group - 1), group)
    weight, _, hessian = layer(rows, max(columns, 4), samples=30)
    weight, hessian = weight[:, :columns], hessian[:columns, :columns]
    for found in (
        sparse_gpt(weight, hessian, pattern, block=block) == 0,
        mask(scores(weight, hessian, IMPORTANCES["wanda"]), pattern, "output"),
        mask(scores(weight, None, IMPORTANCES["magnitude"]), pattern, "layer"),
    ):
        zeros = found.view(rows, groups, group).sum(-1)
        assert bool((zeros == group - pattern.kept).all())
    assert int((sparse_gpt(weight, hessian, share, block=block) == 0).sum()) == round(share * weight.numel())
    assert int(mask(weight.abs(), share, "layer").sum()) == round(share * weight.numel())
    assert bool((mask(weight.abs(), share, "output").sum(1) == round(share * columns)).all())


def test_unrelated_inputs_leave_the_kept_weights_alone() -> None:
    """With a diagonal Hessian nothing can make up for anything, and the score is wanda's, over the layer."""
    weight, _, _ = layer(16, 64)
    diagonal = torch.diag(torch.linspace(3.0, 0.1, 64))
    found = sparse_gpt(weight, diagonal, 0.5, damping=1e-6)
    wanda = mask(scores(weight, diagonal, IMPORTANCES["wanda"]), 0.5, "layer")
    assert torch.equal(found == 0, wanda)
    torch.testing.assert_close(found, weight.masked_fill(wanda, 0.0))


def test_inputs_that_never_fire_lose_their_weights_first() -> None:
    weight, inputs, _ = layer(16, 64)
    weight[:, 5::16] *= 100
    inputs[:, 5::16] = 0
    silent = HessianSum(64)
    silent.add(inputs)
    found = sparse_gpt(weight, silent.matrix, 0.25)
    assert bool((found[:, 5::16] == 0).all())
    assert bool(torch.isfinite(found).all())


def test_same_input_same_bits_and_arguments_untouched() -> None:
    weight, _, hessian = layer(16, 64)
    kept = weight.clone(), hessian.clone()
    first = sparse_gpt(weight, hessian, 0.5)
    assert torch.equal(first, sparse_gpt(weight, hessian, 0.5))
    assert torch.equal(weight, kept[0])
    assert torch.equal(hessian, kept[1])


def test_ties_go_to_the_lower_index() -> None:
    even = torch.ones(2, 8)
    assert mask(even, Pattern(2, 4), "layer")[0].tolist() == [True, True, False, False] * 2
    assert mask(even, 0.25, "output").nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_broken_input_is_refused() -> None:
    weight, _, hessian = layer(8, 32)
    bad = hessian.clone()
    bad[3, 3] = torch.nan
    with pytest.raises(CheckpointError, match="finite activations"):
        sparse_gpt(weight, bad, 0.5)
    with pytest.raises(CheckpointError, match="finite activations"):
        scores(weight, bad, IMPORTANCES["wanda"])
    with pytest.raises(CheckpointError, match="finite activations"):
        scores(weight, None, IMPORTANCES["wanda"])
    with pytest.raises(CheckpointError, match=r"positive definite.*use method: wanda"):
        sparse_gpt(weight, torch.ones(32, 32) * -100 + torch.eye(32) * 101, 0.5)
    with pytest.raises(InputError, match=r"\[32, 32\]"):
        sparse_gpt(weight, hessian[:16, :16], 0.5)
    with pytest.raises(RecipeError, match="groups of 5, got 32 inputs"):
        sparse_gpt(weight, hessian, Pattern(2, 5))


@pytest.mark.parametrize("text", ["", "2", "4:2", "4:4", "0:4", "2:4:8", "a:b", "-2:4", "2:٤", "1.5:4"])
def test_patterns_that_are_none(text: str) -> None:
    with pytest.raises(RecipeError, match='write pattern: "2:4"'):
        Pattern.parse(text)
