"""Decoders in the qdq dialect: the checkpoint's integers, standard operators, float16 where it was measured to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from planish import profiles
from planish.errors import CheckpointError
from planish.export.decoder import build_decoder, measure_decoder
from planish.export.emit_qdq_floats import LARGEST, LIMIT
from planish.export.graph import Built
from planish.export.lint import lint_model
from planish.export.parity import open_session
from planish.export.qdq_ranges import ValueRanges
from tests.export.small_decoders import VOCABULARY, compressed, quantized, random_decoder, tensors, unpacked

Array = NDArray[Any]

KINDS: dict[str, dict[str, Any]] = {
    "int8": {"bits": 8, "symmetric": True, "group_size": None},
    "int8 g32": {"bits": 8, "symmetric": True, "group_size": 32},
    "int4 g32": {"bits": 4, "symmetric": True, "group_size": 32},
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    return quantized(random_decoder("llama", folder / "float"), folder / "int8", **KINDS["int8"])


@pytest.fixture(scope="module")
def built(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build_decoder(llama, tmp_path_factory.mktemp("qdq"), dialect="qdq")


def feed(built: Built, ids: Array, mask: Array | None = None) -> dict[str, Array]:
    """Inputs of a prefill, all logits wanted."""
    steps = np.broadcast_to(np.arange(ids.shape[1]), ids.shape).copy()
    inputs = {"input_ids": ids, "position_ids": steps, "logits_index": steps}
    inputs["attention_mask"] = np.ones_like(ids) if mask is None else mask
    for spec in built.inputs:
        if spec.name.startswith("past"):
            inputs[spec.name] = np.zeros((len(ids), int(spec.shape[1]), 0, int(spec.shape[3])), np.float16)
    return inputs


def logits(built: Built, inputs: dict[str, Array]) -> Array:
    return np.asarray(open_session(built.folder / built.files[0], built).run(["logits"], inputs)[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "qwen3"])
def test_both_dialects_hold_the_same_integers(family: str, kind: str, tmp_path: Path) -> None:
    settings = KINDS[kind]
    checkpoint = quantized(random_decoder(family, tmp_path / "float"), tmp_path / "q", **settings)
    ours = tensors(build_decoder(checkpoint, tmp_path / "qdq", dialect="qdq"))
    theirs = tensors(build_decoder(checkpoint, tmp_path / "ort"))
    integers = {name: array for name, array in ours.items() if str(array.dtype) in ("int8", "int4")}
    assert len(integers) >= 2 * 4 + 1  # four products a layer, and the table
    for name, array in integers.items():
        table = array.shape[0] == VOCABULARY or "wpe" in name  # lies as [rows, width]; linears are transposed
        values = array.astype(np.int8) if table else array.astype(np.int8).T
        bits = 8 if table or array.shape[1] == VOCABULARY else int(settings["bits"])
        np.testing.assert_array_equal(unpacked(theirs[name], bits, values.shape[1]), values)
        module = name.removesuffix(".weight")
        scale, expected = ours[f"{module}.scale"], theirs[f"{module}.scale.half"]
        assert scale.dtype == expected.dtype == np.float16
        np.testing.assert_array_equal(
            scale.reshape(-1) if scale.ndim == 1 or table else scale.T.reshape(-1), expected.reshape(-1)
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_strongly_typed_standard_operators(family: str, kind: str, tmp_path: Path) -> None:
    checkpoint = quantized(random_decoder(family, tmp_path / "float"), tmp_path / "q", **KINDS[kind])
    built = build_decoder(checkpoint, tmp_path / "qdq", dialect="qdq")
    path = built.folder / built.files[0]
    onnx.checker.check_model(str(path), full_check=True)
    model = ir.load(path)
    assert dict(model.opset_imports) == {"": 21}
    assert {node.domain for node in model.graph} == {""}
    floats = {n: v.dtype for n, v in model.graph.initializers.items() if v.dtype == ir.DataType.FLOAT}
    assert all(name.startswith(("rotary.", "constant_")) for name in floats)
    typed = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)).graph
    products = [node for node in typed if node.op_type in ("MatMul", "Softmax", "DequantizeLinear")]
    assert products
    assert {node.outputs[0].dtype for node in products} == {ir.DataType.FLOAT16}
    assert {node.inputs[0].dtype for node in typed if node.op_type == "ReduceMean"} <= {ir.DataType.FLOAT}


@pytest.mark.parametrize(
    ("family", "kind", "rules"),
    [
        ("llama", "int8", set()),
        ("llama", "int8 g32", {"int8-block-slow"}),
        ("llama", "int4 g32", set()),
        ("gpt2", "int8", set()),
        ("neox", "int4 g32", set()),
    ],
)
def test_the_linter_agrees(family: str, kind: str, rules: set[str], tmp_path: Path) -> None:
    checkpoint = quantized(random_decoder(family, tmp_path / "float"), tmp_path / "q", **KINDS[kind])
    built = build_decoder(checkpoint, tmp_path / "qdq", dialect="qdq")
    told = lint_model(built.folder / built.files[0], profiles.load("rtx-4090"))
    assert {finding.rule for finding in told.findings} == rules
    assert (told.audit.attentions, told.audit.fusible) == (2, 2)


def test_a_tied_table_is_one_initializer(built: Built, llama: Path) -> None:
    found = tensors(built)
    tables = [name for name, array in found.items() if VOCABULARY in array.shape and array.ndim == 2]
    assert tables == ["model.embed_tokens.weight"]
    graph = ir.load(built.folder / built.files[0]).graph
    (reader,) = graph.initializers["model.embed_tokens.weight"].consumers()
    assert {node.op_type for node in reader.outputs[0].consumers()} == {"Gather", "Transpose"}


def test_the_contract(built: Built) -> None:
    session = open_session(built.folder / built.files[0], built)
    assert [(spec.name, list(spec.shape)) for spec in built.inputs] == [(v.name, v.shape) for v in session.get_inputs()]
    assert [(s.name, list(s.shape)) for s in built.outputs] == [(v.name, v.shape) for v in session.get_outputs()]
    assert [spec.name for spec in built.inputs[:4]] == ["input_ids", "position_ids", "attention_mask", "logits_index"]
    assert {spec.dtype for spec in built.inputs[4:]} == {"float16"}
    assert built.outputs[0].to_json() == {"name": "logits", "dtype": "float32", "shape": ["batch", "kept", VOCABULARY]}
    assert built.outputs[1].to_json() == {
        "name": "present.0.key",
        "dtype": "float16",
        "shape": ["batch", 2, "total", 16],
    }
    assert built.generation is not None
    assert (built.dialect, built.generation["cache_dtype"]) == ("qdq", "float16")
    assert built.precision == {"linear": "int8", "embedding": "int8", "head": "int8", "compute": "fp16"}


def test_same_checkpoint_same_bytes(built: Built, llama: Path, tmp_path: Path) -> None:
    again = build_decoder(llama, tmp_path / "again", dialect="qdq")
    for file in built.files:
        assert (built.folder / file).read_bytes() == (again.folder / file).read_bytes()
    assert again.audit == built.audit


def test_weights_are_rounded_to_float16_as_engines_do(built: Built, llama: Path) -> None:
    """The session option of the manifest keeps ONNX Runtime from products whose weights it does not round."""
    assert built.session == {"session.disable_quant_qdq": "1"}
    folder = built.folder / "optimized"
    folder.mkdir()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "model.onnx")
    for key, value in built.session.items():
        options.add_session_config_entry(key, value)
    onnxruntime.InferenceSession(str(built.folder / built.files[0]), options, providers=["CPUExecutionProvider"])
    kinds = {node.op_type for node in ir.load(folder / "model.onnx").graph}
    assert "MatMul" in kinds
    assert not {"MatMulNBits", "QuantizeLinear", "MatMulIntegerToFloat"} & kinds


def test_a_row_in_which_nothing_may_be_seen_is_finite_and_harmless(built: Built) -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, VOCABULARY, (2, 6))
    mask = np.array([[0] * 6, [1] * 6])
    both = logits(built, feed(built, ids, mask))
    assert np.isfinite(both).all()
    np.testing.assert_allclose(both[1:], logits(built, feed(built, ids[1:])), atol=1e-3)


def test_far_positions_are_rotated_precisely(tmp_path: Path) -> None:
    """The first frequency turns a radian a position: an angle of 8191 in float16 is off by up to four."""
    checkpoint = random_decoder("llama", tmp_path / "float", max_position_embeddings=8192)
    found = tensors(build_decoder(checkpoint, tmp_path / "qdq", dialect="qdq"))
    assert found["rotary.cos"].shape == (8192, 8)
    np.testing.assert_allclose(found["rotary.cos"][8191, 0], np.cos(8191.0), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 4}, "int4-symmetric"),
        ({"bits": 8}, "int8-weight-only"),
        ({"bits": 4, "symmetric": True, "group_size": None}, "in groups.*int4-symmetric"),
    ],
)
def test_what_engines_cannot_read_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    checkpoint = quantized(random_decoder("llama", tmp_path / "float"), tmp_path / "q", **settings)
    with pytest.raises(CheckpointError, match=message):
        build_decoder(checkpoint, tmp_path / "qdq", dialect="qdq")


def test_int8_activations_are_for_encoders(tmp_path: Path) -> None:
    source = random_decoder("llama", tmp_path / "float")
    checkpoint = compressed(source, tmp_path / "int8", [{"pass": "int8-linear", "activations": "token"}])
    with pytest.raises(CheckpointError, match="int8 per token inputs; for a decoder take int8-weight-only"):
        build_decoder(checkpoint, tmp_path / "qdq", dialect="qdq")


def loud(source: Path, factor: float) -> Path:
    """The same checkpoint with what the first layer's MLP writes ``factor`` times larger, in one channel."""
    from safetensors.torch import load_file, save_file

    weights = load_file(source / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"][3] *= factor
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    return source


def torch_logits(checkpoint: Path, ids: Array) -> Array:
    from planish.export.reference import load_reference

    with torch.no_grad():
        found = load_reference(checkpoint, "text-generation")(
            input_ids=torch.from_numpy(ids), attention_mask=torch.ones(ids.shape, dtype=torch.int64)
        )
    return np.asarray(found.logits.numpy())


def test_what_leaves_float16_stays_float32(tmp_path: Path) -> None:
    """A residual stream beyond 65504: right with measured ranges, and not for a graph that was told small ones."""
    checkpoint = loud(random_decoder("llama", tmp_path / "float"), 1e5)
    ranges = measure_decoder(checkpoint, tmp_path / "measured")
    down, stream = "model.layers.0.mlp.down_proj", "model.layers.0.mlp.down_proj + residual"
    assert ranges.largest[down] > LARGEST
    assert ranges.largest["model.layers.0.mlp.up_proj"] < LIMIT
    built = build_decoder(checkpoint, tmp_path / "qdq", dialect="qdq", ranges=ranges)
    assert {down, stream} <= set(built.audit["ranges"]["fp32"])
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (2, 12))
    expected = torch_logits(checkpoint, ids)
    error = np.std(logits(built, feed(built, ids)) - expected) / np.std(expected)
    assert error < 0.01
    small = ValueRanges(dict.fromkeys(ranges.largest, 1.0), "nothing")
    naive = build_decoder(checkpoint, tmp_path / "naive", dialect="qdq", ranges=small)
    assert not np.std(logits(naive, feed(naive, ids)) - expected) / np.std(expected) < 0.5


def test_every_part_computes_in_float32_if_it_has_to(tmp_path: Path) -> None:
    """Ranges that were never measured count as too large: a graph of float32 islands is still the same function."""
    for family in ("llama", "gpt2", "neox", "qwen3"):
        checkpoint = random_decoder(family, tmp_path / family)
        measured = measure_decoder(checkpoint, tmp_path / f"{family}-measured").largest
        kept = {
            name: seen
            for name, seen in measured.items()
            if "norm" in name or "q_proj" in name or "query_key" in name or "attn" in name
        }
        built = build_decoder(checkpoint, tmp_path / f"{family}-qdq", dialect="qdq", ranges=ValueRanges(kept, "some"))
        onnx.checker.check_model(str(built.folder / built.files[0]), full_check=True)
        ids = np.random.default_rng(0).integers(0, VOCABULARY, (2, 12))
        expected = torch_logits(checkpoint, ids)
        assert np.std(logits(built, feed(built, ids)) - expected) / np.std(expected) < 0.01


def test_keys_beyond_float16_are_refused(llama: Path, tmp_path: Path) -> None:
    largest = dict(measure_decoder(llama, tmp_path / "measured").largest)
    packed = next(name for name in largest if "k_proj" in name)
    ranges = ValueRanges({**largest, packed: 1e6}, "made up")
    with pytest.raises(CheckpointError, match=r"k_proj.* within float16's range"):
        build_decoder(llama, tmp_path / "qdq", dialect="qdq", ranges=ranges)


def test_weights_beyond_float16_are_refused(tmp_path: Path) -> None:
    checkpoint = loud(random_decoder("llama", tmp_path / "float"), 1e9)
    with pytest.raises(CheckpointError, match=r"down_proj\.weight within float16's range"):
        build_decoder(checkpoint, tmp_path / "qdq", dialect="qdq")


def test_a_model_that_overflows_float32_is_refused(tmp_path: Path) -> None:
    checkpoint = loud(random_decoder("llama", tmp_path / "float"), 1e38)
    with pytest.raises(CheckpointError, match="values stay finite on text"):
        build_decoder(checkpoint, tmp_path / "qdq", dialect="qdq")


def test_the_ranges_of_a_text(tmp_path: Path) -> None:
    """Measured on the built-in text where there is a tokenizer; the report folds layers of a kind."""
    from tests.tiny import tiny_decoder

    checkpoint = tiny_decoder("llama", tmp_path / "tiny", steps=1)
    ranges = measure_decoder(checkpoint, tmp_path / "measured")
    assert ranges.text.startswith("built-in text, ")
    told = ranges.to_json()
    assert told["fp32"] == []
    assert any("layers.*.mlp.down_proj" in name for name in told["largest"])
    assert len(told["largest"]) < len(ranges.largest)
