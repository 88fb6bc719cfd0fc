"""The integers in an emitted decoder are those of the checkpoint; weights are stored once, and read one at a time."""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from planish.errors import CheckpointError
from planish.export.decoder import build_decoder
from planish.export.emit_rotary import inverse_frequency
from planish.export.reader import CheckpointReader, QuantizedLinear
from tests.export.small_decoders import (
    VOCABULARY,
    compressed,
    edit_config,
    quantized,
    random_decoder,
    tensors,
    unpacked,
)

# compressed-tensors compiles a function with torch.jit when it is imported

Array = NDArray[Any]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    return quantized(random_decoder("llama", folder / "float"), folder / "int4")


@pytest.mark.parametrize("bits", [4, 8])
def test_integers_are_those_of_the_checkpoint(bits: int, tmp_path: Path) -> None:
    checkpoint = quantized(random_decoder("qwen3", tmp_path / "float"), tmp_path / "q", bits=bits, symmetric=False)
    found = tensors(build_decoder(checkpoint, tmp_path / "onnx"))
    reader = CheckpointReader(checkpoint)
    seen = 0
    for name, array in found.items():
        module, _, part = name.rpartition(".")
        if part != "weight" or not reader.is_quantized(module):
            continue
        is_table = module == "model.embed_tokens"
        stored = reader.embedding(module) if is_table else reader.linear(module)
        assert isinstance(stored, QuantizedLinear)
        np.testing.assert_array_equal(unpacked(array, stored.bits, stored.shape[1]), stored.values)
        np.testing.assert_array_equal(found[f"{module}.scale.half"].astype(np.float32), stored.scale)
        if stored.zero_point is not None:
            points = unpacked(found[f"{module}.zero_point"], bits, stored.scale.shape[1])
            np.testing.assert_array_equal(points, stored.zero_point)
        seen += 1
    assert seen == 2 * 7 + 2


def test_stacked_rows_keep_their_order(llama: Path, tmp_path: Path) -> None:
    found = tensors(build_decoder(llama, tmp_path / "onnx"))
    names = [f"model.layers.1.self_attn.{part}_proj" for part in "qkv"]
    reader = CheckpointReader(llama)
    expected = np.concatenate([reader.linear(name).values for name in names])  # type: ignore[union-attr]
    np.testing.assert_array_equal(unpacked(found["+".join(names) + ".weight"], 4, 64), expected)


@pytest.mark.parametrize(("family", "head"), [("llama", True), ("gpt2", True), ("qwen3", False)])
def test_a_tied_table_is_stored_once(family: str, head: bool, tmp_path: Path) -> None:
    checkpoint = quantized(random_decoder(family, tmp_path / "float"), tmp_path / "int4")
    built = build_decoder(checkpoint, tmp_path / "onnx")
    graph = ir.load(tmp_path / "onnx" / "model.onnx").graph
    (gather, *_) = (node for node in graph if node.op_type == "GatherBlockQuantized")
    product = [node for node in graph if node.op_type == "MatMulNBits"][-1]
    table, matrix = (node.inputs[at].const_value for node, at in ((gather, 0), (product, 1)))
    assert (table.offset == matrix.offset) == head
    assert table.nbytes == matrix.nbytes == VOCABULARY * 64
    assert built.precision == {"linear": "int4 g32", "embedding": "int8" if family != "gpt2" else "fp32 + int8"} | {
        "head": "int8",
        "compute": "fp32",
    }


def test_what_the_manifest_says(llama: Path, tmp_path: Path) -> None:
    built = build_decoder(llama, tmp_path / "onnx")
    assert built.files == ("model.onnx", "model.onnx.data")
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"), quiet())
    assert [(spec.name, list(spec.shape)) for spec in built.inputs] == [(v.name, v.shape) for v in session.get_inputs()]
    assert [(spec.name, list(spec.shape)) for spec in built.outputs] == [
        (v.name, v.shape) for v in session.get_outputs()
    ]
    assert [value.name for value in session.get_overridable_initializers()] == ["logits_to_keep"]
    assert built.generation == {
        "num_layers": 2,
        "num_kv_heads": 2,
        "head_dim": 16,
        "max_length": 96,
        "cache_dtype": "float32",
        "bos_token_id": 1,
        "eos_token_ids": [2],
        "pad_token_id": 0,
        "defaults": {},
    }


def test_same_checkpoint_same_bytes(llama: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        build_decoder(llama, tmp_path / name)
    for file in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_memory_stays_near_the_largest_tensor(tmp_path: Path) -> None:
    """12 MB of weights, none above 0.6 MB in float: a builder that holds them all takes more than a third."""
    wide = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6}
    checkpoint = random_decoder("llama", tmp_path / "float", **wide)
    build_decoder(checkpoint, tmp_path / "warm")
    shutil.rmtree(tmp_path / "warm")
    tracemalloc.start()
    build_decoder(checkpoint, tmp_path / "onnx")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "onnx" / "model.onnx.data").stat().st_size > 12e6
    assert peak < 4e6


def test_progress_is_called_for_every_layer(llama: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    build_decoder(llama, tmp_path / "onnx", progress=lambda *call: calls.append(call))
    assert calls == [("emit", 1, 2), ("emit", 2, 2)]


def test_int8_activations_are_for_encoders(tmp_path: Path) -> None:
    source = random_decoder("llama", tmp_path / "float")
    checkpoint = compressed(source, tmp_path / "int8", [{"pass": "int8-linear", "activations": "token"}])
    with pytest.raises(CheckpointError, match="int8 per token inputs; for a decoder take int4"):
        build_decoder(checkpoint, tmp_path / "onnx")


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", {"model_type": "bloom"}, "a decoder of type llama"),
        ("llama", {"model_type": "lama"}, "did you mean 'llama'"),
        ("llama", {"hidden_act": "swish7"}, "an activation of relu"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "'yarn'"),
        ("mistral", {"sliding_window": 8}, "a sliding window of 8"),
        ("opt", {"do_layer_norm_before": False}, "norms before"),
        ("gpt2", {"add_cross_attention": True}, "cross attention"),
        ("llama", {"num_hidden_layers": 3}, "tensor model.layers.2"),
        ("qwen3", {"hidden_size": None}, "hidden_size"),
    ],
)
def test_what_cannot_be_emitted_is_said(family: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    checkpoint = edit_config(random_decoder(family, tmp_path / "float"), **changes)
    with pytest.raises(CheckpointError, match=message):
        build_decoder(checkpoint, tmp_path / "onnx")


def test_a_missing_head_is_refused(tmp_path: Path) -> None:
    checkpoint = random_decoder("llama", tmp_path / "float")
    edit_config(checkpoint, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"tensor lm_head\.weight"):
        build_decoder(checkpoint, tmp_path / "onnx")


def test_rotary_frequencies_equal_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    for kind, extra in (("linear", {"factor": 4.0}), ("llama3", scaled)):
        parameters = {"rope_type": kind, "rope_theta": 500000.0, **extra}
        config = LlamaConfig(head_dim=64, max_position_embeddings=131072, rope_parameters=parameters)
        expected, scaling = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
        np.testing.assert_allclose(inverse_frequency(config.to_dict(), 64), expected.numpy(), rtol=2e-6)
        assert scaling == 1.0


def quiet() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options
