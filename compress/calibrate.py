"""Run calibration text through a model and collect what its layers read: batch by batch, and resumable.

What is collected adds up in any order, so a run that was killed continues at the last state that was saved and ends
with the same sums, to the bit. Memory is one batch's activations and the collector's own.
"""

from __future__ import annotations

import inspect
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from planish.compress.digest import tensors_digest
from planish.compress.resume import Pieces
from planish.compress.walk import Layer
from planish.errors import RecipeError

__all__ = ["TOKENS_PER_BATCH", "Collector", "SharedInputs", "no_cache", "observe"]

TOKENS_PER_BATCH = 2048
_SAVE_EVERY = 1.0  # seconds of work a kill may cost


class Collector(Protocol):
    """What watches the inputs of layers."""

    def add(self, name: str, inputs: Tensor) -> None:
        """Take in what layer ``name`` reads, float ``[..., in]``."""

    def state(self) -> dict[str, Tensor]:
        """All that was collected, as tensors by name."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from a state."""


class SharedInputs:
    """Which layers read one and the same tensor (query, key and value do); the first called speaks for all."""

    def __init__(self) -> None:
        self.leaders: dict[str, str] = {}
        self._alive: list[tuple[weakref.ref[Tensor], str]] = []

    def leads(self, name: str, inputs: Tensor) -> bool:
        """Whether ``name`` is the first to read ``inputs``; decided at its first call, then kept."""
        if name not in self.leaders:
            self._alive = [(reference, other) for reference, other in self._alive if reference() is not None]
            same = (other for reference, other in self._alive if reference() is inputs)
            self.leaders[name] = next(same, name)
            if self.leaders[name] == name:
                self._alive.append((weakref.ref(inputs), name))
        return self.leaders[name] == name


def observe(
    model: nn.Module,
    layers: list[Layer],
    windows: Sequence[Tensor],
    collector: Collector,
    *,
    tick: Callable[[int, int], None],
    pieces: Pieces,
    piece: str,
) -> dict[str, str]:
    """Show ``collector`` the inputs of ``layers`` on ``windows`` (int64 ``[n, tokens]`` each, no padding).

    Layers that read the same tensor are shown once; returned is module name -> the one that was shown for it. What is
    finished is kept in ``pieces`` under ``piece``.

    Raises:
        RecipeError: a layer is not called.
    """
    parts = [part for one in windows for part in torch.split(one, max(1, TOKENS_PER_BATCH // one.shape[1]))]
    tag = tensors_digest({f"windows {index}": one for index, one in enumerate(windows)})
    shared, start = SharedInputs(), 0
    saved = pieces.load_state(piece, tag)
    if saved is not None:
        state, facts = saved
        collector.restore(state)
        shared.leaders, start = facts["leaders"], facts["done"]

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if shared.leads(name, inputs[0]):
                collector.add(name, inputs[0])

        return see

    handles = [layer.module.register_forward_pre_hook(watch(layer.name)) for layer in layers]
    runner, last = _without_head(model, layers), time.monotonic()
    try:
        for done in range(start, len(parts)):
            tick(done, len(parts))
            runner(**_inputs(runner, parts[done]))
            if time.monotonic() - last > _SAVE_EVERY or done + 1 == len(parts):
                pieces.save_state(piece, tag, collector.state(), {"leaders": shared.leaders, "done": done + 1})
                last = time.monotonic()
        tick(len(parts), len(parts))
    finally:
        for handle in handles:
            handle.remove()
    for layer in layers:
        if layer.name not in shared.leaders:
            raise RecipeError(f"{layer.name} to be called on calibration text", "no call", "exclude it")
    return shared.leaders


def no_cache(model: nn.Module) -> dict[str, bool]:
    """The argument that keeps a decoder from building a key/value cache, where it knows one."""
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


def _without_head(model: nn.Module, layers: list[Layer]) -> nn.Module:
    """The base model if all layers are in it: nobody reads the logits, which are large where the vocabulary is."""
    body = getattr(model, "base_model", model)
    inside = {id(module) for module in body.modules()}
    return body if all(id(layer.module) in inside for layer in layers) else model


def _inputs(model: nn.Module, ids: Tensor) -> dict[str, Any]:
    known = inspect.signature(model.forward).parameters
    mask = {"attention_mask": torch.ones_like(ids)} if "attention_mask" in known else {}
    return {"input_ids": ids, **mask, **no_cache(model)}
