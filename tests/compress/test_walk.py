"""The walk finds the right layers in every architecture, and reads and writes them as [out, in]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from planish.compress.architectures import MODEL_TYPES
from planish.compress.walk import find_blocks, head_is_tied, longest_text, walk
from planish.errors import CheckpointError

from .conftest import SMALL

# Linear layers in one block, by the papers: q k v o up down (+ gate); q k v fused in GPT-2 and NeoX.
BODY = {
    **dict.fromkeys(("bert", "distilbert", "roberta", "xlm-roberta", "mpnet", "electra", "opt"), 6),
    **dict.fromkeys(("llama", "qwen2", "qwen3"), 7),
    **dict.fromkeys(("gpt2", "gpt_neox"), 4),
}
HEADS = {"roberta", "gpt2", "llama", "qwen2", "qwen3", "opt", "gpt_neox"}  # SMALL saves these with a vocabulary head
POSITIONS = {
    **dict.fromkeys(("bert", "xlm-roberta", "mpnet"), "embeddings.position_embeddings"),
    "distilbert": "distilbert.embeddings.position_embeddings",
    "electra": "electra.embeddings.position_embeddings",
    "roberta": "roberta.embeddings.position_embeddings",
    "gpt2": "transformer.wpe",
}  # the others turn queries and keys, and have no table; OPT's is one that transformers could not load as integers
TIED = {"roberta", "gpt2", "llama", "qwen2", "opt"}
OTHER = {
    "bert": {"pooler.dense"},
    "xlm-roberta": {"pooler.dense"},
    "mpnet": {"pooler.dense"},
    "distilbert": {"pre_classifier", "classifier"},
    "electra": {"electra.embeddings_project", "classifier"},
    "roberta": {"lm_head.dense"},
}


def test_every_model_type_is_tried() -> None:
    assert set(SMALL) == set(MODEL_TYPES) == set(BODY)


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_roles(kind: str, small_model: Callable[..., Any]) -> None:
    model = small_model(kind)
    layers = list(walk(model))
    body = [layer for layer in layers if layer.role == "body"]
    assert [sum(layer.block == block for layer in body) for block in (0, 1)] == [BODY[kind]] * 2
    assert [layer.module for layer in layers if layer.role == "embedding"] == [model.get_input_embeddings()]
    heads = [layer for layer in layers if layer.role == "head"]
    assert len(heads) == (kind in HEADS)
    assert {layer.name for layer in layers if layer.role == "other"} == OTHER.get(kind, set())
    assert head_is_tied(model) == (kind in TIED)
    assert {layer.kind for layer in body} == {"conv1d" if kind == "gpt2" else "linear"}
    every = {name for name, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D")}
    assert every == {layer.name for layer in layers if layer.kind != "embedding"}


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_tables_of_learned_positions(kind: str, small_model: Callable[..., Any]) -> None:
    """Token types, MPNet's relative biases and OPT's table with an offset are embeddings, too, and none of them."""
    model = small_model(kind)
    layers = list(walk(model))
    found = [layer for layer in layers if layer.role == "positions"]
    assert [layer.name for layer in found] == ([POSITIONS[kind]] if kind in POSITIONS else [])
    for layer in found:
        assert (layer.kind, layer.block) == ("embedding", None)
        assert layer.weight.shape[0] >= 128, "a row for every token of the longest text"
    left = {name for name, m in model.named_modules() if isinstance(m, nn.Embedding)} - {one.name for one in layers}
    known = ("token_type_embeddings", "relative_attention_bias", "embed_positions")
    assert all(name.endswith(known) for name in left), left
    assert kind != "mpnet" or "encoder.relative_attention_bias" in left


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_weights_are_out_by_in(kind: str, small_model: Callable[..., Any]) -> None:
    layer = next(layer for layer in walk(small_model(kind)) if layer.role == "body")
    outputs, inputs = layer.weight.shape
    x = torch.randn(3, inputs)
    expected = nn.functional.linear(x, layer.weight, layer.module.bias)  # type: ignore[arg-type]
    assert expected.shape == (3, outputs)
    torch.testing.assert_close(layer.module(x), expected)
    layer.set_weight(torch.zeros(outputs, inputs))
    torch.testing.assert_close(layer.module(x), layer.module.bias.expand(3, -1))  # type: ignore[union-attr,operator]


def test_blocks_are_found_by_structure(small_model: Callable[..., Any]) -> None:
    model = small_model("bert")
    assert find_blocks(model)[0] == "encoder.layer"
    model.config.num_hidden_layers = 5
    with pytest.raises(CheckpointError, match="list of 5 blocks"):
        find_blocks(model)


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [("bert", 128), ("roberta", 127), ("xlm-roberta", 127), ("mpnet", 126), ("gpt2", 128), ("llama", 128)],
)
def test_longest_text_is_what_the_model_takes(small_model: Callable[..., Any], kind: str, tokens: int) -> None:
    model = small_model(kind)
    assert longest_text(model) == tokens
    with torch.no_grad():
        model(input_ids=torch.full((1, tokens), 7))
