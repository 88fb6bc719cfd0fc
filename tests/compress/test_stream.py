"""Streaming block by block computes what the whole model computes; GPTQ on top of it beats rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from planish.compress import compress, load, open_checkpoint
from planish.compress.gptq import HessianSum
from planish.compress.stream import Stream, collect_hessians
from planish.compress.walk import Layer, find_blocks, walk
from planish.errors import RecipeError

from .conftest import SMALL, Maker

GPTQ = {"pass": "weight-only", "bits": 4, "group_size": 32, "method": "gptq"}
WINDOWS = torch.randint(5, 512, (5, 1024), generator=torch.Generator().manual_seed(0))  # two windows a batch, one left


@pytest.mark.parametrize("kind", sorted(SMALL))
@torch.no_grad()
def test_blocks_alone_compute_what_the_model_computes(kind: str, small_model: Callable[..., Any]) -> None:
    model = small_model(kind)
    windows = WINDOWS[:, :100].repeat(9, 1)  # 45 windows: batches of 20, 20 and 5
    blocks = find_blocks(model)[1]
    last: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        last.append(output[0] if isinstance(output, tuple) else output)

    handle = blocks[-1].register_forward_hook(keep)
    model(input_ids=windows, attention_mask=torch.ones_like(windows))
    handle.remove()
    stream = Stream.start(model, blocks, windows, lambda: None)
    assert len(stream.batches) == 3
    for index in range(len(blocks)):
        stream.run(index, keep=True, tick=lambda: None)
    torch.testing.assert_close(stream.hidden, last[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_query_key_and_value_share_one_hessian(small_model: Callable[..., Any]) -> None:
    model = small_model("llama")
    first = [layer for layer in walk(model) if layer.block == 0]
    with collect_hessians(first) as sums:
        model(input_ids=WINDOWS[:2, :64])
        model(input_ids=WINDOWS[2:4, :64])
    by_leaf = {name.rsplit(".", 1)[1]: value for name, value in sums.items()}
    assert by_leaf["q_proj"] is by_leaf["k_proj"] is by_leaf["v_proj"]
    assert by_leaf["gate_proj"] is by_leaf["up_proj"]
    assert len({id(value) for value in sums.values()}) == 4
    torch.testing.assert_close(by_leaf["down_proj"].matrix, _hessian(model, first, "down_proj"))


def _hessian(model: Any, layers: list[Layer], leaf: str) -> torch.Tensor:
    """The Hessian from all inputs at once."""
    layer = next(layer for layer in layers if layer.name.endswith(leaf))
    inputs: list[torch.Tensor] = []
    handle = layer.module.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model(input_ids=WINDOWS[:4, :64])
    handle.remove()
    total = HessianSum(inputs[0].shape[-1])
    total.add(inputs[0])
    return total.matrix


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "gpt_neox"])
def test_gptq_beats_rounding(
    kind: str, recipe_file: Callable[..., Path], small_checkpoint: Maker, tmp_path: Path
) -> None:
    """On text it was not calibrated on, the outputs move at most 0.85 times as far as with rounding."""
    source = small_checkpoint(kind)
    parent = open_checkpoint(source).load_model()
    ids = torch.tensor(open_checkpoint(source).tokenizer()(JUDGE)["input_ids"])[None, :120]
    moved = {}
    for method in ("gptq", "round"):
        recipe = recipe_file({**GPTQ, "method": method}, name=method, samples=40, sequence_length=64)
        result = compress(source, recipe, tmp_path / method)
        with torch.no_grad():
            served = load(tmp_path / method)
            moved[method] = float((served(ids)[0] - parent(ids)[0]).norm())
        assert ("mean_output_error" in result.receipts[0]["quality"]) == (method == "gptq")
    assert moved["gptq"] < 0.85 * moved["round"]
    assert not list(tmp_path.glob(".*.partial"))


JUDGE = (
    "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse, and "
    "nothing particular to interest me on shore, I thought I would sail about a little and see the watery part of "
    "the world."
)


def test_gptq_is_for_layers_in_blocks(
    recipe_file: Callable[..., Path], small_checkpoint: Maker, tmp_path: Path
) -> None:
    recipe = recipe_file({**GPTQ, "include": ["classifier"]})
    with pytest.raises(RecipeError, match="layers inside blocks, got classifier"):
        compress(small_checkpoint("distilbert"), recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
