"""How much each block of a model matters: by how far it turns its input, or by what is lost without it.

*Influence* is ``1 - mean cosine`` between a block's input and output at each position (Men et al., "ShortGPT: Layers in
Large Language Models are More Redundant Than You Expect", 2024): one run over the calibration text. *Loss* leaves a
block out and measures; done greedily, one block at a time, it sees what influence cannot, how blocks depend on each
other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from planish.compress.calibrate import no_cache
from planish.compress.window_sums import Hook, sum_over_windows

if TYPE_CHECKING:
    from planish.compress.resume import Pieces

__all__ = ["Losses", "influence", "skipped"]

_IGNORED = -100  # transformers' label of a position without one


def influence(
    model: nn.Module,
    blocks: nn.ModuleList,
    windows: Sequence[Tensor],
    *,
    tick: Callable[[int, int], None],
    pieces: Pieces,
) -> list[float]:
    """Influence of each block, 0 (does nothing) to 2, over all positions of ``windows`` (int64 ``[n, tokens]``)."""
    sums = {"cosines": torch.zeros(len(blocks), dtype=torch.float64), "positions": torch.zeros(1, dtype=torch.float64)}

    def hook(index: int) -> Hook:
        def add(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before, after = args[0] if args else kwargs["hidden_states"], first(output)
            cosines = functional.cosine_similarity(before, after, dim=-1)
            sums["cosines"][index] += cosines.sum(dtype=torch.float64)
            if index == 0:
                sums["positions"] += cosines.numel()

        return add

    hooks = [(block, hook(index)) for index, block in enumerate(blocks)]
    sum_over_windows(model, windows, hooks, sums, tick=tick, pieces=pieces, piece="influence")
    return (1 - sums["cosines"] / sums["positions"]).tolist()


def first(output: Any) -> Tensor:
    """The hidden states of a block's output."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


@contextmanager
def skipped(blocks: Sequence[nn.Module], returns_tuple: bool) -> Iterator[None]:
    """While open, ``blocks`` return their input: as a tuple where the family's blocks do."""

    def forward(hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        return (hidden_states,) if returns_tuple else hidden_states

    for block in blocks:
        block.forward = forward
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own shows again


class Losses:
    """The loss of a model without some of its blocks, on a fixed set of batches.

    With labels it is the model's own loss. Without, it is the distance from the outputs of the whole model: the
    Kullback-Leibler divergence of logits, or 1 - cosine of hidden states, over all positions that are not padding.
    """

    def __init__(self, model: Any, blocks: nn.ModuleList, batches: Sequence[dict[str, Tensor]], labelled: bool) -> None:
        self._model, self._blocks, self._batches, self._labelled = model, blocks, batches, labelled
        self._tuple = False
        with torch.no_grad():
            handle = blocks[0].register_forward_hook(self._see)
            outputs = [self._run(batch) for batch in (batches[:1] if labelled else batches)]
            handle.remove()
        self._whole = [] if labelled else [_outputs(output) for output in outputs]

    def _see(self, _: nn.Module, __: Any, output: Any) -> None:
        self._tuple = isinstance(output, tuple)

    def _run(self, batch: dict[str, Tensor]) -> Any:
        return self._model(**batch, **no_cache(self._model))

    @torch.no_grad()
    def without(self, dropped: Sequence[int], tick: Callable[[], None]) -> float:
        """Mean loss with the blocks ``dropped`` left out."""
        total, count = 0.0, 0.0
        with skipped([self._blocks[index] for index in dropped], self._tuple):
            for number, batch in enumerate(self._batches):
                output = self._run(batch)
                if self._labelled:
                    weight = _labels(batch)
                    total += float(output.loss) * weight if weight else 0.0
                else:
                    found, weight = _distance(_outputs(output), self._whole[number], batch["attention_mask"])
                    total += found
                count += weight
                tick()
        return total / max(count, 1.0)


def _labels(batch: dict[str, Tensor]) -> float:
    """How many labels a batch's loss is the mean of."""
    labels = batch.get("labels", batch["input_ids"][:, 0])
    return float(labels.shape[0]) if labels.is_floating_point() else float((labels != _IGNORED).sum())


def _outputs(output: Any) -> list[tuple[Tensor, bool]]:
    """What a model answers with, and whether it is logits; of an encoder without a head, its hidden states."""
    names = [name for name in ("logits", "start_logits", "end_logits") if name in output]
    return [(output[name], True) for name in names] or [(output.last_hidden_state, False)]


def _distance(found: list[tuple[Tensor, bool]], whole: list[tuple[Tensor, bool]], mask: Tensor) -> tuple[float, float]:
    """Summed distance of outputs ``[b, t, n]`` or ``[b, n]`` from the whole model's, and the number of its terms."""
    total, count = 0.0, 0.0
    for (values, logits), (other, _) in zip(found, whole, strict=True):
        if logits:
            terms = functional.kl_div(values.log_softmax(-1), other.log_softmax(-1), log_target=True, reduction="none")
            distance = terms.sum(-1)
        else:
            distance = 1 - functional.cosine_similarity(values, other, dim=-1)
        if distance.ndim == 2:
            distance = distance[mask.bool()]
        total += float(distance.sum(dtype=torch.float64))
        count += distance.numel()
    return total, count
