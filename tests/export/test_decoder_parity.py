"""Emitted decoders of every family against torch, and parity checks that must fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from planish.errors import InputError, ParityError
from planish.export.decoder import build_decoder
from planish.export.decoder_parity import check_decoder, decoder_golden
from planish.export.graph import Built
from planish.export.reference import load_reference
from tests.export.small_decoders import FAMILIES, VOCABULARY, compressed, quantized, random_decoder

# compressed-tensors compiles a function with torch.jit when it is imported


def check(checkpoint: Path, scratch: Path, **options: Any) -> dict[str, Any]:
    built = build_decoder(checkpoint, scratch)
    model = load_reference(checkpoint, "text-generation")
    return check_decoder(built, model, vocab_size=VOCABULARY, **options)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    return quantized(random_decoder("llama", folder / "float"), folder / "int4")


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "mistral"])  # not compressed yet
def test_quantized_decoder_computes_what_torch_computes(family: str, tmp_path: Path) -> None:
    source = random_decoder(family, tmp_path / "float")
    report = check(quantized(source, tmp_path / "int4"), tmp_path / "onnx")
    assert report["max_abs_error"] < 2e-4
    assert not report["loosened"]
    assert len(report["cases"]) == 6


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "opt", "neox-serial"])
def test_float_decoder(family: str, tmp_path: Path) -> None:
    report = check(random_decoder(family, tmp_path / "float"), tmp_path / "onnx")
    assert report["max_abs_error"] < 1e-4
    assert max(case["drift"] for case in report["cases"]) < 1e-4


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 8, "symmetric": False, "group_size": 16},
        {"bits": 4, "symmetric": True, "group_size": 64},
        {"embedding": False},
    ],
    ids=["int8 asymmetric g16", "int4 symmetric g64", "float embedding"],
)
def test_other_widths(settings: dict[str, Any], tmp_path: Path) -> None:
    source = random_decoder("llama", tmp_path / "float", intermediate_size=128)
    report = check(quantized(source, tmp_path / "quantized", **settings), tmp_path / "onnx")
    assert report["max_abs_error"] < 2e-4


def test_parts_stored_differently_are_not_stacked(tmp_path: Path) -> None:
    """Query in 8 bits, key in 4, value in float: three products, the same answer."""
    source = random_decoder("llama", tmp_path / "float")
    four = {"pass": "weight-only", "bits": 4, "group_size": 32, "method": "round", "include": ["*.k_proj", "*.mlp.*"]}
    eight = {"pass": "weight-only", "bits": 8, "group_size": 32, "method": "round", "include": ["*.q_proj"]}
    report = check(compressed(source, tmp_path / "mixed", [four, eight]), tmp_path / "onnx")
    assert report["max_abs_error"] < 2e-4


def broken(built: Built, kind: str) -> None:
    """Negate the scales of a layer, do not rotate, or take a padded row's last position for its last token."""
    path = built.folder / built.files[0]
    model = ir.load(path)
    if kind == "scale":
        value = next(v for n, v in model.graph.initializers.items() if n.endswith("o_proj.scale.half"))
        value.const_value = ir.tensor(-value.const_value.numpy(), name=value.name)
    elif kind == "last token":
        last = next(node for node in model.graph if node.op_type == "Min")
        (chosen,) = (node for node in last.outputs[0].consumers() if node.op_type == "Where")
        chosen.replace_input_with(1, last.inputs[1])
    else:
        for node in model.graph:
            if node.op_type == "GroupQueryAttention":
                node.attributes["do_rotary"] = ir.AttrInt64("do_rotary", 0)
    ir.save(model, path)


@pytest.mark.parametrize("kind", ["scale", "rotary", "last token"])
def test_a_wrong_graph_is_refused(kind: str, llama: Path, tmp_path: Path) -> None:
    built = build_decoder(llama, tmp_path / "onnx")
    broken(built, kind)
    model = load_reference(llama, "text-generation")
    with pytest.raises(ParityError, match="one buffer" if kind == "last token" else "prefill, empty past"):
        check_decoder(built, model, vocab_size=VOCABULARY)


def test_kernels_that_round_too_much_are_refused(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planish.export.decoder_parity.DRIFT", 1e-6)
    with pytest.raises(ParityError, match="8-bit inputs"):
        check(llama, tmp_path / "onnx")


def test_tolerance(tmp_path: Path) -> None:
    checkpoint = random_decoder("llama", tmp_path / "float")
    assert check(checkpoint, tmp_path / "loose", atol=1.0)["loosened"]
    with pytest.raises(ParityError, match="loosen --atol"):
        check(checkpoint, tmp_path / "strict", atol=1e-12)
    with pytest.raises(InputError):
        check(checkpoint, tmp_path / "none", atol=0)


def test_golden_pair(tmp_path: Path) -> None:
    model = load_reference(random_decoder("gpt2", tmp_path / "float"), "text-generation")
    inputs, outputs = decoder_golden(model, vocab_size=VOCABULARY)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (2, 12)
    assert inputs["attention_mask"].sum(1).tolist() == [12, 5]
    with torch.no_grad():
        expected = model(torch.from_numpy(inputs["input_ids"][1:, :5])).logits[:, -1]
    np.testing.assert_allclose(outputs["logits"][1], expected.numpy(), atol=1e-5)
