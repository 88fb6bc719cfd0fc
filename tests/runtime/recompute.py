"""What every way of keeping a decoder's cache is held to: all positions computed again in torch, each step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["follow", "reference"]

Logits = NDArray[np.float32]


def reference(model: Any, ids: list[int]) -> Logits:
    """Logits ``[len(ids), vocab]`` of one row, all of it computed again."""
    with torch.no_grad():
        logits: Logits = model(torch.tensor([ids])).logits[0].numpy()
    return logits


def follow(run: Any, model: Any, texts: list[list[int]], logits: Logits, steps: int, tolerance: float) -> Logits:
    """Greedy steps of a decoder's run, each compared with a full recompute."""
    for _ in range(steps):
        for ids, row in zip(texts, logits, strict=True):
            np.testing.assert_allclose(row, reference(model, ids)[-1], atol=tolerance)
        for ids, row in zip(texts, logits, strict=True):
            ids.append(int(row.argmax()))
        logits = run.step([ids[-1] for ids in texts])
    return logits
