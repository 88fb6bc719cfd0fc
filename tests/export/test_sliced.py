"""Pruned checkpoints, whose blocks differ in shape, become graphs as small, which compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from planish.compress import open_checkpoint
from planish.compress.bench import Bench
from planish.compress.slicing import cut_blocks, cut_heads, cut_neurons, cut_width
from planish.compress.write import write_checkpoint
from planish.errors import CheckpointError
from planish.export import export
from planish.export.decoder import build_decoder
from planish.export.quiet import quiet
from planish.families import block_parts
from planish.runtime import load, verify
from tests.export.small_decoders import compressed, random_decoder
from tests.export.small_encoders import small_encoder
from tests.tiny import tiny_decoder, word_tokenizer


def pruned_encoder(family: str, task: str, folder: Path) -> Path:
    """Blocks of three and two heads (not MPNet's) and of 40 and 16 neurons, 16 channels wide."""
    parent = small_encoder(family, task, folder / "parent")
    word_tokenizer(100).save_pretrained(parent)
    source = open_checkpoint(parent)
    bench = Bench.of(source.load_model())
    if family != "mpnet":
        cut_heads(bench, 0, [0, 1, 3])
        cut_heads(bench, 1, [1, 2])
    cut_neurons(bench, 0, range(40))
    cut_neurons(bench, 1, range(16, 32))
    cut_width(bench, range(0, 32, 2))
    return written(bench, source, folder / "pruned")


def written(bench: Bench, source: Any, folder: Path) -> Path:
    folder.mkdir()
    with quiet():
        write_checkpoint(bench, source, folder)
    return folder


def shapes(path: Path) -> dict[str, list[int]]:
    """Shape of each initializer of two axes, by name."""
    found = ir.load(path).graph.initializers
    return {str(name): list(value.shape) for name, value in found.items() if len(value.shape or ()) == 2}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("family", "task"),
    [
        ("bert", "fill-mask"),
        ("distilbert", "question-answering"),
        ("mpnet", "feature-extraction"),
    ],
)
def test_a_pruned_encoder_exports_in_both_dialects(family: str, task: str, tmp_path: Path) -> None:
    pruned = pruned_encoder(family, task, tmp_path)
    quantized = compressed(pruned, tmp_path / "int8", [{"pass": "int8-linear"}, {"pass": "int8-embedding"}])
    made = export(pruned, tmp_path / "float.bundle", profile="rtx-4090", dialects=("ort", "qdq"))
    assert set(made.manifest.parity) == {"ort", "qdq"}
    small = export(quantized, tmp_path / "int8.bundle")
    verify(small.path)
    model = open_checkpoint(pruned).load_model()
    neurons = [part.ffn for part in block_parts(model)]
    widths = {size for shape in shapes(made.path / "onnx" / "ort" / "model.onnx").values() for size in shape}
    assert neurons == [40, 16]
    assert {40, 16} <= widths
    gone = {64} if family == "mpnet" else {64, 32}  # MPNet sorts distances into 32 buckets
    assert not widths & gone, "what was cut is in the graph"
    with load(small.path) as served:
        assert served.run(_inputs(served))


def _inputs(served: Any) -> dict[str, Any]:
    import numpy as np

    names = [info.name for info in served.manifest.dialects["ort"].inputs]
    values = {"input_ids": [[2, 7, 9, 3]], "attention_mask": [[1, 1, 1, 1]], "token_type_ids": [[0, 0, 0, 0]]}
    return {name: np.array(values[name], dtype=np.int64) for name in names}


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "neox", "opt"])
def test_a_pruned_decoder_exports_in_both_dialects(family: str, tmp_path: Path) -> None:
    source = open_checkpoint(random_decoder(family, tmp_path / "parent"))
    bench = Bench.of(source.load_model())
    groups = block_parts(bench.model)[0].kv_heads
    for block in range(2):
        cut_heads(bench, block, range(block, groups - 1 + block) if groups > 2 else [block])
    cut_neurons(bench, 0, range(32))
    pruned = written(bench, source, tmp_path / "pruned")
    made = export(pruned, tmp_path / "bundle", profile="rtx-4090", dialects=("ort", "qdq"))
    generation = made.manifest.generation
    assert generation is not None
    assert generation.num_kv_heads == groups - 1
    packed = [{"pass": "weight-only", "bits": 4, "group_size": 16, "symmetric": False, "method": "round"}]
    export(compressed(pruned, tmp_path / "int4", packed), tmp_path / "int4.bundle")


def test_a_shorter_decoder_answers(tmp_path: Path) -> None:
    source = open_checkpoint(tiny_decoder("qwen2", tmp_path / "parent", steps=20))
    bench = Bench.of(source.load_model())
    cut_blocks(bench, [1])
    made = export(written(bench, source, tmp_path / "short"), tmp_path / "bundle")
    with load(made.path) as model:
        assert len(model.generate(["The whale"], max_new_tokens=4)[0].token_ids) > 0


def test_decoders_with_different_heads_have_no_cache(tmp_path: Path) -> None:
    source = open_checkpoint(random_decoder("gpt2", tmp_path / "parent"))
    bench = Bench.of(source.load_model())
    cut_heads(bench, 0, [1, 2])
    with pytest.raises(CheckpointError, match="same heads in every block"):
        build_decoder(written(bench, source, tmp_path / "pruned"), tmp_path / "onnx")
