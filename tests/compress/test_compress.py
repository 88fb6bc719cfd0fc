"""From checkpoint to quantized checkpoint and back, for every architecture: what loads is what was decided."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from planish.compress import compress, load, load_recipe, open_checkpoint, read_layers
from planish.compress.walk import walk
from planish.export.describe import infer_task
from planish.export.driver import ENCODERS
from planish.export.reference import load_reference

from .conftest import SMALL, Maker

IDS = torch.tensor([[2, 17, 44, 90, 130, 260, 3], [2, 300, 21, 77, 5, 8, 3]])
WEIGHT_ONLY = {"pass": "weight-only", "bits": 4, "group_size": 32, "method": "round"}
# Importing compressed-tensors imports torch's compiler, which warns about its own parts.


def outputs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result = model(input_ids=IDS, attention_mask=torch.ones_like(IDS))
    return result[0]  # type: ignore[no-any-return]


def from_pretrained(path: Path) -> Any:
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    return getattr(transformers, config["architectures"][0]).from_pretrained(path).eval()


@pytest.mark.parametrize("kind", sorted(set(SMALL) - {"gpt2"}))
@pytest.mark.parametrize("recipe", ["static", "int8-dynamic", "int4-round", "int8-weight-only"])
def test_transformers_and_load_agree_to_the_bit(
    kind: str, recipe: str, small_checkpoint: Maker, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    source = small_checkpoint(kind)
    static = recipe_file({"pass": "int8-linear", "activations": "static"}, {"pass": "int8-embedding"})
    compress(source, static if recipe == "static" else recipe, tmp_path / "out")
    ours, theirs = outputs(load(tmp_path / "out")), outputs(from_pretrained(tmp_path / "out"))
    assert torch.equal(ours, theirs)
    parent = outputs(open_checkpoint(source).load_model())
    error = float((ours - parent).norm() / parent.norm())
    assert 1e-5 < error < (0.05 if recipe != "int4-round" else 0.4)


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_tables_of_positions_become_integers_where_a_recipe_says_so(
    kind: str, small_checkpoint: Maker, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Of every family that has one; transformers reads all of them but GPT-2's, whose linears are none."""
    source = small_checkpoint(kind)
    linear, table = {"pass": "int8-linear", "activations": "token"}, {"pass": "int8-embedding", "positions": True}
    compress(source, recipe_file(linear, table), tmp_path / "out")
    tables = [layer for layer in walk(open_checkpoint(source).load_model()) if layer.role == "positions"]
    stored = read_layers(tmp_path / "out")
    assert len(tables) == (kind not in ("llama", "qwen2", "qwen3", "gpt_neox", "opt"))
    for layer in tables:
        made = stored[layer.name]
        assert made.values.dtype == torch.int8
        off = (made.values * made.scale - layer.weight).abs().amax(1, keepdim=True)
        assert bool((off <= made.scale * 8).all())  # the range of least squares may cut the largest by some steps
    ours = outputs(load(tmp_path / "out"))
    if kind != "gpt2":
        assert torch.equal(ours, outputs(from_pretrained(tmp_path / "out")))
    parent = outputs(open_checkpoint(source).load_model())
    assert 1e-5 < float((ours - parent).norm() / parent.norm()) < 0.05


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_smoothed_layers_are_refused_by_transformers_and_read_by_load(
    kind: str, small_checkpoint: Maker, tmp_path: Path
) -> None:
    source = small_checkpoint(kind)
    compress(source, "int8", tmp_path / "out")
    with pytest.raises(Exception, match="pre_quant_scale"):
        from_pretrained(tmp_path / "out")
    ours, parent = outputs(load(tmp_path / "out")), outputs(open_checkpoint(source).load_model())
    error = float((ours - parent).norm() / parent.norm())
    assert 1e-5 < error < 0.05
    if kind in ENCODERS:
        task = infer_task(json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8")))
        assert torch.equal(outputs(load_reference(tmp_path / "out", task)), ours)


@pytest.mark.parametrize("recipe", ["int8-dynamic", "int4-round"])
def test_gpt2_is_refused_by_transformers_and_read_by_load(recipe: str, small_checkpoint: Maker, tmp_path: Path) -> None:
    source = small_checkpoint("gpt2")
    compress(source, recipe, tmp_path / "out")
    with pytest.raises(Exception, match="module_class"):
        from_pretrained(tmp_path / "out")
    ours, parent = outputs(load(tmp_path / "out")), outputs(open_checkpoint(source).load_model())
    error = float((ours - parent).norm() / parent.norm())
    assert 1e-5 < error < (0.05 if recipe == "int8-dynamic" else 0.4)
    stored = read_layers(tmp_path / "out")["transformer.h.0.mlp.c_fc"]
    assert stored.values.shape == (256, 64)  # [out, in], though Conv1D holds [in, out]


def test_layout_is_what_formats_says(small_checkpoint: Maker, tmp_path: Path) -> None:
    source = small_checkpoint("llama")
    result = compress(source, "int4-round", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.layers.0.mlp.down_proj"  # 96 inputs, 64 outputs
    shapes = {key.rsplit(".", 1)[1]: tuple(value.shape) for key, value in tensors.items() if key.startswith(name)}
    expected = {"weight_packed": (64, 12), "weight_scale": (64, 3), "weight_zero_point": (8, 3), "weight_shape": (2,)}
    assert shapes == expected
    assert torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    assert tensors["lm_head.weight"].dtype == torch.int8
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["tie_word_embeddings"] is False
    assert config["quantization_config"]["format"] == "mixed-precision"
    assert config["hidden_size"] == 64
    assert result.receipts[0]["bits_per_weight"] == 4.625


def test_layers_left_float(small_checkpoint: Maker, tmp_path: Path) -> None:
    compress(small_checkpoint("distilbert"), "int8", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    floats = {key for key, value in tensors.items() if value.is_floating_point() and not key.endswith("_scale")}
    assert "distilbert.embeddings.position_embeddings.weight" not in floats
    assert {"classifier.weight", "pre_classifier.weight"} <= floats
    assert not any(key.endswith("lin.weight") for key in floats)


def test_the_base_class_loads_the_same_integers(small_checkpoint: Maker, tmp_path: Path) -> None:
    """``AutoModel`` on a classifier's checkpoint sees shorter module names; the groups must match there too."""
    compress(small_checkpoint("distilbert"), "int8-dynamic", tmp_path / "out")
    base = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        expected = load(tmp_path / "out").distilbert(IDS)[0]  # type: ignore[operator,union-attr]
        assert torch.equal(base(IDS)[0], expected)


def test_receipts_and_planish_json(small_checkpoint: Maker, tmp_path: Path) -> None:
    source = small_checkpoint("bert")
    seen: list[tuple[str, int, int]] = []
    result = compress(source, "int8", tmp_path / "out", progress=lambda *step: seen.append(step))
    facts = json.loads((tmp_path / "out" / "planish.json").read_text(encoding="utf-8"))
    assert facts["receipts"] == result.receipts
    assert facts["recipe"]["digest"] == load_recipe("int8").digest
    assert facts["source"] == {"name": "bert", "digest": open_checkpoint(source).digest}
    first, last = result.receipts
    assert first["before"]["digest"] == facts["source"]["digest"]
    assert first["after"] == last["before"]
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert last["after"]["bytes"] == sum(value.numel() * value.element_size() for value in written.values())
    assert first["before"]["bytes"] > 2 * last["after"]["bytes"]
    assert (first["layers"], last["layers"]) == (12, 2)
    assert first["peak_memory_bytes"] > 10**7
    assert 0 < first["quality"]["mean_weight_error"] < 1e-3
    assert {stage for stage, _, _ in seen} == {"load", "calibrate", "int8-linear", "int8-embedding", "write"}
    assert all(0 <= done <= total for _, done, total in seen)


def test_twice_gives_the_same_bytes(small_checkpoint: Maker, tmp_path: Path) -> None:
    source = small_checkpoint("qwen3")
    for name in ("a", "b"):
        compress(source, "int4-round", tmp_path / name)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_side_files_travel(small_checkpoint: Maker, tmp_path: Path) -> None:
    source = small_checkpoint("mpnet")
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}', encoding="utf-8")
    (source / "modules.json").write_text("[]", encoding="utf-8")
    (source / "training_args.bin").write_bytes(b"pickle")
    compress(source, "int8", tmp_path / "out")
    assert (tmp_path / "out" / "1_Pooling" / "config.json").is_file()
    assert (tmp_path / "out" / "modules.json").is_file()
    assert not (tmp_path / "out" / "training_args.bin").exists()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("the whale")["input_ids"][0] == 2


def test_include_and_exclude(recipe_file: Callable[..., Path], small_checkpoint: Maker, tmp_path: Path) -> None:
    recipe = recipe_file({**WEIGHT_ONLY, "include": ["*.layers.1.*"], "exclude": ["*.down_proj"]})
    compress(small_checkpoint("llama"), recipe, tmp_path / "out")
    names = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"}
    assert {name.rsplit(".", 1)[1] for name in read_layers(tmp_path / "out")} == names
    assert all(".layers.1." in name for name in read_layers(tmp_path / "out"))
    assert torch.equal(outputs(load(tmp_path / "out")), outputs(from_pretrained(tmp_path / "out")))


def test_minilm_int8(minilm: Path, minilm_int8: Path) -> None:
    assert (minilm_int8 / "model.safetensors").stat().st_size < 24.1e6
    assert (minilm_int8 / "1_Pooling" / "config.json").is_file()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_int8)
    batch = tokenizer(["A film of rare beauty.", "Dull, and far too long."], padding=True, return_tensors="pt")
    pooled = []
    for model in (load(minilm_int8), open_checkpoint(minilm).load_model()):
        with torch.no_grad():
            hidden = model(**batch)[0]
        mask = batch["attention_mask"][..., None]
        pooled.append((hidden * mask).sum(1) / mask.sum(1))
    assert float(torch.nn.functional.cosine_similarity(*pooled).min()) > 0.99
