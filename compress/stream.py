"""Stream calibration text through a model block by block, holding the activations of one block boundary only.

The model runs once per batch as far as its first block, to get that block's inputs; one batch size runs through, to
record what else each block is called with (masks, rotary tables: they depend on the window length only). From then on
each block is called alone, and its outputs overwrite its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from planish.compress.calibrate import TOKENS_PER_BATCH, SharedInputs, no_cache
from planish.compress.gptq import HessianSum
from planish.compress.walk import Layer
from planish.errors import CheckpointError

__all__ = ["Stream", "collect_hessians"]


class _Stop(Exception):
    """Leaves a forward pass once the first block has been reached."""


@dataclass
class Stream:
    """Hidden states ``[windows, tokens, hidden]`` at a block boundary, and how to call each block.

    ``extras[size][i]`` are the further arguments of block ``i`` for a batch of ``size`` windows.
    """

    blocks: nn.ModuleList
    hidden: torch.Tensor
    batches: list[slice]
    extras: dict[int, list[tuple[tuple[Any, ...], dict[str, Any]]]] = field(default_factory=dict)
    part: slice = field(default_factory=lambda: slice(0, 0))
    """The windows that are running through a block at this moment."""

    @classmethod
    def start(cls, model: nn.Module, blocks: nn.ModuleList, windows: torch.Tensor, tick: Callable[[], None]) -> Stream:
        """Run the model up to its first block on all ``windows`` (int64 ``[n, tokens]``)."""
        count, tokens = windows.shape
        size = max(1, TOKENS_PER_BATCH // tokens)
        batches = [slice(start, min(start + size, count)) for start in range(0, count, size)]
        stream = cls(blocks, torch.empty(0), batches)
        for part in batches:
            rows = part.stop - part.start
            whole = rows not in stream.extras
            first, extras = _record(model, blocks, windows[part], whole=whole)
            if whole:
                stream.extras[rows] = extras
            if not stream.hidden.numel():
                stream.hidden = torch.empty(count, *first.shape[1:])
            stream.hidden[part] = first
            tick()
        return stream

    def run(self, index: int, *, keep: bool, tick: Callable[[], None]) -> None:
        """Call block ``index`` on every batch; with ``keep`` its outputs become the hidden states."""
        for part in self.batches:
            self.part = part
            args, kwargs = self.extras[part.stop - part.start][index]
            output = self.blocks[index](self.hidden[part], *args, **kwargs)
            if keep:
                self.hidden[part] = output[0] if isinstance(output, tuple) else output
            tick()


def _record(
    model: nn.Module, blocks: nn.ModuleList, ids: torch.Tensor, *, whole: bool
) -> tuple[torch.Tensor, list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """Inputs of the first block, and (``whole``) the further arguments of all blocks."""
    first: list[torch.Tensor] = []
    extras: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    order: list[int] = []

    def hook(index: int) -> Callable[..., None]:
        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs.pop("hidden_states")
            if index == 0:
                first.append(hidden.detach().clone())
                if not whole:
                    raise _Stop
            order.append(index)
            extras.append((args[1:], {key: value for key, value in kwargs.items() if key != "hidden_states"}))

        return record

    handles = [block.register_forward_pre_hook(hook(i), with_kwargs=True) for i, block in enumerate(blocks)]
    try:
        model(input_ids=ids, attention_mask=torch.ones_like(ids), **no_cache(model))
    except _Stop:
        return first[0], []
    finally:
        for handle in handles:
            handle.remove()
    if order != list(range(len(blocks))):
        raise CheckpointError(f"blocks that run in order 0..{len(blocks) - 1}", str(order)[:80], "use method: round")
    return first[0], extras


@contextmanager
def collect_hessians(
    layers: list[Layer], weights: Callable[[str], torch.Tensor | None] = lambda name: None
) -> Iterator[dict[str, HessianSum]]:
    """While open, add up the Hessians of the inputs of ``layers``; layers fed the same tensor share one sum.

    Query, key and value projections read one tensor: that saves two thirds of the work and of the memory there.
    ``weights(name)`` gives the weight of each position that is running through layer ``name``; a layer with weights
    has a sum of its own.
    """
    sums: dict[str, HessianSum] = {}
    shared = SharedInputs()

    def hook(layer: Layer) -> Callable[..., None]:
        def add(_: nn.Module, args: tuple[Any, ...]) -> None:
            inputs, weighing = args[0], weights(layer.name)
            if weighing is not None:
                shared.leaders[layer.name] = layer.name
            if shared.leads(layer.name, inputs):
                if layer.name not in sums:
                    sums[layer.name] = HessianSum(inputs.shape[-1])
                sums[layer.name].add(inputs, weighing)

        return add

    handles: list[RemovableHandle] = [layer.module.register_forward_pre_hook(hook(layer)) for layer in layers]
    found: dict[str, HessianSum] = {}
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    found.update({name: sums[leader] for name, leader in shared.leaders.items()})
