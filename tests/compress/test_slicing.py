"""What is cut is gone, and the rest computes what it computed: against models whose cut parts were zeroed instead."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from planish.compress import open_checkpoint
from planish.compress.bench import Bench
from planish.compress.slicing import cut_blocks, cut_heads, cut_neurons, cut_vocabulary, cut_width
from planish.compress.write import write_checkpoint
from planish.errors import CheckpointError, PlanishError, RecipeError
from planish.families import FAMILIES, block_list, block_parts, inputs_of
from planish.sliced import KEY, from_pretrained, shapes_of
from tests.compress.conftest import SMALL

Maker = Callable[..., Path]
KINDS = sorted(SMALL)


def answer(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids))[0]


def zero_columns(layer: Any, columns: torch.Tensor) -> None:
    weight = layer.weight if hasattr(layer, "nf") else layer.weight.t()
    with torch.no_grad():
        weight[columns] = 0


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(5, 500, (2, 9), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", KINDS)
def test_parts_have_the_sizes_of_the_config(kind: str, small_model: Callable[..., Any]) -> None:
    model = small_model(kind)
    config = model.config
    assert kind in FAMILIES
    for part in block_parts(model):
        assert part.heads == config.num_attention_heads
        assert part.kv_heads == getattr(config, "num_key_value_heads", config.num_attention_heads)
        assert inputs_of(part.o) == part.heads * part.head_dim
        assert inputs_of(part.down) == part.ffn
        assert all(norm.weight.shape == (config.hidden_size,) for norm in part.norms)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mpnet"])
def test_cut_heads_leave_what_the_others_say(kind: str, small_model: Callable[..., Any], ids: torch.Tensor) -> None:
    model, masked = small_model(kind), small_model(kind)
    bench = Bench.of(model)
    before = block_parts(model)[1]
    shared = before.heads // before.kv_heads
    keep = [group for group in range(before.kv_heads) if group != 0]
    dropped = torch.arange(shared * before.head_dim)  # group 0: the first query heads
    zero_columns(block_parts(masked)[1].o, dropped)
    cut_heads(bench, 1, keep)
    after = block_parts(model)[1]
    assert (after.heads, after.kv_heads) == (shared * len(keep), len(keep))
    torch.testing.assert_close(answer(model, ids), answer(masked, ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_cut_neurons_leave_what_the_others_say(kind: str, small_model: Callable[..., Any], ids: torch.Tensor) -> None:
    model, masked = small_model(kind), small_model(kind)
    bench = Bench.of(model)
    keep = [number for number in range(block_parts(model)[0].ffn) if number % 3]
    dropped = torch.tensor([number for number in range(block_parts(model)[0].ffn) if number % 3 == 0])
    zero_columns(block_parts(masked)[0].down, dropped)
    cut_neurons(bench, 0, keep)
    assert block_parts(model)[0].ffn == len(keep)
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in masked.parameters())
    torch.testing.assert_close(answer(model, ids), answer(masked, ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_that_adds_nothing_can_go(kind: str, small_model: Callable[..., Any], ids: torch.Tensor) -> None:
    """Where blocks normalize first, one whose output projections are zero is the identity."""
    model = small_model(kind)
    if not kind.startswith(("gpt", "llama", "qwen", "opt")):
        before = [id(block) for block in block_list(model)]
        cut_blocks(Bench.of(model), [1])
        assert [id(block) for block in block_list(model)] == before[1:]
        answer(model, ids)
        return
    with torch.no_grad():
        for layer in (block_parts(model)[0].o, block_parts(model)[0].down):
            layer.weight.zero_()  # type: ignore[union-attr,operator]
            if getattr(layer, "bias", None) is not None:
                layer.bias.zero_()  # type: ignore[union-attr,operator]
    expected = answer(model, ids)
    cut_blocks(Bench.of(model), [1])
    assert len(block_list(model)) == 1
    torch.testing.assert_close(answer(model, ids), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_cut_tokens_leave_the_others_alone(kind: str, small_model: Callable[..., Any]) -> None:
    model = small_model(kind)
    original = copy.deepcopy(model)
    bench = Bench.of(model)
    keep = [0, 1, 2, 3, 4, *range(50, 512, 2)]
    cut_vocabulary(bench, keep)
    assert bench.vocabulary is not None
    assert model.get_input_embeddings().weight.shape[0] == len(keep) == bench.config["vocab_size"]
    new = torch.randint(5, len(keep), (2, 9), generator=torch.Generator().manual_seed(1))
    old = bench.vocabulary[new]
    expected = answer(original, old)
    if model.get_output_embeddings() is not None:
        expected = expected[..., bench.vocabulary]
    torch.testing.assert_close(answer(model, new), expected, atol=1e-5, rtol=1e-5)
    cut_vocabulary(bench, range(0, len(keep), 2))
    assert bench.vocabulary.tolist() == keep[::2]


def test_neurons_as_many_as_tokens_keep_their_biases(small_model: Callable[..., Any]) -> None:
    model = small_model("bert", "BertForMaskedLM", intermediate_size=512)
    cut_vocabulary(Bench.of(model), range(0, 512, 2))
    assert [part.up.bias.shape for part in block_parts(model)] == [(512,), (512,)]  # type: ignore[union-attr]
    assert answer(model, torch.tensor([[5, 6, 7]])).shape == (1, 3, 256)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_model_is_the_same_after_it_was_written(
    kind: str, small_checkpoint: Maker, tmp_path: Path, ids: torch.Tensor
) -> None:
    source = open_checkpoint(small_checkpoint(kind, max_position_embeddings=100))
    bench = Bench.of(source.load_model())
    if kind != "mpnet":
        groups = block_parts(bench.model)[0].kv_heads
        for block in range(2):
            cut_heads(bench, block, range(1, groups))
    cut_neurons(bench, 0, range(0, block_parts(bench.model)[0].ffn, 2))
    cut_width(bench, range(0, 64, 4) if kind == "mpnet" else [*range(40), *range(44, 48)])
    write_checkpoint(bench, source, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert [shape.ffn for shape in shapes_of(bench.model)] == config[KEY]["ffn"]
    expected = answer(bench.model, ids)
    torch.testing.assert_close(answer(open_checkpoint(tmp_path).load_model(), ids), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(answer(from_pretrained(tmp_path), ids), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "heads"), [("bert", False), ("llama", True), ("qwen3", True)])
def test_alike_blocks_load_in_plain_transformers(
    kind: str, heads: bool, small_checkpoint: Maker, tmp_path: Path, ids: torch.Tensor
) -> None:
    import transformers

    source = open_checkpoint(small_checkpoint(kind))
    bench = Bench.of(source.load_model())
    for block in range(2):
        if heads:
            cut_heads(bench, block, [block])
        cut_neurons(bench, block, range(block, 64 + block))
    write_checkpoint(bench, source, tmp_path)
    assert KEY not in json.loads((tmp_path / "config.json").read_text())
    plain = getattr(transformers, source.architecture).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(answer(plain, ids), answer(bench.model, ids), atol=1e-5, rtol=1e-5)


def test_plain_transformers_refuses_shapes_it_cannot_hold(small_checkpoint: Maker, tmp_path: Path) -> None:
    import transformers

    source = open_checkpoint(small_checkpoint("bert"))
    bench = Bench.of(source.load_model())
    cut_heads(bench, 0, [1, 3])
    write_checkpoint(bench, source, tmp_path)
    with pytest.raises(RuntimeError, match=r"size mismatch|ignore_mismatched_sizes"):
        transformers.AutoModel.from_pretrained(tmp_path)


def test_shapes_that_cannot_be_are_refused(small_checkpoint: Maker, tmp_path: Path) -> None:
    source = open_checkpoint(small_checkpoint("bert"))
    bench = Bench.of(source.load_model())
    cut_heads(bench, 0, [1, 3])
    write_checkpoint(bench, source, tmp_path)
    good = json.loads((tmp_path / "config.json").read_text())
    for wrong in ({"heads": [2]}, {**good[KEY], "ffn": [0, 96]}, {**good[KEY], "heads": [3]}, 7):
        (tmp_path / "config.json").write_text(json.dumps({**good, KEY: wrong}))
        with pytest.raises(CheckpointError, match=KEY):
            open_checkpoint(tmp_path).load_model()


def test_what_cannot_be_cut_is_refused(small_model: Callable[..., Any]) -> None:
    with pytest.raises(RecipeError, match="MPNet"):
        cut_heads(Bench.of(small_model("mpnet")), 0, [0])
    with pytest.raises(PlanishError, match="neurons"):
        cut_neurons(Bench.of(small_model("bert")), 0, [])
    with pytest.raises(RecipeError, match="number of positions"):
        cut_width(Bench.of(small_model("bert", max_position_embeddings=64)), range(32))
    with pytest.raises(RecipeError, match="embedding_size"):
        cut_width(Bench.of(small_model("electra", max_position_embeddings=100)), range(32))
    scaled = small_model("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(RecipeError, match="inverse_layer"):
        cut_blocks(Bench.of(scaled), [0])
