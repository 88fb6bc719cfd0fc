"""FP8: the nearest E4M3 numbers, what compressed-tensors computes, and close to the parent."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from planish.compress import compress, load, open_checkpoint
from planish.compress.activations import fake_float8
from planish.compress.fp8_linear import round_to_float8
from planish.errors import CheckpointError
from planish.export.reader import CheckpointReader
from planish.export.reference import load_reference

from .conftest import Maker
from .test_compress import from_pretrained, outputs

E4M3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
NUMBERS = E4M3[torch.isfinite(E4M3)]


@given(st.integers(0, 2**32 - 1), st.floats(1e-4, 1e2))
def test_each_weight_becomes_the_nearest_number(seed: int, size: float) -> None:
    """Oracle: every distance to all 254 finite E4M3 numbers, in float64."""
    weight = torch.randn(3, 7, generator=torch.Generator().manual_seed(seed)) * size
    found = round_to_float8(weight)
    scale = found.scale.double()
    distance = (weight.double() - found.values.double() * scale).abs()
    nearest = (weight.double()[..., None] - NUMBERS.double() * scale).abs().amin(-1)
    assert bool((distance <= nearest * (1 + 1e-5) + 1e-12).all())
    assert found.scale.shape == (1, 1)
    assert found.scale.half().float().item() == found.scale.item()


def test_inputs_round_as_ml_dtypes_does_and_saturate() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 100
    x[:3] = torch.tensor([1e6, -1e6, 0.0])
    expected = np.clip(x.numpy() / np.float32(0.25), -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert torch.equal(fake_float8(x, torch.tensor(0.25)), torch.from_numpy(expected) * 0.25)


def test_not_a_number_is_refused() -> None:
    with pytest.raises(CheckpointError, match="finite"):
        round_to_float8(torch.tensor([[1.0, float("nan")]]))


@pytest.mark.parametrize("kind", ["bert", "distilbert", "llama"])
def test_transformers_load_and_export_agree(kind: str, small_checkpoint: Maker, tmp_path: Path) -> None:
    source = small_checkpoint(kind)
    compress(source, "fp8", tmp_path / "out")
    ours, theirs = outputs(load(tmp_path / "out")), outputs(from_pretrained(tmp_path / "out"))
    assert torch.equal(ours, theirs)
    parent = outputs(open_checkpoint(source).load_model())
    assert 1e-4 < float((ours - parent).norm() / parent.norm()) < 0.1
    if kind == "bert":
        assert torch.equal(outputs(load_reference(tmp_path / "out", "feature-extraction")), ours)


def test_the_reader_finds_the_same_bits(small_checkpoint: Maker, tmp_path: Path) -> None:
    """safetensors has no numpy name for the type, so the reader cuts it out of the file itself."""
    compress(small_checkpoint("bert"), "fp8", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    name = "encoder.layer.1.output.dense"
    layer = CheckpointReader(tmp_path / "out").linear(name)
    np.testing.assert_array_equal(layer.values.view(np.uint8), tensors[f"{name}.weight"].view(torch.uint8).numpy())
    assert layer.words == "fp8"
    assert layer.input_words == "fp8 static"
    groups = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["config_groups"]
    assert {group["format"] for group in groups.values()} == {"float-quantized", "int-quantized"}
