"""Cut block after block, each tuned on what the blocks before it, already cut, now produce.

Two streams of hidden states run through the blocks: the original model's, and the pruned one's. A block first takes the
original stream on, and what the stream held behind its attention and behind its feed-forward part is the target. Then
it is cut, and the output projections of both parts are fitted to the target on the inputs of the pruned stream
(:mod:`planish.compress.mask_tuning`); then it takes the pruned stream on. One model is held, not two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from planish.compress.bench import Bench
from planish.compress.calibrate import no_cache
from planish.compress.fisher import model_inputs
from planish.compress.mask_tuning import Fit, FitSums, Tuning, fit
from planish.compress.resume import Pieces
from planish.compress.slicing import cut_heads, cut_neurons
from planish.families import Parts, block_list, block_parts, inputs_of, outputs_of

__all__ = ["Kept", "cut_and_tune"]

Call = tuple[tuple[Any, ...], dict[str, Any]]
_HELD = 4  # every fourth sample judges


class _Reached(Exception):
    """Leaves a forward pass once all that is wanted has been seen."""


@dataclass(frozen=True)
class Kept:
    """What stays of a block: head groups and neurons, sorted."""

    heads: tuple[int, ...]
    neurons: tuple[int, ...]


def cut_and_tune(
    bench: Bench,
    kept: Sequence[Kept],
    batches: Sequence[dict[str, Tensor]],
    *,
    method: Tuning,
    tick: Callable[[int, int], None],
    pieces: Pieces,
    tag: str,
) -> list[tuple[Fit, Fit]]:
    """Cut every block down to ``kept`` and tune it on ``batches``; returns the fits of attention and feed-forward.

    Blocks that are finished are saved in ``pieces`` under ``tag``. Without tuning nothing is run, and nothing returned.

    Raises:
        DataError: no sample, or activations that are not finite.
    """
    count, fits = len(kept), list[tuple[Fit, Fit]]()
    streams = _Streams.start(bench.model, batches) if method != "none" else None
    for index, keep in enumerate(kept):
        tick(index, count)
        piece = f"tuned-{index:04d}"
        saved = pieces.load_state(piece, tag) if streams is not None else None
        targets = streams.originals(index, wanted=saved is None) if streams is not None else None
        _cut(bench, index, keep)
        part = block_parts(bench.model)[index]
        if streams is None or targets is None:
            continue
        if saved is not None:
            fits.append(_restored(part, *saved))
        else:
            pair = streams.tune(index, part, targets, method)
            pieces.save_state(piece, tag, *_state(part, pair))
            fits.append(pair)
        if index + 1 < count:
            streams.advance(index)
    tick(count, count)
    return fits


def _cut(bench: Bench, index: int, keep: Kept) -> None:
    part = block_parts(bench.model)[index]
    if len(keep.heads) < part.kv_heads:
        cut_heads(bench, index, keep.heads)
    if len(keep.neurons) < part.ffn:
        cut_neurons(bench, index, keep.neurons)


@dataclass
class _Seen:
    """What one call of a block showed, all ``[rows, ...]`` (samples and tokens in one axis)."""

    values: dict[str, Tensor] = field(default_factory=dict)

    def residual(self, hidden: Tensor) -> Tensor:
        """What the feed-forward part's output is added to.

        Where norms come first, the block's output is ``hidden + attention + feed-forward``; where they come last, the
        feed-forward part reads what it is added to.
        """
        v = self.values
        plain = hidden + v["o_out"] + v["down_out"]
        if float((plain - v["out"]).norm()) <= 1e-3 * float(v["out"].norm()):
            return v["out"] - v["down_out"]
        return v["up_in"]


@dataclass
class _Streams:
    """Hidden states of the batches at a block boundary, as the original and as the pruned model has them."""

    model: Any
    blocks: nn.ModuleList
    calls: list[list[Call]]
    rows: list[Tensor]
    """Of each batch: which of its positions are no padding, bool ``[b * t]``."""
    held: list[Tensor]
    """Of each batch: which of these rows judge, bool."""
    original: list[Tensor]
    pruned: list[Tensor]

    @classmethod
    def start(cls, model: Any, batches: Sequence[dict[str, Tensor]]) -> _Streams:
        blocks = block_list(model)
        stream = cls(model, blocks, [], [], [], [], [])
        few = sum(len(batch["input_ids"]) for batch in batches) < 2 * _HELD
        count = 0
        for batch in batches:
            hidden, calls = _record(model, blocks, batch)
            seen = batch["attention_mask"].bool()
            samples = torch.arange(count, count + len(seen))[:, None].expand(seen.shape)
            tokens = torch.arange(seen.shape[1])[None].expand(seen.shape)
            stream.rows.append(seen.flatten())
            stream.held.append(((tokens if few else samples)[seen] % _HELD) == _HELD - 1)
            stream.calls.append(calls)
            stream.original.append(hidden)
            stream.pruned.append(hidden.clone())
            count += len(seen)
        return stream

    def originals(self, index: int, *, wanted: bool) -> list[tuple[Tensor, Tensor]]:
        """Take the original stream through a block not yet cut; returns what is behind its two parts, ``[rows, out]``.

        Empty unless ``wanted``.
        """
        part, found = block_parts(self.model)[index], list[tuple[Tensor, Tensor]]()
        for number, hidden in enumerate(self.original):
            with _watch(part) as seen:
                output = self._call(index, number, hidden)
            before, seen.values["out"] = _flat(hidden), _flat(output)
            if wanted:
                after = seen.residual(before) + seen.values["down_out"]
                rows = self.rows[number]
                found.append(((before + seen.values["o_out"])[rows], after[rows]))
            self.original[number] = output
        return found

    def tune(self, index: int, part: Parts, targets: list[tuple[Tensor, Tensor]], method: Tuning) -> tuple[Fit, Fit]:
        """Fit the output projections of both parts, first attention's, then the feed-forward part's."""
        span = part.heads // part.kv_heads * part.head_dim
        sums = _Pair.of(part.o)
        for number, hidden in enumerate(self.pruned):
            with _watch(part, until_o=True) as seen:
                self._call(index, number, hidden)
            sums.add(seen.values["o_in"], targets[number][0], _flat(hidden), self.rows[number], self.held[number])
        first = sums.fit(part.o, method, span)
        sums = _Pair.of(part.down)
        for number, hidden in enumerate(self.pruned):
            with _watch(part) as seen:
                seen.values["out"] = _flat(self._call(index, number, hidden))
            residual = seen.residual(_flat(hidden))
            sums.add(seen.values["down_in"], targets[number][1], residual, self.rows[number], self.held[number])
        return first, sums.fit(part.down, method, 1)

    def advance(self, index: int) -> None:
        """Take the pruned stream through a block."""
        for number, hidden in enumerate(self.pruned):
            self.pruned[number] = self._call(index, number, hidden)

    def _call(self, index: int, number: int, hidden: Tensor) -> Tensor:
        args, kwargs = self.calls[number][index]
        try:
            output = self.blocks[index](hidden, *args, **kwargs)
        except _Reached:
            return hidden
        found: Tensor = output[0] if isinstance(output, tuple) else output
        return found


@dataclass
class _Pair:
    """Sums to fit to, and sums to judge by."""

    seen: FitSums
    held: FitSums

    @classmethod
    def of(cls, layer: nn.Module) -> _Pair:
        sizes = inputs_of(layer), outputs_of(layer)
        return cls(FitSums(*sizes), FitSums(*sizes))

    def add(self, x: Tensor, target: Tensor, residual: Tensor, rows: Tensor, held: Tensor) -> None:
        """``x``, ``residual``: all rows; the others: only those that are no padding (``rows``)."""
        x, y = x[rows], target - residual[rows]
        self.seen.add(x[~held], y[~held])
        if bool(held.any()):
            self.held.add(x[held], y[held])

    def fit(self, layer: Any, method: Tuning, group: int) -> Fit:
        """Fit the layer, and set its weight and bias."""
        weight = layer.weight.t() if hasattr(layer, "nf") else layer.weight
        found = fit(self.seen, self.held, weight.detach(), layer.bias, method=method, group=group)
        if found.damping is not None:
            _set(layer, found.weight, found.bias)
        return found


def _set(layer: Any, weight: Tensor, bias: Tensor | None) -> None:
    layer.weight.data.copy_(weight.t() if hasattr(layer, "nf") else weight)
    if bias is not None:
        layer.bias.data.copy_(bias)


@contextmanager
def _watch(part: Parts, *, until_o: bool = False) -> Iterator[_Seen]:
    """While open, keep what one call shows of a block's projections; ``until_o`` leaves the call at ``o``."""
    seen = _Seen()

    def before(name: str, last: bool) -> Callable[..., None]:
        def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen.values[name] = _flat(args[0])
            if last:
                raise _Reached

        return keep

    def after(name: str) -> Callable[..., None]:
        def keep(_: nn.Module, args: Any, output: Tensor) -> None:
            seen.values[name] = _flat(output)

        return keep

    handles = [part.o.register_forward_pre_hook(before("o_in", until_o)), part.o.register_forward_hook(after("o_out"))]
    handles += [
        part.up.register_forward_pre_hook(before("up_in", False)),
        part.down.register_forward_pre_hook(before("down_in", False)),
        part.down.register_forward_hook(after("down_out")),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _flat(value: Tensor) -> Tensor:
    return value.reshape(-1, value.shape[-1])


def _record(model: Any, blocks: nn.ModuleList, batch: dict[str, Tensor]) -> tuple[Tensor, list[Call]]:
    """The first block's input, and what else each block is called with."""
    first: list[Tensor] = []
    calls: list[Call] = []

    def record(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        if not first:
            first.append(hidden.clone())
        calls.append((args[1:], {key: value for key, value in kwargs.items() if key != "hidden_states"}))
        if block is blocks[-1]:
            raise _Reached

    handles = [block.register_forward_pre_hook(record, with_kwargs=True) for block in blocks]
    try:
        model(**model_inputs(batch), **no_cache(model))
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return first[0], calls


def _state(part: Parts, fits: tuple[Fit, Fit]) -> tuple[dict[str, Tensor], Any]:
    tensors: dict[str, Tensor] = {}
    for name, layer in (("o", part.o), ("down", part.down)):
        tensors |= {f"{name}.{key}": value.detach() for key, value in layer.named_parameters()}
    return tensors, [[one.before, one.after, one.damping] for one in fits]


def _restored(part: Parts, tensors: dict[str, Tensor], facts: Any) -> tuple[Fit, Fit]:
    fits = []
    for name, layer, (before, after, damping) in zip(("o", "down"), (part.o, part.down), facts, strict=True):
        for key, value in layer.named_parameters():
            value.data.copy_(tensors[f"{name}.{key}"])
        weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
        fits.append(Fit(weight, bias, before, after, damping))
    return fits[0], fits[1]
