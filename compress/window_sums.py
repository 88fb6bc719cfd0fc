"""Add up statistics of a model while calibration text runs through it; a killed run continues, with the same sums.

Sums are float64 and batches come in a fixed order, so the result is the same to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from planish.compress.calibrate import TOKENS_PER_BATCH, no_cache
from planish.compress.digest import tensors_digest
from planish.compress.resume import Pieces

__all__ = ["Hook", "sum_over_windows"]

Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]
"""Called after a module ran, as ``hook(module, args, kwargs, output)``; adds to the sums in place."""
_SAVE_EVERY = 1.0  # seconds of work a kill may cost


def sum_over_windows(
    model: nn.Module,
    windows: Sequence[Tensor],
    hooks: Sequence[tuple[nn.Module, Hook]],
    sums: dict[str, Tensor],
    *,
    tick: Callable[[int, int], None],
    pieces: Pieces,
    piece: str,
) -> None:
    """Run ``model`` on ``windows`` (int64 ``[n, tokens]`` each, no padding) with ``hooks`` that fill ``sums``.

    A head on top runs only where a hook listens inside it: logits are large. ``tick(done, total)`` counts batches.
    """
    parts = [part for one in windows for part in torch.split(one, max(1, TOKENS_PER_BATCH // one.shape[1]))]
    tag = tensors_digest({f"windows {index}": one for index, one in enumerate(windows)})
    start = 0
    saved = pieces.load_state(piece, tag)
    if saved is not None:
        state, facts = saved
        for name, value in sums.items():
            value.copy_(state[name])
        start = facts["done"]
    body = getattr(model, "base_model", model)
    inside = {id(module) for module in body.modules()}
    runner = body if all(id(module) in inside for module, _ in hooks) else model
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module, hook in hooks]
    last = time.monotonic()
    try:
        for done in range(start, len(parts)):
            tick(done, len(parts))
            ids = parts[done]
            runner(input_ids=ids, attention_mask=torch.ones_like(ids), **no_cache(runner))
            if time.monotonic() - last > _SAVE_EVERY or done + 1 == len(parts):
                pieces.save_state(piece, tag, sums, {"done": done + 1})
                last = time.monotonic()
        tick(len(parts), len(parts))
    finally:
        for handle in handles:
            handle.remove()
