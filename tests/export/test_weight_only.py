"""Encoders whose weights alone are quantized, which transformers cannot dequantize, go from checkpoint to answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from planish import compress
from planish.errors import CheckpointError
from planish.export import export
from planish.export.quiet import quiet
from planish.export.reference import load_float
from planish.runtime import load
from tests.export.small_encoders import FAMILIES, small_quantized

RECIPES = ["int8-weight-only", "int4-round"]
IDS = torch.tensor([[5, 17, 30, 2, 64, 9]])


def answer(model: object) -> torch.Tensor:
    with torch.no_grad(), quiet():
        return model(input_ids=IDS)[0]  # type: ignore[operator,no-any-return]


@pytest.mark.parametrize("task", ["feature-extraction", "text-classification", "fill-mask"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_float_model_is_the_one_compress_loads(family: str, task: str, tmp_path: Path) -> None:
    """fill-mask has a head tied to the embeddings, and a bias stored under one of its names."""
    for recipe in RECIPES:
        checkpoint = small_quantized(family, task, recipe, tmp_path / recipe)
        with quiet():
            expected = answer(compress.load(checkpoint))
        torch.testing.assert_close(answer(load_float(checkpoint, task)), expected)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_body_of_a_classifier_loads_without_its_prefix(family: str, tmp_path: Path) -> None:
    checkpoint = small_quantized(family, "text-classification", "int4-round", tmp_path)
    with quiet():
        whole = compress.load(checkpoint)
        expected = answer(whole.base_model)
    torch.testing.assert_close(answer(load_float(checkpoint, "feature-extraction")), expected)
    with pytest.raises(CheckpointError, match="none for"):
        load_float(checkpoint, "question-answering")


def test_position_ids_and_missing_poolers_do_no_harm(tmp_path: Path) -> None:
    """Old checkpoints store position ids; many sentence encoders have no pooler."""
    checkpoint = small_quantized("bert", "feature-extraction", "int8-weight-only", tmp_path)
    expected = answer(load_float(checkpoint, "feature-extraction"))
    file = checkpoint / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if "pooler" not in name}
    save_file({**tensors, "embeddings.position_ids": torch.arange(40)[None]}, file, metadata={"format": "pt"})
    torch.testing.assert_close(answer(load_float(checkpoint, "feature-extraction")), expected)


@pytest.mark.parametrize(
    ("family", "task", "recipe"),
    [
        ("bert", "feature-extraction", "int4-round"),
        ("distilbert", "text-classification", "int8-weight-only"),
        ("electra", "text-classification", "int4-round"),
        ("mpnet", "feature-extraction", "int8-weight-only"),
        ("roberta", "fill-mask", "int8-weight-only"),
    ],
)
def test_exported_and_run(family: str, task: str, recipe: str, tmp_path: Path) -> None:
    checkpoint = small_quantized(family, task, recipe, tmp_path)
    made = export(checkpoint, tmp_path / "bundle")
    precision = made.manifest.dialects["ort"].precision
    assert precision["linear"] == ("int8" if recipe == "int8-weight-only" else "int4")
    assert precision["activations"] == "fp32"
    assert made.manifest.parity["ort"].max_abs_error < 1e-4
    with load(made.path) as model:
        if task == "feature-extraction":
            assert model.embed(["call me ishmael"], pooling="mean").shape == (1, 32)
        elif task == "text-classification":
            assert model.classify(["call me ishmael"])
        else:
            assert model.run({"input_ids": IDS.numpy(), "attention_mask": IDS.numpy() * 0 + 1})["logits"].size
