"""How much each head and each neuron matters to the model's loss: gradients by masks, one backward pass a batch.

A mask is a factor of 1 on the input of an attention's output projection (a factor a head group) or of a feed-forward
part's down projection (a factor a neuron). Every sample of a batch has masks of its own, so one backward pass yields
the gradients of all samples apart. What is made of them:

- *fisher*: the mean of ``g g^T`` over samples, the Fisher information of the masks (Kwon et al., "A Fast Post-Training
  Pruning Framework for Transformers", NeurIPS 2022); whole within a block's heads, the diagonal of the neurons'.
- *taylor*: the mean of ``|g|``, what the loss changes by to first order (Michel et al., "Are Sixteen Heads Really
  Better than One?", NeurIPS 2019).
- *activations*: no gradient at all, but how much of the residual stream's energy each one writes: the mean square of
  its inputs times the squared norms of the weights they meet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from planish.compress.calibrate import no_cache
from planish.compress.resume import Pieces
from planish.compress.sample_loss import sample_losses
from planish.errors import CheckpointError, DataError
from planish.families import Parts, block_list, block_parts

__all__ = [
    "Importance",
    "Method",
    "Sums",
    "input_norms",
    "mask_gradients",
    "masked",
    "measure_importance",
    "model_inputs",
]

Method = Literal["fisher", "taylor", "activations"]
_MOST_LOGITS = 1 << 25
"""Floats of logits held at a time, where a model predicts tokens."""
_SAVE_EVERY = 1.0  # seconds of work a kill may cost


@dataclass(frozen=True)
class Importance:
    """float64: of each block's head groups ``[groups, groups]`` and neurons ``[ffn]``; of how many samples."""

    heads: tuple[Tensor, ...]
    neurons: tuple[Tensor, ...]
    samples: int


@dataclass
class Sums:
    """What adds up batch by batch, float64."""

    heads: list[Tensor]
    neurons: list[Tensor]
    energy: list[Tensor]
    count: int = 0

    @classmethod
    def empty(cls, parts: Sequence[Parts]) -> Sums:
        return cls(
            [torch.zeros(part.kv_heads, part.kv_heads, dtype=torch.float64) for part in parts],
            [torch.zeros(part.ffn, dtype=torch.float64) for part in parts],
            [torch.zeros(1, dtype=torch.float64) for _ in parts],
        )

    def add_fisher(self, heads: Sequence[Tensor], neurons: Sequence[Tensor]) -> None:
        """Add gradients ``[b, n]`` of each block's masks."""
        for total, gradient in zip(self.heads, heads, strict=True):
            total += gradient.double().t() @ gradient.double()
        for total, gradient in zip(self.neurons, neurons, strict=True):
            total += gradient.double().square().sum(0)

    def add_taylor(self, heads: Sequence[Tensor], neurons: Sequence[Tensor]) -> None:
        """Add the magnitudes of gradients ``[b, n]``; loss to first order is not halved, hence the 2."""
        for total, gradient in zip(self.heads, heads, strict=True):
            total += torch.diag(2 * gradient.double().abs().sum(0))
        for total, gradient in zip(self.neurons, neurons, strict=True):
            total += 2 * gradient.double().abs().sum(0)

    def state(self) -> dict[str, Tensor]:
        named = {"heads": self.heads, "neurons": self.neurons, "energy": self.energy}
        return {f"{name}.{index}": one for name, sums in named.items() for index, one in enumerate(sums)}

    def restore(self, state: dict[str, Tensor], count: int) -> None:
        for name, value in state.items():
            kind, index = name.split(".")
            getattr(self, kind)[int(index)].copy_(value)
        self.count = count


def measure_importance(
    model: Any,
    batches: Sequence[dict[str, Tensor]],
    *,
    task: str,
    method: Method,
    labelled: bool,
    several: bool = False,
    seed: int,
    tick: Callable[[int, int], None],
    pieces: Pieces,
    tag: str,
) -> Importance:
    """Importance of every head group and neuron of ``model`` on ``batches``.

    Args:
        labelled: the loss is that of the batches' labels; else of labels drawn from the model's predictions.
        several: a text may have several labels (text-classification).
        tag: names the data; sums saved in ``pieces`` under the same tag are continued from, to the same bit.

    Raises:
        DataError: no batch, or a loss that is not finite.
        CheckpointError: the model's family, or its task, is not known.
    """
    if not batches:
        raise DataError("at least one example to measure importance on", "none", "give more data")
    parts, sums, start = block_parts(model), Sums.empty(block_parts(model)), 0
    tag = f"{tag} {method} {labelled} {seed} {len(batches)}"
    saved = pieces.load_state("importance", tag)
    if saved is not None:
        state, facts = saved
        sums.restore(state, facts["samples"])
        start = facts["done"]
    last = time.monotonic()
    for number in range(start, len(batches)):
        tick(number, len(batches))
        for index, batch in enumerate(_split(model, batches[number])):
            if method == "activations":
                _add_activations(model, parts, batch, sums)
            else:
                generator = torch.Generator().manual_seed(((seed * 1_000_003 + number) * 1009 + index) % (1 << 63))
                heads, neurons = mask_gradients(
                    model, parts, batch, task=task, generator=generator, labelled=labelled, several=several
                )
                (sums.add_fisher if method == "fisher" else sums.add_taylor)(heads, neurons)
            sums.count += len(batch["input_ids"])
        if time.monotonic() - last > _SAVE_EVERY or number + 1 == len(batches):
            pieces.save_state("importance", tag, sums.state(), {"done": number + 1, "samples": sums.count})
            last = time.monotonic()
    tick(len(batches), len(batches))
    return _importance(sums, method)


def mask_gradients(
    model: Any,
    parts: Sequence[Parts],
    batch: dict[str, Tensor],
    *,
    task: str,
    generator: torch.Generator,
    labelled: bool,
    several: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of each sample's loss by the masks of heads ``[b, groups]`` and neurons ``[b, ffn]``, a block each.

    Raises:
        DataError: a loss that is not finite.
    """
    size = len(batch["input_ids"])
    heads = [torch.ones(size, part.kv_heads, requires_grad=True) for part in parts]
    neurons = [torch.ones(size, part.ffn, requires_grad=True) for part in parts]
    with torch.enable_grad(), masked(parts, heads, neurons):
        outputs = model(**model_inputs(batch), **no_cache(model))
        losses = sample_losses(task, outputs, batch, generator, labelled=labelled, several=several)
        if not bool(torch.isfinite(losses).all()):
            raise DataError("a finite loss on every example", "NaN or infinity", "check the model and its labels")
        found = torch.autograd.grad(losses.sum(), [*heads, *neurons])
    return list(found[: len(parts)]), list(found[len(parts) :])


@contextmanager
def masked(parts: Sequence[Parts], heads: Sequence[Tensor], neurons: Sequence[Tensor]) -> Iterator[None]:
    """While open, the inputs of output and down projections are multiplied by masks ``[b, groups]``, ``[b, ffn]``.

    A mask ``[1, n]`` counts for all samples.
    """

    def hook(factors: Tensor, size: int) -> Callable[[nn.Module, tuple[Tensor, ...]], Any]:
        def multiply(_: nn.Module, args: tuple[Tensor, ...]) -> Any:
            inputs = args[0]
            wide = factors if size == 1 else factors.repeat_interleave(size, dim=1)
            rows = inputs.reshape(len(factors), -1, inputs.shape[-1])  # OPT has samples and tokens in one axis
            return ((rows * wide[:, None]).reshape(inputs.shape), *args[1:])

        return multiply

    handles = []
    for part, head, neuron in zip(parts, heads, neurons, strict=True):
        span = part.heads // part.kv_heads * part.head_dim
        handles.append(part.o.register_forward_pre_hook(hook(head, span)))
        handles.append(part.down.register_forward_pre_hook(hook(neuron, 1)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def input_norms(layer: Any) -> Tensor:
    """Squared norm ``[in]`` of the weights each input of a Linear or Conv1D meets, float64."""
    weight: Tensor = layer.weight.detach().double()
    return weight.square().sum(1 if hasattr(layer, "nf") else 0)


@torch.no_grad()
def _add_activations(model: Any, parts: Sequence[Parts], batch: dict[str, Tensor], sums: Sums) -> None:
    """Add each unit's squared contribution to the stream, and the stream's energy behind each block."""
    seen = batch["attention_mask"].reshape(-1, 1).double()

    def energy(total: Tensor, norms: Tensor | None, span: int) -> Callable[..., None]:
        def add(_: nn.Module, args: Any, output: Any = None) -> None:
            value = args[0] if norms is not None else output[0] if isinstance(output, tuple) else output
            rows = value.detach().reshape(-1, value.shape[-1]).double().square().mul_(seen).sum(0)
            if norms is None:
                total.add_(rows.sum())
            else:
                each = (rows * norms).view(-1, span).sum(1)
                total.add_(torch.diag(each) if total.ndim == 2 else each)

        return add

    handles = []
    for index, (part, block) in enumerate(zip(parts, block_list(model), strict=True)):
        span = part.heads // part.kv_heads * part.head_dim
        heads = energy(sums.heads[index], input_norms(part.o), span)
        handles.append(part.o.register_forward_pre_hook(heads))
        handles.append(part.down.register_forward_pre_hook(energy(sums.neurons[index], input_norms(part.down), 1)))
        handles.append(block.register_forward_hook(energy(sums.energy[index], None, 1)))
    try:
        model(**model_inputs(batch), **no_cache(model))
    finally:
        for handle in handles:
            handle.remove()


def _importance(sums: Sums, method: Method) -> Importance:
    if method == "activations":
        scales = [max(float(one), 1e-30) for one in sums.energy]
    else:
        scales = [float(sums.count)] * len(sums.heads)
    heads = tuple(total / scale for total, scale in zip(sums.heads, scales, strict=True))
    neurons = tuple(total / scale for total, scale in zip(sums.neurons, scales, strict=True))
    if not all(bool(torch.isfinite(one).all()) for one in (*heads, *neurons)):
        raise CheckpointError("finite importances", "NaN or infinity", "check that the model runs in float32")
    return Importance(heads, neurons, sums.count)


def model_inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch without labels: losses are ours."""
    return {name: one for name, one in batch.items() if "label" not in name and "positions" not in name}


def _split(model: Any, batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The batch in parts whose logits over the vocabulary are few enough."""
    count, length = batch["input_ids"].shape
    head = model.get_output_embeddings()
    rows = count if head is None else max(1, _MOST_LOGITS // (length * head.weight.shape[0]))
    return [{name: one[at : at + rows] for name, one in batch.items()} for at in range(0, count, rows)]
