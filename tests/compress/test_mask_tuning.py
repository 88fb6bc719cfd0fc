"""The least squares of tuning against numpy's, on small matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.compress.mask_tuning import FitSums, fit, fit_factors, fit_weights
from planish.errors import DataError


def problem(seed: int, *, rows: int = 60, inputs: int = 6, outputs: int = 4) -> tuple[torch.Tensor, ...]:
    """x, y and a weight near the one that made y; columns of x are alike, as those of neurons are."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator) + torch.eye(inputs)
    x = torch.randn(rows, inputs, generator=generator) @ mixing + 0.5
    true = torch.randn(outputs, inputs, generator=generator)
    y = x @ true.t() + 0.3 * torch.randn(rows, outputs, generator=generator) - 1
    return x, y, true + 0.3 * torch.randn(outputs, inputs, generator=generator)


def sums(x: torch.Tensor, y: torch.Tensor, *, batch: int = 13) -> FitSums:
    total = FitSums(x.shape[1], y.shape[1])
    for at in range(0, len(x), batch):
        total.add(x[at : at + batch], y[at : at + batch])
    return total


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([0.0, 1e-3, 0.3]))
def test_weights_are_numpys_least_squares(seed: int, centred: bool, damping: float) -> None:
    x, y, start = problem(seed)
    found = fit_weights(sums(x.double(), y.double()), start.double(), damping=damping, centred=centred).numpy()
    a, b, w = (one.double().numpy() for one in (x, y, start))
    if centred:
        a, b = a - a.mean(0), b - b.mean(0)
    ridge = np.sqrt(damping * np.mean(np.sum(a * a, axis=0)))
    stacked = np.vstack([a, ridge * np.eye(a.shape[1])])
    expected = np.linalg.lstsq(stacked, np.vstack([b, ridge * w.T]), rcond=None)[0].T
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([1, 2, 3]), st.sampled_from([0.0, 1e-2]))
def test_factors_are_numpys_least_squares(seed: int, centred: bool, group: int, damping: float) -> None:
    x, y, start = problem(seed)
    found = fit_factors(sums(x.double(), y.double()), start.double(), damping=damping, centred=centred, group=group)
    a, b, w = (one.double().numpy() for one in (x, y, start))
    if centred:
        a, b = a - a.mean(0), b - b.mean(0)
    terms = np.einsum("ti,oi->toi", a, w).reshape(len(a) * len(w), -1, group).sum(2)  # a column a group
    ridge = np.sqrt(damping * np.mean(np.sum(terms * terms, axis=0)))
    size = terms.shape[1]
    stacked = np.vstack([terms, ridge * np.eye(size)])
    expected = np.linalg.lstsq(stacked, np.concatenate([b.reshape(-1), ridge * np.ones(size)]), rcond=None)[0]
    if np.abs(expected).max() > 10:
        assert found is None
    else:
        assert found is not None
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["weights", "factors"])
@pytest.mark.parametrize("biased", [True, False])
def test_error_is_what_rows_say(method: str, biased: bool) -> None:
    x, y, start = problem(1)
    bias = torch.randn(4) if biased else None
    found = fit(sums(x, y), sums(x, y), start, bias, method=method)  # type: ignore[arg-type]
    for weight, offset, said in ((start, bias, found.before), (found.weight, found.bias, found.after)):
        left = x @ weight.t() + (0 if offset is None else offset) - y
        assert float(left.square().sum() / y.square().sum()) == pytest.approx(said, rel=1e-4)
    assert found.after < 0.7 * found.before
    assert (found.bias is None) == (bias is None)


def test_a_cut_layer_is_made_up_for() -> None:
    """Half the inputs go; those that stay are alike to them. Weights do better than factors, both than nothing."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(4000, 5, generator=generator)
    x = hidden @ torch.randn(5, 12, generator=generator) + 0.2 * torch.randn(4000, 12, generator=generator)
    whole = torch.randn(8, 12, generator=generator)
    y, kept = x @ whole.t(), list(range(0, 12, 2))
    seen, held = sums(x[:3000, kept], y[:3000], batch=500), sums(x[3000:, kept], y[3000:], batch=500)
    errors = {
        method: fit(seen, held, whole[:, kept], None, method=method).after  # type: ignore[arg-type]
        for method in ("none", "factors", "weights")
    }
    assert errors["weights"] < 0.2 * errors["factors"] < 0.2 * errors["none"]


def test_what_helps_only_here_is_left_alone() -> None:
    """Few rows, noise as the target: a fit that does not carry over is damped, or not made at all."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(40, 30, generator=generator), torch.randn(5, 30, generator=generator)
    y = x @ weight.t() + 5 * torch.randn(40, 5, generator=generator)
    other = torch.randn(2000, 30, generator=generator)
    held = sums(other, other @ weight.t(), batch=500)
    found = fit(sums(x, y), held, weight, None, method="weights", dampings=(1e-4, 1e-2))
    assert found.damping is None
    assert torch.equal(found.weight, weight)


def test_wild_factors_are_refused() -> None:
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    total = sums(x, 100 * x)
    assert fit_factors(total, torch.eye(2, dtype=torch.float64), damping=0, centred=False) is None
    found = fit(total, total, torch.eye(2), None, method="factors", dampings=(1e-6,))
    assert found.damping is None
    assert found.before == found.after


def test_inputs_that_are_always_zero_keep_their_weights() -> None:
    x, y, start = problem(2)
    x[:, 3] = 0
    found = fit_weights(sums(x.double(), y.double()), start.double(), damping=1e-4, centred=True)
    assert torch.allclose(found[:, 3], start[:, 3].double())


def test_nothing_to_tune_on() -> None:
    x, y, start = problem(0)
    with pytest.raises(DataError, match="examples to tune on"):
        fit(FitSums(6, 4), sums(x, y), start, None, method="weights")
    with pytest.raises(DataError, match="finite"):
        fit(sums(x * torch.inf, y), sums(x, y), start, None, method="weights")
