"""Packing and activation rounding, against compressed-tensors itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.compress.activations import fake_quantize
from planish.compress.bench import Bench, Stored
from planish.compress.grid import round_to_grid
from planish.compress.layout import quantization_config
from planish.compress.packing import pack, unpack

# Importing compressed-tensors imports torch's compiler, which warns about its own parts.


@given(st.sampled_from([4, 8]), st.integers(1, 9), st.integers(1, 70), st.sampled_from([0, 1]), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_packing_is_compressed_tensors(bits: int, rows: int, columns: int, dim: int, seed: int) -> None:
    from compressed_tensors.compressors.pack_quantized import helpers

    generator = torch.Generator().manual_seed(seed)
    high = 1 << (bits - 1)
    values = torch.randint(-high, high, (rows, columns), generator=generator, dtype=torch.int8)
    packed = pack(values, bits, dim)
    assert torch.equal(packed, helpers.pack_to_int32(values, bits, packed_dim=dim))
    assert torch.equal(helpers.unpack_from_int32(packed, bits, values.shape, packed_dim=dim), values)
    assert torch.equal(unpack(packed, bits, values.shape[dim], dim), values)


@pytest.mark.parametrize("strategy", ["token", "tensor"])
@pytest.mark.parametrize("shape", [(2, 5, 8), (3, 8), (1, 1, 1)])
def test_activations_are_compressed_tensors(strategy: str, shape: tuple[int, ...]) -> None:
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle import forward
    from compressed_tensors.quantization.utils.helpers import compute_dynamic_scales_and_zp

    arguments = QuantizationArgs(num_bits=8, symmetric=True, strategy=strategy, dynamic=True)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3
    for value in (x, torch.zeros(shape), -x.abs(), torch.cat([x, torch.zeros(shape)])):
        scale, zero = compute_dynamic_scales_and_zp(value=value, args=arguments, module=torch.nn.Identity())
        expected = forward.fake_quantize(x=value, scale=scale, zero_point=zero, args=arguments)
        assert torch.equal(fake_quantize(value, strategy), expected)


def test_static_activations_are_compressed_tensors() -> None:
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle import forward

    arguments = QuantizationArgs(num_bits=8, symmetric=True, strategy="tensor", dynamic=False)
    x = torch.randn((2, 5, 8), generator=torch.Generator().manual_seed(0)) * 3
    for scale in (torch.tensor([0.02]), torch.tensor([0.01]), torch.tensor([2.0**-23])):
        expected = forward.fake_quantize(x=x, scale=scale, zero_point=None, args=arguments)
        assert torch.equal(fake_quantize(x, "tensor", scale), expected)


def test_targets_match_exactly_the_stored_layers(small_model: Callable[..., Any]) -> None:
    bench = Bench.of(small_model("bert", "BertForMaskedLM"))
    for layer in bench.layers:
        wanted = layer.role == "body" and not (layer.block == 1 and "attention" in layer.name)
        if wanted or layer.role in ("embedding", "head"):
            q = round_to_grid(layer.weight, bits=8, group_size=None, symmetric=True, range="absmax")
            bench.stored[layer.name] = Stored(q, packed=False, activations="token" if wanted else None)
    groups = quantization_config(bench)["config_groups"].values()
    for name, _ in bench.model.named_modules():
        for spelled in {name, name.removeprefix("bert.")}:
            hits = [group for group in groups if any(re.match(t[3:], spelled) for t in group["targets"])]
            assert len(hits) == (name in bench.stored), name
