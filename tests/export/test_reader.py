"""The reader against compressed-tensors' own decompression, and against damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from planish.errors import CheckpointError
from planish.export.reader import CheckpointReader, FloatLinear, QuantizedLinear, unpack_int32

# compressed-tensors compiles a function with torch.jit when it is imported

ROWS, WIDTH = 24, 64


def scheme(bits: int, strategy: str, symmetric: bool, group: int | None = None, tokens: bool = False) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy, "dynamic": False}
    weights |= {"group_size": group} if group else {}
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True} if tokens else None
    return {"targets": ["Linear"], "weights": weights, "input_activations": inputs}


def stored(layout: str, group: dict[str, Any], weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Tensors of a linear as compressed-tensors stores them, and the weight it reads back."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    args = group["weights"]
    low, high = -(2 ** (args["num_bits"] - 1)), 2 ** (args["num_bits"] - 1) - 1
    blocks = weight.reshape(len(weight), -1, args.get("group_size") or weight.shape[1])
    scale = (blocks.amax(-1) - blocks.amin(-1)).half().float() / (high - low)
    state = {"weight": weight, "weight_scale": scale}
    if not args["symmetric"]:
        state["weight_zero_point"] = (low - blocks.amin(-1) / scale).round().clamp(low, high).to(torch.int8)
    compressor = BaseCompressor.get_value_from_registry(layout)
    parsed = QuantizationScheme(**group)
    packed = compressor.compress(state, parsed)
    return packed, compressor.decompress(packed, parsed)["weight"]


def write(directory: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> Path:
    directory.mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, str(directory / "model.safetensors"))
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def quantization(groups: dict[str, Any], layout: str, ignore: tuple[str, ...] = ()) -> dict[str, Any]:
    config = {"quant_method": "compressed-tensors", "format": layout, "config_groups": groups, "ignore": list(ignore)}
    return {"model_type": "llama", "quantization_config": config}


@pytest.mark.parametrize(
    ("layout", "group"),
    [
        ("pack-quantized", scheme(4, "group", False, 16)),
        ("pack-quantized", scheme(4, "group", True, 32)),
        ("pack-quantized", scheme(8, "group", False, 32)),
        ("pack-quantized", scheme(4, "channel", False)),
        ("int-quantized", scheme(8, "channel", True, tokens=True)),
        ("int-quantized", scheme(8, "group", True, 16)),
    ],
)
def test_equals_compressed_tensors(tmp_path: Path, layout: str, group: dict[str, Any]) -> None:
    torch.manual_seed(0)
    tensors, expected = stored(layout, group, torch.randn(ROWS, WIDTH))
    bias = torch.randn(ROWS)
    named = {f"a.b.{k}": v for k, v in tensors.items()} | {"a.b.bias": bias}
    reader = CheckpointReader(write(tmp_path, named, quantization({"group_0": group}, layout)))
    linear = reader.linear("a.b")
    assert isinstance(linear, QuantizedLinear)
    assert linear.values.dtype == np.int8
    assert (linear.shape, linear.bits) == ((ROWS, WIDTH), group["weights"]["num_bits"])
    assert linear.activations == ("token" if group["input_activations"] else None)
    assert (linear.zero_point is None) == group["weights"]["symmetric"]
    np.testing.assert_array_equal(linear.dequantized(), expected.numpy())
    assert linear.bias is not None
    np.testing.assert_array_equal(linear.bias, bias.numpy())


def test_mixed_precision_targets_and_ignore(tmp_path: Path) -> None:
    """Exact name before regex before class; ignored modules stay float; embeddings are matched by their class."""
    torch.manual_seed(0)
    four, eight, rows = scheme(4, "group", False, 32), scheme(8, "group", True, 16), scheme(8, "channel", True)
    regex, table = eight | {"targets": ["re:.*down_proj$"]}, rows | {"targets": ["Embedding", "lm_head"]}
    tensors: dict[str, torch.Tensor] = {"norm.weight": torch.randn(8, dtype=torch.bfloat16)}
    expected = {}
    parts = {
        "l.0.up_proj": ("pack-quantized", four),
        "l.0.down_proj": ("pack-quantized", regex),
        "embed": ("int-quantized", table),
        "lm_head": ("int-quantized", table),
    }
    for name, (layout, group) in parts.items():
        packed, expected[name] = stored(layout, group, torch.randn(ROWS, WIDTH))
        tensors |= {f"{name}.{k}": v for k, v in packed.items()}
    tensors["l.0.gate.weight"] = torch.randn(ROWS, WIDTH, dtype=torch.bfloat16)
    groups = {
        "g0": four | {"format": "pack-quantized"},
        "g1": regex | {"format": "pack-quantized"},
        "g2": table | {"format": "int-quantized"},
    }
    reader = CheckpointReader(write(tmp_path, tensors, quantization(groups, "mixed-precision", ("l.0.gate",))))
    bits = {}
    for name in parts:
        part = reader.embedding(name) if name == "embed" else reader.linear(name)
        assert isinstance(part, QuantizedLinear)
        np.testing.assert_array_equal(part.dequantized(), expected[name].numpy())
        bits[name] = (part.bits, part.group_size)
    assert bits == {"l.0.up_proj": (4, 32), "l.0.down_proj": (8, 16), "embed": (8, None), "lm_head": (8, None)}
    gate = reader.linear("l.0.gate")
    assert isinstance(gate, FloatLinear)
    np.testing.assert_array_equal(gate.weight, tensors["l.0.gate.weight"].float().numpy())
    np.testing.assert_array_equal(reader.float32("norm.weight"), tensors["norm.weight"].float().numpy())


def test_conv1d_is_a_transposed_view(tmp_path: Path) -> None:
    weight = torch.randn(8, 24)
    reader = CheckpointReader(write(tmp_path, {"c.weight": weight}, {"model_type": "gpt2"}))
    linear = reader.linear("c", transposed=True)
    assert linear.shape == (24, 8)
    np.testing.assert_array_equal(linear.dequantized(), weight.T.numpy())


def test_shards(tmp_path: Path) -> None:
    write(tmp_path, {"a.weight": torch.ones(2, 2)}, {"model_type": "llama"})
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b.weight": torch.zeros(2, 2)}, str(tmp_path / "model-00002-of-00002.safetensors"))
    shards = {"a.weight": "model-00001-of-00002.safetensors", "b.weight": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    reader = CheckpointReader(tmp_path)
    assert reader.names == ["a.weight", "b.weight"]
    assert reader.tensor("a.weight").sum() == 4
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors"):
        CheckpointReader(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_truncated_file(tmp_path: Path, keep: int) -> None:
    write(tmp_path, {"a.weight": torch.ones(64, 64)}, {"model_type": "llama"})
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        CheckpointReader(tmp_path)


def test_missing_parts(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        CheckpointReader(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="valid JSON"):
        CheckpointReader(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="neither"):
        CheckpointReader(tmp_path)
    write(tmp_path, {"a.weight": torch.ones(2, 2)}, {})
    with pytest.raises(CheckpointError, match="tensor zzz"):
        CheckpointReader(tmp_path).tensor("zzz")


def test_disagreement_with_the_config_is_refused(tmp_path: Path) -> None:
    group = scheme(4, "group", True, 32)
    tensors, _ = stored("pack-quantized", group, torch.randn(ROWS, WIDTH))
    named = {f"a.{k}": v for k, v in tensors.items()} | {"b.weight": torch.ones(2, 2)}
    reader = CheckpointReader(write(tmp_path, named, quantization({"g": group}, "pack-quantized")))
    with pytest.raises(CheckpointError, match="a float weight"):
        reader.linear("b")
    with pytest.raises(CheckpointError, match="no such group"):
        reader.embedding("a")
    wrong = quantization({"g": scheme(4, "group", True, 16)}, "pack-quantized")
    with pytest.raises(CheckpointError, match=r"\[24, 4\] scales"):
        CheckpointReader(write(tmp_path, named, wrong)).linear("a")
    with pytest.raises(CheckpointError, match="gptq"):
        CheckpointReader(write(tmp_path, named, {"quantization_config": {"quant_method": "gptq"}}))
    for changes in (
        {"num_bits": 4},
        {"symmetric": False},
        {"dynamic": False},
        {"strategy": "group"},
        {"type": "float"},
    ):
        inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True} | changes
        strange = quantization({"g": group | {"input_activations": inputs}}, "pack-quantized")
        with pytest.raises(CheckpointError, match="8-bit inputs"):
            CheckpointReader(write(tmp_path, named, strange))


def test_static_input_scale(tmp_path: Path) -> None:
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor", "dynamic": False}
    group = scheme(8, "channel", True) | {"input_activations": inputs}
    tensors, _ = stored("int-quantized", group, torch.randn(ROWS, WIDTH))
    named = {f"a.{k}": v for k, v in tensors.items()}
    config = quantization({"g": group}, "int-quantized")
    scale = torch.tensor([0.03], dtype=torch.float16)
    layer = CheckpointReader(write(tmp_path, named | {"a.input_scale": scale}, config)).linear("a")
    assert isinstance(layer, QuantizedLinear)
    assert (layer.activations, layer.input_scale) == ("static", scale.item())
    for wrong in (torch.tensor([0.0]), torch.tensor([float("nan")]), torch.tensor([1.0, 2.0])):
        with pytest.raises(CheckpointError, match="one positive"):
            CheckpointReader(write(tmp_path, named | {"a.input_scale": wrong}, config)).linear("a")
    with pytest.raises(CheckpointError, match=r"a\.input_scale"):
        CheckpointReader(write(tmp_path, named, config)).linear("a")


@settings(max_examples=60, deadline=None)
@given(bits=st.sampled_from([1, 2, 4, 8]), rows=st.integers(1, 5), width=st.integers(1, 70), seed=st.integers(0, 99))
def test_unpack_is_the_inverse_of_packing(bits: int, rows: int, width: int, seed: int) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    half = 1 << (bits - 1)
    values = np.random.default_rng(seed).integers(-half, half, (rows, width)).astype(np.int8)
    packed = pack_to_int32(torch.from_numpy(values), bits).numpy()
    np.testing.assert_array_equal(unpack_int32(packed, bits, width), values)


def test_unpack_refuses_too_few_words() -> None:
    with pytest.raises(CheckpointError, match="9 values"):
        unpack_int32(np.zeros((1, 1), np.int32), 4, 9)
