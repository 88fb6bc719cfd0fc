"""Encoders in the `qdq` dialect: the same integers, standard operators, float16, and what float16 cannot hold."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

from planish import profiles
from planish.errors import CheckpointError, ParityError
from planish.export import CheckpointReader, encoder, export
from planish.export.lint import lint_model
from planish.export.measure_ranges import measure_ranges
from planish.export.parity import check_encoder_qdq
from planish.export.probe import graph_integers
from planish.export.reference import load_reference
from planish.export.to_half import narrowed, to_half
from planish.runtime import load
from tests.export.small_decoders import compressed
from tests.export.small_encoders import VOCABULARY, small_encoder, small_int8, small_quantized
from tests.tiny import word_tokenizer

PAIRS = [
    ("bert", "fill-mask"),
    ("distilbert", "question-answering"),
    ("electra", "token-classification"),
    ("mpnet", "feature-extraction"),
    ("roberta", "text-classification"),
]
PROFILE = "rtx-4090"


def batch(names: list[str]) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(5, 100, (2, 12))
    mask = np.ones_like(ids)
    mask[0, 7:] = 0
    return {
        name: {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}[name] for name in names
    }


def small_by(passes: list[dict[str, Any]], task: str, folder: Path) -> Path:
    """A small BERT after ``passes``."""
    parent = small_encoder("bert", task, folder / "parent")
    word_tokenizer(VOCABULARY).save_pretrained(parent)
    return compressed(parent, folder / "compressed", passes)


@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_both_dialects_hold_the_same_integers_and_answer_alike(family: str, task: str, tmp_path: Path) -> None:
    made = export(small_int8(family, task, tmp_path), tmp_path / "bundle", profile=PROFILE)
    graphs = {name: made.path / info.path for name, info in made.manifest.dialects.items()}
    assert sorted(graphs) == ["ort", "qdq"]
    onnx.checker.check_model(str(graphs["qdq"]), full_check=True)
    ort, qdq = (graph_integers(graphs[name]) for name in ("ort", "qdq"))
    assert set(ort) == set(qdq)
    for module, integers in ort.items():
        np.testing.assert_array_equal(qdq[module], integers, err_msg=module)
    assert len(qdq) >= 13, "six linears in each of two layers, and a table"
    inputs = batch([info.name for info in made.manifest.dialects["ort"].inputs])
    with load(made.path) as one, load(made.path, dialect="qdq", device="cpu") as other:
        for name, expected in one.run(inputs).items():
            got = other.run(inputs)[name]
            assert got.dtype == np.float32
            assert np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2)) < 0.1
    parity = made.manifest.parity["qdq"]
    assert parity.max_abs_error < 1e-4
    assert parity.golden_drift is not None
    assert parity.golden_limit is not None
    assert parity.golden_drift < parity.golden_limit


@pytest.mark.parametrize(("family", "task"), PAIRS[::2])
def test_the_graph_is_standard_float16_and_clean(family: str, task: str, tmp_path: Path) -> None:
    made = export(small_int8(family, task, tmp_path), tmp_path / "bundle", profile=PROFILE)
    path = made.path / "onnx" / "qdq" / "model.onnx"
    model = ir.load(path)
    assert {node.domain for node in model.graph} == {""}
    kinds = {value.dtype for value in model.graph.initializers.values()}
    assert ir.DataType.FLOAT not in kinds
    assert {ir.DataType.FLOAT16, ir.DataType.INT8} <= kinds
    zero_points = [node.inputs[2] for node in model.graph if node.op_type == "QuantizeLinear"]
    assert zero_points
    assert all(zero is not None and not zero.const_value.numpy().any() for zero in zero_points)
    report = lint_model(path, profiles.load(PROFILE))
    assert [finding.rule for finding in report.findings if finding.severity == "error"] == []
    audit = made.manifest.dialects["qdq"].audit
    assert audit is not None
    assert audit["ranges"]["fp32"] == []
    assert audit["ranges"]["largest"]


def test_weight_only_and_float_checkpoints_have_a_qdq_form(tmp_path: Path) -> None:
    weights = small_quantized("bert", "feature-extraction", "int8-weight-only", tmp_path)
    parent = small_encoder("bert", "text-classification", tmp_path / "parent")
    for source, name, words in ((weights, "a", "int8"), (parent, "b", "fp16")):
        made = export(source, tmp_path / name, profile=PROFILE)
        assert made.manifest.dialects["qdq"].precision["linear"] == words
        assert made.manifest.parity["qdq"].max_abs_error < 1e-4


def test_fp8_is_spelled_alike_in_both_dialects(tmp_path: Path) -> None:
    made = export(small_quantized("bert", "feature-extraction", "fp8", tmp_path), tmp_path / "bundle", profile=PROFILE)
    ort, qdq = (graph_integers(made.path / "onnx" / name / "model.onnx") for name in ("ort", "qdq"))
    name = "encoder.layer.1.output.dense"
    assert ort[name].dtype == ml_dtypes.float8_e4m3fn
    assert ort[name].tobytes() == qdq[name].tobytes()
    assert made.manifest.dialects["qdq"].precision["linear"] == "fp8"
    assert made.manifest.parity["qdq"].max_abs_error < 1e-4
    rules = [finding.rule for finding in lint_model(made.path / "onnx/qdq/model.onnx", profiles.load("a10")).findings]
    assert any("fp8" in rule for rule in rules), "compute capability 8.6 has no FP8"


def test_scales_found_at_run_time_are_refused_with_the_recipe_to_take(tmp_path: Path) -> None:
    source = small_quantized("bert", "feature-extraction", "int8-dynamic", tmp_path)
    with pytest.raises(CheckpointError, match=r"static input scales.*recipe int8"):
        export(source, tmp_path / "bundle", profile=PROFILE)
    assert not (tmp_path / "bundle").exists()
    export(source, tmp_path / "bundle")  # the dialect ort has a form for them


def test_zero_points_are_refused(tmp_path: Path) -> None:
    source = small_quantized("bert", "feature-extraction", "int4-round", tmp_path)
    with pytest.raises(CheckpointError, match="symmetric integers"):
        export(source, tmp_path / "bundle", profile=PROFILE)


def test_values_beyond_float16_stay_float32(tmp_path: Path) -> None:
    """A feed-forward layer whose outputs reach 100,000: float16 alone would answer infinity, and LayerNorm then NaN."""
    source = small_encoder("bert", "feature-extraction", tmp_path / "model")
    tensors = load_file(source / "model.safetensors")
    tensors["encoder.layer.0.output.dense.weight"] *= 3e4
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    made = export(source, tmp_path / "bundle", profile=PROFILE)
    audit = made.manifest.dialects["qdq"].audit
    assert audit is not None
    wide = audit["ranges"]["fp32"]
    assert wide
    assert all(audit["ranges"]["largest"][name] > 16376 for name in wide)
    assert made.manifest.dialects["qdq"].precision["compute"] == "fp16 + fp32"
    inputs = batch(["input_ids", "attention_mask", "token_type_ids"])
    model = load_reference(source, "feature-extraction")
    with torch.no_grad():
        expected = model(**{key: torch.from_numpy(array) for key, array in inputs.items()}).last_hidden_state.numpy()
    with load(made.path, dialect="qdq", device="cpu") as bundle:
        got = bundle.run(inputs)["last_hidden_state"]
    real = inputs["attention_mask"].astype(bool)
    np.testing.assert_allclose(got[real], expected[real], atol=0.05)


def test_a_damaged_float16_graph_is_refused_though_its_twin_is_right(tmp_path: Path) -> None:
    source = small_int8("bert", "feature-extraction", tmp_path)
    traced = encoder.trace_encoder(source, task="feature-extraction")
    built = encoder.build_encoder(traced, tmp_path / "graph", dialect="qdq")
    model = ir.load(built.folder / "model.onnx")
    for value in model.graph.initializers.values():
        if str(value.name).endswith("LayerNorm.weight.half"):
            value.const_value = ir.tensor(-value.const_value.numpy(), name=value.name)
    ir.save(model, built.folder / "model.onnx")
    inputs = batch(["input_ids", "attention_mask", "token_type_ids"])
    reference = load_reference(source, "feature-extraction")
    with torch.no_grad():
        answer = reference(**{key: torch.from_numpy(array) for key, array in inputs.items()})
    golden = inputs, {"last_hidden_state": answer.last_hidden_state.numpy()}
    limits = {"vocab_size": 100, "max_length": 40, "pad_token_id": 0}
    with pytest.raises(ParityError):
        check_encoder_qdq(built, reference, golden=golden, **limits)


def test_a_damaged_twin_is_refused(tmp_path: Path) -> None:
    source = small_int8("bert", "feature-extraction", tmp_path)
    traced = encoder.trace_encoder(source, task="feature-extraction")
    built = encoder.build_encoder(traced, tmp_path / "graph", dialect="qdq")
    model = ir.load(built.folder / encoder.TWIN)
    name = "encoder.layer.1.output.dense.quantized.weight"
    value = model.graph.initializers[name]
    array = value.const_value.numpy().copy()
    array[3, 5] ^= 0x40
    value.const_value = ir.tensor(array, name=name)
    ir.save(model, built.folder / encoder.TWIN)
    reference = load_reference(source, "feature-extraction")
    limits = {"vocab_size": 100, "max_length": 40, "pad_token_id": 0}
    with pytest.raises(ParityError, match=r"within 0\.001"):
        check_encoder_qdq(built, reference, golden=({}, {}), **limits)


def test_narrowing_keeps_masks_finite_and_refuses_what_does_not_fit() -> None:
    assert narrowed(np.array(np.finfo(np.float32).min), "mask") == np.float16(-32768)
    with pytest.raises(CheckpointError, match="within float16"):
        narrowed(np.array([1.0, 7e4], np.float32), "w")
    with pytest.raises(CheckpointError, match="within float16"):
        narrowed(np.array([1.0, np.nan], np.float32), "w")


def test_ranges_are_the_largest_magnitudes_seen(tmp_path: Path) -> None:
    """Two nodes by hand: y = -3 x and z = y + 100, on x in [-4, 2]."""
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=["n"])
    weights = [ir.tensor(np.array(v, np.float32), name=n) for v, n in ((-3.0, "a"), (100.0, "b"))]
    a, b = (ir.Value(name=w.name, const_value=w, type=ir.TensorType(w.dtype), shape=ir.Shape(w.shape)) for w in weights)
    first = ir.node("Mul", [x, a], name="mul")
    second = ir.node("Add", [first.outputs[0], b], name="add")
    for node, name in ((first, "y"), (second, "z")):
        node.outputs[0].name, node.outputs[0].type = name, ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].shape = ir.Shape(["n"])
    graph = ir.Graph([x], [second.outputs[0]], nodes=[first, second], initializers=[a, b], opset_imports={"": 21})
    model = ir.Model(graph, ir_version=10)
    ir.save(model, tmp_path / "graph.onnx")
    batches = [{"x": np.array(v, np.float32)} for v in ([-4.0, 1.0], [2.0])]
    found = measure_ranges(tmp_path / "graph.onnx", batches)
    assert dict(found.largest) == {"y": 12.0, "z": 112.0}
    assert found.wide == ()
    assert dataclasses.replace(found, largest={"y": 12.0, "z": float("nan")}).wide == ("z",)
    assert to_half(model, wide=["z"]) == 1, "y is cast up for z; z leaves as float32"
    assert [value.dtype.name for node in model.graph for value in node.outputs if value.name in ("y", "z")] == [
        "FLOAT16",
        "FLOAT",
    ]


def test_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    source = small_int8("bert", "text-classification", tmp_path)
    first, second = (export(source, tmp_path / name, profile=PROFILE).manifest.digest for name in "ab")
    assert first == second
    assert CheckpointReader(source).quantized


def test_four_bits_lie_in_blocks_also_where_a_group_is_a_row(tmp_path: Path) -> None:
    """Groups as wide as a layer of 32: TensorRT reads 4 bits in blocks, and no scale a channel."""
    passes = [{"pass": "weight-only", "bits": 4, "group_size": 32, "symmetric": True, "method": "round"}]
    made = export(small_by(passes, "feature-extraction", tmp_path), tmp_path / "bundle", profile=PROFILE)
    report = lint_model(made.path / "onnx/qdq/model.onnx", profiles.load(PROFILE))
    assert [finding.rule for finding in report.findings if finding.severity == "error"] == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"group_size": None}, r"query in groups, .*got 4 bits with one scale a row; .*int4-symmetric"),
        ({"group_size": 32, "include": ["classifier"]}, "even number of outputs of classifier, .*got 3 outputs"),
    ],
    ids=["no groups", "odd width"],
)
def test_four_bits_that_no_tensorrt_reads_are_refused(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    passes = [{"pass": "weight-only", "bits": 4, "symmetric": True, "method": "round", **settings}]
    source = small_by(passes, "token-classification", tmp_path)
    with pytest.raises(CheckpointError, match=words):
        export(source, tmp_path / "bundle", profile=PROFILE)
    export(source, tmp_path / "bundle")  # ONNX Runtime does


def test_weights_too_large_for_one_file_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """XLM-RoBERTa large has 2.2 GB; here the limit is small in its place. Both dialects answer as from one file."""
    source = small_int8("bert", "feature-extraction", tmp_path)
    whole = export(source, tmp_path / "whole", profile=PROFILE)
    monkeypatch.setattr(encoder, "EXTERNAL_ABOVE", 1000)
    apart = export(source, tmp_path / "apart", profile=PROFILE)
    more = {f"onnx/{name}/model.onnx.data" for name in ("ort", "qdq")}
    assert set(apart.manifest.files) == set(whole.manifest.files) | more
    inputs = batch(["input_ids", "attention_mask", "token_type_ids"])
    for dialect in ("ort", "qdq"):
        with (
            load(whole.path, dialect=dialect, device="cpu") as one,
            load(apart.path, dialect=dialect, device="cpu") as two,
        ):
            expected = one.run(inputs)["last_hidden_state"]
            np.testing.assert_array_equal(two.run(inputs)["last_hidden_state"], expected)
        assert whole.manifest.parity[dialect] == apart.manifest.parity[dialect]
