"""The torch models an export is made from and judged by."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from planish import compress
from planish.errors import CheckpointError, InputError
from planish.export.quiet import quiet
from planish.export.reference import load_float, load_reference
from tests.export.small_encoders import small_encoder, small_int8

IDS = torch.tensor([[5, 17, 30, 2, 64, 9]])


def hidden(model: object) -> torch.Tensor:
    with torch.no_grad(), quiet():
        return model(input_ids=IDS).last_hidden_state  # type: ignore[operator,no-any-return]


def test_reference_quantizes_its_inputs_and_float_does_not(tmp_path: Path) -> None:
    checkpoint = small_int8("distilbert", "feature-extraction", tmp_path)
    reference = hidden(load_reference(checkpoint, "feature-extraction"))
    traced = hidden(load_float(checkpoint, "feature-extraction"))
    parent = hidden(load_float(tmp_path / "distilbert-feature-extraction", "feature-extraction"))
    assert 1e-3 < (reference - traced).abs().max() < 0.2
    assert 1e-4 < (parent - traced).abs().max() < 0.2


def test_conv1d_checkpoints_are_dequantized(tmp_path: Path) -> None:
    """The same function that compress itself loads, for the one layout transformers refuses."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=100, n_positions=64, bos_token_id=1, eos_token_id=2
    )
    with quiet():
        transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
        compress.compress(str(tmp_path / "gpt2"), "int4-round", tmp_path / "int4")
        expected = compress.load(tmp_path / "int4")
    for found in (
        load_reference(tmp_path / "int4", "text-generation"),
        load_float(tmp_path / "int4", "text-generation"),
    ):
        with torch.no_grad():
            torch.testing.assert_close(found(input_ids=IDS).logits, expected(input_ids=IDS).logits)


def test_a_missing_head_is_not_made_up(tmp_path: Path) -> None:
    model = small_encoder("bert", "fill-mask", tmp_path / "model")
    with pytest.raises(CheckpointError, match="qa_outputs"):
        load_reference(model, "question-answering")
    with pytest.raises(InputError, match="fill-mask"):
        load_reference(model, "fill-masks")


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    model = small_encoder("bert", "fill-mask", tmp_path / "model")
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="whole safetensors"):
        load_reference(model, "fill-mask")
