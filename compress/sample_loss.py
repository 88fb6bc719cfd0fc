"""A loss for each sample, whose squared gradients are the Fisher information: of the labels, or of the model's own.

With given labels the squared gradients are the empirical Fisher. With labels drawn from what the model itself predicts
they are the true one (Kunstner et al., "Limitations of the empirical Fisher approximation", NeurIPS 2019), for which no
label is needed. Where a model predicts nothing (feature-extraction) the normalized mean of its token vectors is looked
at along a random direction: the expected square is the Gauss-Newton matrix of its cosine, up to a factor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from planish.errors import CheckpointError

__all__ = ["sample_losses"]

_IGNORED = -100


def sample_losses(
    task: str,
    outputs: Any,
    batch: dict[str, Tensor],
    generator: torch.Generator,
    *,
    labelled: bool,
    several: bool = False,
) -> Tensor:
    """``[b]``: minus the log likelihood of each sample, summed over its tokens where tokens are predicted.

    Args:
        outputs: what the model returned for ``batch``.
        several: a text may have several labels at once.
        labelled: take the labels in ``batch``; else draw them from the model's predictions with ``generator``.

    Raises:
        CheckpointError: a task that has no loss here.
    """
    if task == "text-classification":
        return _classification(outputs.logits, batch["labels"] if labelled else None, generator, several)
    if task in ("token-classification", "fill-mask"):
        seen = batch["labels"] != _IGNORED if "labels" in batch else batch["attention_mask"].bool()
        return _tokens(outputs.logits, seen, batch["labels"] if labelled else None, generator)
    if task == "text-generation":
        seen = batch["attention_mask"][:, 1:].bool()
        return _tokens(outputs.logits[:, :-1], seen, batch["input_ids"][:, 1:] if labelled else None, generator)
    if task == "question-answering":
        ends = {"start_positions": outputs.start_logits, "end_positions": outputs.end_logits}
        shut = ~batch["attention_mask"].bool()
        return torch.stack(
            [
                _classes(logits.masked_fill(shut, -1e4), batch[name] if labelled else None, generator)
                for name, logits in ends.items()
            ]
        ).sum(0)
    if task == "feature-extraction":
        return _direction(outputs[0], batch["attention_mask"], generator)
    raise CheckpointError("a task with a loss", task, "use importance: activations")


def _classification(logits: Tensor, labels: Tensor | None, generator: torch.Generator, several: bool) -> Tensor:
    """``[b]`` from logits ``[b, C]``: one of C, ``several`` of C, or a number (C = 1)."""
    if logits.shape[-1] == 1:
        noise = torch.randn(logits.shape, generator=generator)
        target = logits.detach() + noise if labels is None else labels.view_as(logits)
        return (logits - target.to(logits.dtype)).square().sum(-1) / 2
    if several:
        if labels is None:
            labels = (torch.rand(logits.shape, generator=generator) < logits.detach().sigmoid()).to(logits.dtype)
        return functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(-1)
    return _classes(logits, labels, generator)


def _classes(logits: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
    """``[n]`` from logits ``[n, C]``."""
    if labels is None:
        labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
    return functional.cross_entropy(logits, labels, reduction="none")


def _tokens(logits: Tensor, seen: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
    """``[b]`` from logits ``[b, t, C]``: the sum over the positions ``seen [b, t]``."""
    losses = torch.zeros(seen.shape, dtype=logits.dtype)
    chosen = None if labels is None else labels[seen]
    return losses.masked_scatter(seen, _classes(logits[seen], chosen, generator)).sum(1)


def _direction(hidden: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
    """``[b]``: the unit mean of each text's token vectors, along a direction drawn for it."""
    weights = mask[..., None].to(hidden.dtype)
    pooled = functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)
    drawn = functional.normalize(torch.randn(pooled.shape, generator=generator), dim=-1)
    return (pooled * drawn.to(pooled.dtype)).sum(-1)
