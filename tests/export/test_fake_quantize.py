"""Inputs are quantized by both halves alike, bit for bit: compress measures with one arithmetic what export checks."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.compress.activations import quantize_inputs as by_compress
from planish.export.fake_quantize import quantize_inputs as by_export
from planish.export.layers import QuantizedLinear

WIDTH = 24
KINDS = ("token", "tensor", "static", "smoothed", "fp8")


def layer_of(kind: str, scale: float, factor: np.ndarray) -> QuantizedLinear:
    """A layer as the reader gives it; of its weights only their type counts here."""
    values = np.zeros((2, WIDTH), ml_dtypes.float8_e4m3fn if kind == "fp8" else np.int8)
    static = kind in ("static", "smoothed", "fp8")
    activations: Any = "static" if static else kind
    return QuantizedLinear(
        values,
        np.ones((2, 1), np.float32),
        None,
        8,
        None,
        activations,
        None,
        scale if static else None,
        factor if kind == "smoothed" else None,
    )


def seen(quantize: Any, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
    """What a module is called with after ``quantize``."""
    module = torch.nn.Identity()
    quantize(module, *arguments, **options)
    answer: torch.Tensor = module(x)
    return answer


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    axes=st.sampled_from([(7,), (3, 7), (2, 3, 7)]),
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 300.0, 1e30]),
    scale=st.floats(2.0**-23, 65504.0, width=16),
)
def test_both_halves_quantize_inputs_to_the_same_bits(
    kind: str, axes: tuple[int, ...], seed: int, size: float, scale: float
) -> None:
    draw = np.random.default_rng(seed)
    x = torch.from_numpy((draw.standard_normal((*axes, WIDTH)) * size).astype(np.float32))
    x[..., 0, :] = 0.0  # a token of zeros
    x[..., -1, :] = x[..., -1, :].abs().neg()  # one without a positive number
    factor = draw.uniform(0.01, 100, WIDTH).astype(np.float16).astype(np.float32)
    ours = seen(by_export, x, layer_of(kind, scale, factor))
    strategy = "token" if kind == "token" else "tensor"
    static = torch.tensor([scale]) if kind in ("static", "smoothed", "fp8") else None
    smoothing = torch.from_numpy(factor) if kind == "smoothed" else None
    theirs = seen(by_compress, x, strategy, static, smoothing, float8=kind == "fp8")
    assert ours.dtype == theirs.dtype == torch.float32
    assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32))
    assert bool(torch.isfinite(ours).all())


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_is_seen(kind: str) -> None:
    """The comparison above is of rounded numbers: another scale, or none, gives other bits."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, WIDTH)).astype(np.float32)) * 0.2
    factor = np.full(WIDTH, 2.0, np.float32)
    found = seen(by_export, x, layer_of(kind, 0.0117, factor))
    near = x * 2 if kind == "smoothed" else x
    assert not torch.equal(found, near)
    assert torch.allclose(found, near, atol=0.08 if kind == "fp8" else 0.02, rtol=0.07 if kind == "fp8" else 0)
    if kind in ("static", "smoothed", "fp8"):
        assert not torch.equal(found, seen(by_export, x, layer_of(kind, 0.0119, factor)))
