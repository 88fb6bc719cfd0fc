"""Weights of 7 bits: stored in 8, exact where pairs of products are added in 16, with nothing to tell the engine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from planish.compress import compress
from planish.errors import ParityError
from planish.export import CheckpointReader, export
from planish.export.parity import DEFAULT_ATOL
from planish.export.probe import graph_integers
from planish.export.quiet import quiet
from planish.export.reader import QuantizedLinear
from planish.runtime import load
from planish.runtime.dot_products import EXACT, NARROW, adds_exactly, exact_options
from tests.export.small_encoders import VOCABULARY, small_encoder, small_int8
from tests.tiny import word_tokenizer

RECIPE = {
    "schema": 1,
    "name": "int8-narrow",
    "data": {"source": "builtin", "samples": 4, "sequence_length": 16},
    "passes": [
        {"pass": "int8-linear", "weight_bits": 7, "activations": "static", "smoothing": 0.9},
        {"pass": "int8-embedding"},  # the tied head's integers are of 8 bits, without 8-bit inputs
    ],
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("narrow")
    model = small_encoder("bert", "fill-mask", folder / "model")
    word_tokenizer(VOCABULARY).save_pretrained(model)
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))
    with quiet():
        compress(str(model), folder / "recipe.yaml", folder / "int8")
    return folder / "int8"


def test_seven_bits_are_stored_in_eight(checkpoint: Path) -> None:
    reader = CheckpointReader(checkpoint)
    names = [name.removesuffix(".weight_scale") for name in reader.names if name.endswith(".weight_scale")]
    layers = [reader.linear(name) for name in names if ".layer." in name]
    assert len(layers) == 12
    for layer in layers:
        assert isinstance(layer, QuantizedLinear)
        assert layer.bits == 8
        assert layer.is_narrow
        assert np.abs(layer.values.astype(int)).max() > 50, "the range is used"
    groups = json.loads((checkpoint / "config.json").read_text())["quantization_config"]["config_groups"].values()
    assert {group["weights"]["num_bits"] for group in groups} == {8}


def test_parity_without_the_entry(checkpoint: Path, tmp_path: Path) -> None:
    made = export(checkpoint, tmp_path / "bundle", profile="rtx-4090")
    for name in ("ort", "qdq"):
        precision = made.manifest.dialects[name].precision
        assert dict([NARROW]).items() <= precision.items()
        assert exact_options(name, precision) == {}
        key = EXACT[name][0]
        assert key not in made.manifest.dialects[name].session
        assert made.manifest.parity[name].max_abs_error < DEFAULT_ATOL / 10
        with load(made.path, device="cpu", dialect=name) as model, pytest.raises(RuntimeError):
            model.session.get_session_options().get_session_config_entry(key)
    body = {name: array for name, array in graph_integers(made.path / "onnx/ort/model.onnx").items() if "layer" in name}
    assert all(array.min() >= -64 and array.max() <= 63 for array in body.values())


def test_eight_bits_need_the_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing about the host goes into the bundle; without the entry parity sees what saturates."""
    whole = small_int8("bert", "fill-mask", tmp_path)
    made = export(whole, tmp_path / "bundle", profile="rtx-4090")
    for name, dialect in made.manifest.dialects.items():
        assert "linear_range" not in dialect.precision
        assert EXACT[name][0] not in dialect.session
        assert made.manifest.parity[name].max_abs_error < DEFAULT_ATOL / 10
    if adds_exactly():
        pytest.skip("this processor has VNNI or is no x86: its integer products never saturate")
    for name, (key, word) in EXACT.items():
        with load(made.path, device="cpu", dialect=name) as model:
            assert model.session.get_session_options().get_session_config_entry(key) == word
    monkeypatch.setattr("planish.export.parity.exact_options", lambda *told: {})
    for name in EXACT:
        with pytest.raises(ParityError):
            export(whole, tmp_path / "saturated", profile="rtx-4090", dialects=[name])
