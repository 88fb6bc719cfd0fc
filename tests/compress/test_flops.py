"""Counts against torch's own counter, in every family, whole and cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from planish.compress.bench import Bench
from planish.compress.flops import costs
from planish.compress.slicing import cut_heads, cut_neurons

from .conftest import SMALL

LENGTH = 24


def counted(model: Any) -> int:
    """FLOPs of one sequence by torch."""
    model.set_attn_implementation("eager")
    ids = torch.ones(1, LENGTH, dtype=torch.int64)
    cache = (
        {"use_cache": False}
        if model.config.model_type in ("gpt2", "llama", "qwen2", "qwen3", "opt", "gpt_neox")
        else {}
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids), **cache)
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_torch_counts_the_same(kind: str, small_model: Callable[..., Any]) -> None:
    model = small_model(kind)
    found = costs(model, LENGTH)
    assert found.flops == counted(model)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.bytes == 4 * found.parameters
    assert 0 < found.block_flops <= found.flops


@pytest.mark.parametrize("kind", sorted(set(SMALL) - {"mpnet"}))
def test_a_cut_costs_what_was_counted(kind: str, small_model: Callable[..., Any]) -> None:
    model = small_model(kind)
    before = costs(model, LENGTH)
    bench = Bench.of(model)
    cut_heads(bench, 1, [0])
    cut_neurons(bench, 1, list(range(0, before.blocks[1].neurons, 3)))
    after = costs(model, LENGTH)
    block = before.blocks[1]
    groups, neurons = block.groups - 1, block.neurons - after.blocks[1].neurons
    assert after.blocks[0] == before.blocks[0]
    assert after.parameters == sum(p.numel() for p in model.parameters())
    assert before.parameters - after.parameters == groups * block.group_parameters + neurons * block.neuron_parameters
    assert (before.flops - after.flops) // 2 == groups * block.group_macs + neurons * block.neuron_macs
    assert after.flops == counted(model)
    assert after.blocks[1].fixed_parameters == block.fixed_parameters


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra", "mpnet"])
def test_a_classifier_works_on_one_position(kind: str, small_model: Callable[..., Any]) -> None:
    names = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert", "electra": "Electra", "mpnet": "MPNet"}
    model = small_model(kind, f"{names[kind]}ForSequenceClassification")
    assert costs(model, LENGTH).flops == counted(model)
    assert costs(model, 16).rest_macs < 2 * costs(model, 8).rest_macs


def test_minilm_to_the_parameter(minilm: Any) -> None:
    from planish.compress.checkpoint import open_checkpoint

    model = open_checkpoint(minilm).load_model()
    found = costs(model, 64)
    assert found.parameters == 22_713_216
    assert found.block_parameters == 6 * 1_774_464
    per_block = 4 * 384 * 384 + 2 * 384 * 1536
    assert found.block_flops == 2 * 6 * (64 * per_block + 2 * 64 * 64 * 384)
