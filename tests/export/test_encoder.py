"""Encoders of five families and five tasks go from checkpoint to bundle, integers untouched."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from planish.errors import CheckpointError, InputError
from planish.export import CheckpointReader, export
from planish.export.parity import DEFAULT_ATOL
from planish.export.probe import graph_integers
from planish.export.reader import QuantizedLinear
from planish.runtime import load, verify
from tests.export.small_encoders import small_encoder, small_int8

PAIRS = [
    ("bert", "fill-mask"),
    ("distilbert", "question-answering"),
    ("electra", "token-classification"),
    ("mpnet", "feature-extraction"),
    ("roberta", "text-classification"),
]
QUANTIZED_PER_LAYER = 6


def stored_integers(reader: CheckpointReader, module: str) -> np.ndarray:
    layer = reader.embedding(module) if "embedding" in module else reader.linear(module)
    assert isinstance(layer, QuantizedLinear)
    return layer.values


@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_integers_reach_the_graph_bit_by_bit(family: str, task: str, tmp_path: Path) -> None:
    checkpoint = small_int8(family, task, tmp_path)
    made = export(checkpoint, tmp_path / "bundle")
    verify(made.path)
    names = [info.name for info in made.manifest.dialects["ort"].inputs]
    assert ("token_type_ids" in names) == (family in ("bert", "electra"))
    reader, graph = CheckpointReader(checkpoint), made.path / "onnx" / "ort" / "model.onnx"
    onnx.checker.check_model(str(graph))
    modules = {name.removesuffix(".weight_scale") for name in reader.names if name.endswith(".weight_scale")}
    found = graph_integers(graph)
    tied = {module for module in modules - set(found) if "embeddings" not in module}
    assert set(found) | tied == modules
    assert len(tied) == (1 if task == "fill-mask" else 0), "only a tied head shares its table's integers"
    for module, integers in found.items():
        np.testing.assert_array_equal(integers, stored_integers(reader, module), err_msg=module)
    for module in tied:
        table = next(integers for name, integers in found.items() if name.endswith("word_embeddings"))
        np.testing.assert_array_equal(table, stored_integers(reader, module))


@pytest.mark.parametrize(("family", "task"), [("xlm-roberta", "fill-mask"), ("mpnet", "feature-extraction")])
def test_float_checkpoints_make_baseline_bundles(family: str, task: str, tmp_path: Path) -> None:
    made = export(small_encoder(family, task, tmp_path / "model"), tmp_path / "bundle")
    parity = made.manifest.parity["ort"]
    assert parity.max_abs_error < 1e-5
    assert not parity.loosened
    assert made.manifest.dialects["ort"].precision["linear"] == "fp32"
    assert made.manifest.recipe is None
    names = [info.name for info in made.manifest.dialects["ort"].inputs]
    assert names == ["input_ids", "attention_mask"]


def test_manifest_of_a_quantized_classifier(tmp_path: Path) -> None:
    checkpoint = small_int8("roberta", "text-classification", tmp_path)
    made = export(checkpoint, tmp_path / "bundle", progress=lambda *told: None)
    manifest = made.manifest
    assert (manifest.task, manifest.model_type) == ("text-classification", "roberta")
    assert manifest.labels == ("no", "maybe", "yes")
    assert manifest.max_length == 40, "RoBERTa's positions start behind the padding id"
    assert manifest.recipe is not None
    assert manifest.recipe["name"] == "int8"
    assert [receipt["pass"] for receipt in manifest.receipts] == ["int8-linear", "int8-embedding"]
    assert manifest.dialects["ort"].precision == {
        "linear": "int8",
        "embedding": "int8",
        "activations": "int8 static",
        "compute": "fp32",
    }
    assert "quantization_config" not in json.loads((made.path / "config.json").read_text())
    assert manifest.parity["ort"].atol == DEFAULT_ATOL


def test_exporting_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    checkpoint = small_int8("bert", "text-classification", tmp_path)
    first, second = (export(checkpoint, tmp_path / name).manifest for name in ("a", "b"))
    assert first.digest == second.digest


def test_padding_and_batch_do_not_change_an_answer(tmp_path: Path) -> None:
    """Static scales or one a token: what else is in the batch must not matter beyond float sums."""
    made = export(small_int8("distilbert", "text-classification", tmp_path), tmp_path / "bundle")
    ids = np.random.default_rng(0).integers(5, 100, (2, 12))
    ids[1] *= 7
    ids %= 100
    mask = np.ones_like(ids)
    mask[0, 5:] = 0
    with load(made.path) as model:
        together = model.run({"input_ids": ids, "attention_mask": mask})["logits"]
        alone = model.run({"input_ids": ids[:1, :5], "attention_mask": mask[:1, :5]})["logits"]
    np.testing.assert_allclose(together[0], alone[0], atol=1e-5)


def test_a_model_without_the_head_is_refused(tmp_path: Path) -> None:
    model = small_encoder("bert", "feature-extraction", tmp_path / "model")
    with pytest.raises(CheckpointError, match="classifier"):
        export(model, tmp_path / "bundle", task="text-classification")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_arguments_are_checked_before_work(tmp_path: Path) -> None:
    model = small_encoder("bert", "feature-extraction", tmp_path / "model")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(InputError, match="free output"):
        export(model, tmp_path / "taken")
    with pytest.raises(InputError, match="opset"):
        export(model, tmp_path / "bundle", opset=17)
    with pytest.raises(InputError, match="did you mean 'feature-extraction'"):
        export(model, tmp_path / "bundle", task="feature-extracton")
    with pytest.raises(InputError, match="tolerance"):
        export(model, tmp_path / "bundle", atol=-1.0)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        export(tmp_path / "nothing", tmp_path / "bundle")
