"""Encoders' `qdq` graphs, built with TensorRT-RTX and looked into, never run: what stays INT8 in the plan."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("tensorrt_rtx", reason="NVIDIA publishes it for Linux on x86-64 only")

import transformers
from safetensors.torch import load_file, save_file

from planish import profiles
from planish.export import export
from planish.export.lint import lint_model
from tests.export.decoder_engines import Sizes, counts, plan
from tests.export.small_decoders import compressed
from tests.tiny import word_tokenizer

VOCABULARY, WIDTH = 1000, 128
SIZES: Sizes = {"default": ((1, 0), (16, 0), (40, 0))}


def bert(folder: Path, kind: str, large: str = "", factor: float = 1.0) -> Path:
    """A random BERT with heads that TensorRT fuses; the weight ``large`` is multiplied by ``factor``."""
    transformers.utils.logging.disable_progress_bar()
    shape = {"hidden_size": WIDTH, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 256}
    config = transformers.BertConfig(vocab_size=VOCABULARY, max_position_embeddings=48, initializer_range=0.2, **shape)
    getattr(transformers, kind)(config).save_pretrained(folder)
    word_tokenizer(VOCABULARY).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    if large:
        tensors[large] *= factor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def exported(source: Path, folder: Path) -> Path:
    """The qdq graph of ``source``, in INT8 with static scales."""
    passes = [{"pass": "int8-linear", "activations": "static"}, {"pass": "int8-embedding"}]
    return export(compressed(source, folder / "int8", passes), folder / "bundle", profile="rtx-4090").path / "onnx/qdq"


def test_a_tied_head_and_its_table_stay_int8(tmp_path: Path) -> None:
    graph = exported(bert(tmp_path / "float", "BertForMaskedLM"), tmp_path) / "model.onnx"
    data = plan(graph, SIZES)
    gemms = counts(graph, data, SIZES)["default"]["gemms"]
    assert gemms["half x int8"] == 1, "the head, weight-only"
    assert gemms["int8 x int8"] >= 8
    large = [
        kind for size, kind in re.findall(rb"const_payload_size=(\d+) .*? type=(\w+)", data) if int(size) > 100_000
    ]
    assert set(large) == {b"int8"}


def test_a_product_that_leaves_float16_is_still_one_of_int8(tmp_path: Path) -> None:
    """Its output, float32, reaches 100,000: the integers are dequantized to float32 themselves, without a Cast."""
    source = bert(tmp_path / "float", "BertModel", "encoder.layer.0.output.dense.weight", 1e4)
    graph = exported(source, tmp_path) / "model.onnx"
    gemms = counts(graph, plan(graph, SIZES), SIZES)["default"]["gemms"]
    assert "float x int8" not in gemms, gemms
    assert set(gemms) == {"int8 x int8"}
    report = lint_model(graph, profiles.load("rtx-4090"))
    assert "quantize-feeds-nothing" not in report.broken
    assert [finding.rule for finding in report.findings if finding.severity == "error"] == []
