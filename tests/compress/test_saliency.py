"""Saliency equals squared gradients of the whole model's loss, and guiding GPTQ by it lowers that loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from planish.compress.saliency import loss_saliency
from planish.compress.walk import Layer, find_blocks, walk

from .conftest import SMALL

DECODERS = sorted(set(SMALL) & {"gpt2", "gpt_neox", "llama", "opt", "qwen2", "qwen3"})
WINDOWS = torch.randint(5, 500, (3, 40), generator=torch.Generator().manual_seed(0))


def by_autograd(model: Any, layers: list[Layer], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Squared output gradients ``[tokens]`` of one window, from one backward pass through the whole model."""
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            output.retain_grad()
            outputs[name] = output

        return hook

    handles = [layer.module.register_forward_hook(keep(layer.name)) for layer in layers]
    embedded = model.get_input_embeddings()(ids[None]).detach().requires_grad_(True)
    logits = model(inputs_embeds=embedded, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[1:], reduction="sum")
    torch.autograd.backward(loss)
    for handle in handles:
        handle.remove()
    found = {}
    for name, output in outputs.items():
        assert output.grad is not None
        found[name] = output.grad.square().sum(-1).flatten()
    return found


@pytest.mark.parametrize("kind", DECODERS)
def test_saliency_is_the_squared_gradient(kind: str, small_model: Callable[..., Any]) -> None:
    model = small_model(kind).requires_grad_(False)
    layers = [layer for layer in walk(model) if layer.block is not None]
    with torch.no_grad():
        found = loss_saliency(model, find_blocks(model)[1], layers, WINDOWS, lambda: None)
    for layer in layers:
        expected = torch.stack([by_autograd(model, [layer], ids)[layer.name] for ids in WINDOWS])
        torch.testing.assert_close(found[layer.name], expected / expected.mean(), rtol=1e-3, atol=1e-5)


def test_the_last_position_of_the_last_block_weighs_nothing(small_model: Callable[..., Any]) -> None:
    model = small_model("llama").requires_grad_(False)
    last = [layer for layer in walk(model) if layer.block is not None and layer.name.endswith("down_proj")][-1:]
    (found,) = loss_saliency(model, find_blocks(model)[1], last, WINDOWS, lambda: None).values()
    assert bool((found[:, -1] == 0).all())
    assert bool((found[:, :-1] > 0).all())
    assert found.mean().item() == pytest.approx(1.0)
