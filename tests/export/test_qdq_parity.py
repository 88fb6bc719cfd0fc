"""Every decoder family in the qdq dialect against torch, and checks that must fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch

from planish.errors import InputError, ParityError
from planish.export.decoder import build_decoder
from planish.export.graph import Built
from planish.export.qdq_parity import check_decoder_qdq
from planish.export.reference import load_reference
from tests.export.small_decoders import FAMILIES, VOCABULARY, compressed, quantized, random_decoder

# compressed-tensors compiles a function with torch.jit when it is imported

INT8: dict[str, Any] = {"bits": 8, "symmetric": True, "group_size": None}
INT4: dict[str, Any] = {"bits": 4, "symmetric": True, "group_size": 32}


def check(checkpoint: Path, scratch: Path, **options: Any) -> dict[str, Any]:
    built = build_decoder(checkpoint, scratch, dialect="qdq")
    return check_decoder_qdq(built, load_reference(checkpoint, "text-generation"), vocab_size=VOCABULARY, **options)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    return quantized(random_decoder("llama", folder / "float"), folder / "int8", **INT8)


@pytest.mark.parametrize("family", FAMILIES)
def test_float_decoder(family: str, tmp_path: Path) -> None:
    report = check(random_decoder(family, tmp_path / "float"), tmp_path / "onnx")
    assert report["max_abs_error"] < 5e-5
    assert max(case["drift"] for case in report["cases"]) < 0.005
    assert report["golden_drift"] < 0.005
    assert report["golden_limit"] == 0.05
    assert not report["loosened"]
    assert len(report["cases"]) == 7


@pytest.mark.parametrize("settings", [INT8, INT4], ids=["int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "neox", "qwen2", "qwen3"])
def test_quantized_decoder(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    source = random_decoder(family, tmp_path / "float")
    report = check(quantized(source, tmp_path / "q", **settings), tmp_path / "onnx")
    assert report["max_abs_error"] < 5e-5
    assert report["golden_drift"] < 0.01


def test_parts_stored_differently(tmp_path: Path) -> None:
    """Query in 8 bits, key in 4, value in float; a table with scales in groups."""
    source = random_decoder("qwen2", tmp_path / "float")
    common = {"pass": "weight-only", "symmetric": True, "method": "round"}
    four = {**common, "bits": 4, "group_size": 32, "include": ["*.k_proj", "*.mlp.*"]}
    eight = {**common, "bits": 8, "group_size": None, "include": ["*.q_proj"]}
    table = {"pass": "int8-embedding", "group_size": 32}
    assert (
        check(compressed(source, tmp_path / "mixed", [four, eight, table]), tmp_path / "onnx")["max_abs_error"] < 5e-5
    )


@pytest.mark.parametrize("kind", ["relu", "gelu", "gelu_pytorch_tanh", "quick_gelu"])
def test_activations(kind: str, tmp_path: Path) -> None:
    """1.702, of quick_gelu, is rounded to float16 in the graph, not in torch."""
    report = check(random_decoder("llama", tmp_path / "float", hidden_act=kind), tmp_path / "onnx")
    assert report["max_abs_error"] < (2e-3 if kind == "quick_gelu" else 5e-5)


def test_a_head_that_only_equals_the_table(tmp_path: Path) -> None:
    """Stored twice and not tied: the graph has it once, and torch is held to the same rounded numbers."""
    from safetensors.torch import load_file, save_file

    from tests.export.small_decoders import edit_config

    checkpoint = edit_config(random_decoder("llama", tmp_path / "float"), tie_word_embeddings=False)
    weights = load_file(checkpoint / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert check(checkpoint, tmp_path / "onnx")["max_abs_error"] < 5e-5


def test_torch_is_left_as_it_was(tmp_path: Path) -> None:
    checkpoint = random_decoder("gpt2", tmp_path / "float")
    model = load_reference(checkpoint, "text-generation")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    check_decoder_qdq(build_decoder(checkpoint, tmp_path / "onnx", dialect="qdq"), model, vocab_size=VOCABULARY)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=0)


def broken(built: Built, kind: str) -> None:
    """Negated scales, keys seen that lie ahead, padding seen, no rotation, or the first position for the last."""
    path = built.folder / built.files[0]
    model = ir.load(path)
    nodes = list(model.graph)
    if kind == "scale":
        value = next(v for n, v in model.graph.initializers.items() if n.endswith("o_proj.scale"))
        value.const_value = ir.tensor(-value.const_value.numpy(), name=value.name)
    elif kind in ("causal", "padding"):
        (both,) = (node for node in nodes if node.op_type == "And")
        both.replace_input_with(1 if kind == "causal" else 0, both.inputs[0 if kind == "causal" else 1])
    elif kind == "rotary":
        tables = {n: v for n, v in model.graph.initializers.items() if n.startswith("rotary.")}
        swapped = tables["rotary.cos"].const_value
        tables["rotary.cos"].const_value, tables["rotary.sin"].const_value = tables["rotary.sin"].const_value, swapped
    else:
        (kept,) = (node for node in nodes if node.op_type == "GatherND")
        index = kept.inputs[1].producer()
        index.replace_input_with(0, model.graph.inputs[1])  # the positions instead
    ir.save(model, path)


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        ("scale", "a difference of"),
        ("causal", "a difference of"),
        ("rotary", "a difference of"),
        ("padding", "in case ragged batch"),
        ("kept", "chunks|last tokens|graph that answers"),
    ],
)
def test_a_wrong_graph_is_refused(kind: str, case: str, llama: Path, tmp_path: Path) -> None:
    built = build_decoder(llama, tmp_path / "onnx", dialect="qdq")
    broken(built, kind)
    with pytest.raises(ParityError, match=case):
        check_decoder_qdq(built, load_reference(llama, "text-generation"), vocab_size=VOCABULARY)


def test_float16_that_rounds_too_much_is_refused(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planish.export.qdq_parity.DRIFT", 1e-6)
    with pytest.raises(ParityError, match="float16 to change logits"):
        check(llama, tmp_path / "onnx")


def test_tolerance_and_progress(llama: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    assert check(llama, tmp_path / "loose", atol=1.0, progress=lambda *call: calls.append(call))["loosened"]
    assert calls == [("parity", index, 7) for index in range(7)]
    with pytest.raises(ParityError, match="loosen --atol"):
        check(llama, tmp_path / "strict", atol=1e-12)
    with pytest.raises(InputError):
        check(llama, tmp_path / "none", atol=0)


@pytest.mark.parametrize(("recipe", "words"), [("int4-symmetric", "int4 g64"), ("int8-weight-only", "int8")])
def test_the_recipes_for_tensorrt(recipe: str, words: str, tmp_path: Path) -> None:
    """Shipped recipes whose decoders every engine reads, from a float checkpoint with a tokenizer to a judged graph."""
    from planish import compress
    from tests.tiny import tiny_decoder

    compress.compress(tiny_decoder("llama", tmp_path / "float", steps=1), recipe, tmp_path / "q")
    built = build_decoder(tmp_path / "q", tmp_path / "onnx", dialect="qdq")
    assert built.precision == {"linear": words, "embedding": "int8", "head": "int8", "compute": "fp16"}
    model = load_reference(tmp_path / "q", "text-generation")
    vocabulary = int(model.config.vocab_size)
    assert check_decoder_qdq(built, model, vocab_size=vocabulary)["max_abs_error"] < 5e-5
