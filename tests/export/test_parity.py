"""A graph that computes something else is refused, and nothing of it is left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.torch import load_file, save_file

from planish.errors import InputError, ParityError
from planish.export import encoder, export
from planish.export.parity import DEFAULT_ATOL, check_encoder, report, tolerance
from planish.export.reference import load_reference
from tests.export.small_decoders import compressed
from tests.export.small_encoders import VOCABULARY, small_encoder, small_int8
from tests.tiny import word_tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_int8("bert", "text-classification", tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def built(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> encoder.Built:
    traced = encoder.trace_encoder(checkpoint, task="text-classification")
    return encoder.build_encoder(traced, tmp_path_factory.mktemp("graph"))


def damage(built: encoder.Built, folder: Path, name: str, change: Callable[[Any], Any]) -> encoder.Built:
    """A copy of the graph in which one initializer is changed."""
    model = ir.load(built.folder / "model.onnx")
    value = next(value for key, value in model.graph.initializers.items() if name in key)
    assert value.const_value is not None
    value.const_value = ir.tensor(change(value.const_value.numpy().copy()), name=value.name)
    folder.mkdir(exist_ok=True)
    ir.save(model, folder / "model.onnx")
    return dataclasses.replace(built, folder=folder)


def one_integer(array: Any) -> Any:
    array[3, 5] = np.int8(array[3, 5] ^ 0x40)
    return array


DAMAGES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "one integer": ("layer.1.output.dense.quantized.weight", one_integer),
    "one scale": ("layer.0.attention.self.key.quantized.scale", lambda a: a * np.float32(1.02)),
    "a bias": ("layer.1.intermediate.dense.quantized.bias", lambda a: a + np.float32(0.01)),
    "the table": ("word_embeddings.quantized.scale", lambda a: np.roll(a, 1)),
    "not a number": ("classifier.weight", lambda a: a * np.float32("nan")),
}


def check(built: encoder.Built, checkpoint: Path, **options: Any) -> dict[str, Any]:
    model = load_reference(checkpoint, "text-classification")
    return check_encoder(built, model, vocab_size=100, max_length=40, pad_token_id=0, **options)


def test_the_true_graph_passes_far_below_the_tolerance(built: encoder.Built, checkpoint: Path) -> None:
    told = check(built, checkpoint)
    assert told["max_abs_error"] < DEFAULT_ATOL / 50
    lengths = " ".join(case["name"] for case in told["cases"])
    assert "lengths 1" in lengths
    assert "lengths 40" in lengths
    assert "batch 4" in lengths


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_found(kind: str, built: encoder.Built, checkpoint: Path, tmp_path: Path) -> None:
    broken = damage(built, tmp_path / "broken", *DAMAGES[kind])
    with pytest.raises(ParityError):
        check(broken, checkpoint)


def test_a_broken_weight_leaves_no_bundle(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = encoder.build_encoder

    def broken(traced: encoder.Traced, scratch: Path, **options: Any) -> encoder.Built:
        return damage(real(traced, scratch, **options), scratch, *DAMAGES["one integer"])

    monkeypatch.setattr(encoder, "build_encoder", broken)
    with pytest.raises(ParityError) as caught:
        export(checkpoint, tmp_path / "bundle")
    assert caught.value.exit_code == 1
    assert not list(tmp_path.iterdir())
    loose = export(checkpoint, tmp_path / "bundle", atol=100.0).manifest.parity["ort"]
    assert loose.loosened
    assert (loose.atol, loose.default_atol) == (100.0, DEFAULT_ATOL)
    assert loose.max_abs_error > DEFAULT_ATOL


def test_a_tighter_tolerance_is_not_called_loosened(built: encoder.Built, checkpoint: Path) -> None:
    told = check(built, checkpoint, atol=DEFAULT_ATOL / 2)
    assert told["atol"] == DEFAULT_ATOL / 2
    assert not told["loosened"]


@pytest.mark.parametrize("atol", [0.0, -1.0, float("inf"), float("nan")])
def test_no_tolerance(atol: float) -> None:
    with pytest.raises(InputError, match="tolerance"):
        tolerance(atol)


def test_report_names_the_worst_case() -> None:
    cases = [{"name": "a", "max_abs_error": 1e-5}, {"name": "b", "max_abs_error": float("nan")}]
    with pytest.raises(ParityError, match="case b"):
        report(cases, 1.0)


def test_interrupt_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("parity", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(checkpoint, tmp_path / "bundle", progress=stop)
    assert not list(tmp_path.iterdir())


def test_large_inner_values_are_held_to_seven_digits_not_to_the_tolerance_of_small_ones(tmp_path: Path) -> None:
    """A feed-forward layer whose INT8 inputs reach thousands, where float32 itself is off by more than 1e-3."""
    parent = small_encoder("bert", "feature-extraction", tmp_path / "parent")
    word_tokenizer(VOCABULARY).save_pretrained(parent)
    tensors = load_file(parent / "model.safetensors")
    tensors["encoder.layer.0.intermediate.dense.weight"] *= 1e4
    save_file(tensors, parent / "model.safetensors", metadata={"format": "pt"})
    passes = [{"pass": "int8-linear", "activations": "static"}, {"pass": "int8-embedding"}]
    made = export(compressed(parent, tmp_path / "made", passes), tmp_path / "bundle")
    assert made.manifest.parity["ort"].max_abs_error < 1e-3
