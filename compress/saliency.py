"""How much an error at each position of the calibration text costs: squared gradients of the model's own loss.

An output error of a layer weighs differently from token to token. To second order the loss grows by
``1/2 sum_t (g_t . e_t)^2``, with ``g_t`` the gradient of the loss by the layer's output at position t and ``e_t`` the
error there; with ``|g_t|^2`` as the weight of position t that becomes the weighted Hessian that GPTQ takes (Kim et
al., "GuidedQuant: Large Language Model Quantization via Exploiting End Loss Guidance", 2025, one group of outputs).

One window at a time, and one block at a time on the way back: a block is run again from its saved input, so what is
held besides the model is one input a block and the activations of one block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from planish.compress.calibrate import no_cache
from planish.compress.walk import Layer

__all__ = ["loss_saliency"]

_POSITIONS_PER_PRODUCT = 128  # logits [positions, vocabulary] held at a time


class _Reached(Exception):
    """Leaves a forward pass once the head has been reached."""


@dataclass
class _Pass:
    """One window's way through the model: what each block got, and where the blocks end."""

    calls: list[tuple[Tensor, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    end: Tensor | None = None  # the last block's output, a leaf of the graph
    head_input: Tensor | None = None

    def record(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
        self.calls.append((hidden.detach(), args[1:], rest))

    def cut(self, _: nn.Module, _inputs: Any, output: Any) -> Any:
        """Replace the last block's output with a leaf, so that gradients stop there."""
        self.end = first(output).detach().requires_grad_(True)
        return (self.end, *output[1:]) if isinstance(output, tuple) else self.end

    def stop(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        self.head_input = args[0]
        raise _Reached


def first(output: Any) -> Tensor:
    """The hidden states of a block's output."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def loss_saliency(
    model: Any, blocks: nn.ModuleList, layers: Sequence[Layer], windows: Tensor, tick: Callable[[], None]
) -> dict[str, Tensor]:
    """Weights ``[windows, tokens]`` of each layer's outputs, mean 1, for next-token loss on ``windows`` (int64).

    The model is left as it is. A position that no loss depends on (the last one, in the last block) weighs nothing.
    """
    found = {layer.name: torch.zeros(windows.shape, dtype=torch.float32) for layer in layers}
    with torch.enable_grad():
        for index, ids in enumerate(windows):
            for name, weights in _window(model, blocks, layers, ids[None]).items():
                found[name][index] = weights
            tick()
    return {name: weights / weights.mean().clamp_min(1e-30) for name, weights in found.items()}


def _window(model: Any, blocks: nn.ModuleList, layers: Sequence[Layer], ids: Tensor) -> dict[str, Tensor]:
    """Squared gradients ``[tokens]`` of each layer's outputs, for one window ``[1, tokens]``."""
    way = _forward(model, blocks, ids)
    assert way.end is not None
    assert way.head_input is not None
    torch.autograd.backward(way.head_input, _head_gradient(model.get_output_embeddings(), way.head_input, ids))
    gradient = way.end.grad
    found: dict[str, Tensor] = {}
    handles = [layer.module.register_full_backward_hook(_keep(found, layer.name)) for layer in layers]
    try:
        for block, (hidden, args, kwargs) in zip(reversed(blocks), reversed(way.calls), strict=True):
            start = hidden.requires_grad_(True)
            torch.autograd.backward(first(block(start, *args, **kwargs)), gradient)
            gradient = start.grad
    finally:
        for handle in handles:
            handle.remove()
    return found


def _forward(model: Any, blocks: nn.ModuleList, ids: Tensor) -> _Pass:
    """Run to the head; only what lies behind the last block builds a graph, since no weight asks for gradients."""
    way = _Pass()
    handles = [block.register_forward_pre_hook(way.record, with_kwargs=True) for block in blocks]
    handles.append(blocks[-1].register_forward_hook(way.cut))
    handles.append(model.get_output_embeddings().register_forward_pre_hook(way.stop))
    try:
        model(input_ids=ids, attention_mask=torch.ones_like(ids), **no_cache(model))
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return way


def _head_gradient(head: nn.Module, hidden: Tensor, ids: Tensor) -> Tensor:
    """Gradient ``[1, tokens, width]`` of the summed next-token cross entropy, a few positions' logits at a time."""
    states = hidden.detach()
    gradient = torch.zeros_like(states)
    for start in range(0, ids.shape[1] - 1, _POSITIONS_PER_PRODUCT):
        stop = min(start + _POSITIONS_PER_PRODUCT, ids.shape[1] - 1)
        part = states[0, start:stop].requires_grad_(True)
        loss = nn.functional.cross_entropy(head(part), ids[0, start + 1 : stop + 1], reduction="sum")
        torch.autograd.backward(loss)
        assert part.grad is not None
        gradient[0, start:stop] = part.grad
    return gradient


def _keep(found: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(_: nn.Module, _inputs: Any, outputs: tuple[Tensor, ...]) -> None:
        found[name] = outputs[0].square().sum(-1).flatten().float()

    return hook
