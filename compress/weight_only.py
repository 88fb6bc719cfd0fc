"""Weight-only INT4 / INT8: integers in groups along the inputs, activations float.

``method: round`` takes the nearest grid point and needs no data; it is a baseline (at 4 bits it costs a small decoder a
fifth of its perplexity). ``method: gptq`` chooses integers so that the layer's *outputs* on calibration text stay
(Frantar et al. 2022, arXiv:2210.17323), block after block, each seeing what the quantized blocks before it produce.
``guided`` weighs each position by what an error there does to a decoder's loss (:mod:`planish.compress.saliency`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from planish.compress.architectures import infer_task
from planish.compress.bench import Bench, Context, Progress, Stored
from planish.compress.digest import tensors_digest
from planish.compress.gptq import gptq
from planish.compress.grid import Quantized, round_to_grid
from planish.compress.passes import Pass
from planish.compress.saliency import loss_saliency
from planish.compress.stream import Stream, collect_hessians
from planish.compress.walk import Layer, find_blocks
from planish.compress.widths import check_group
from planish.errors import RecipeError

__all__ = ["WeightOnly"]


@dataclass(frozen=True, kw_only=True)
class WeightOnly(Pass):
    """Quantize the linear layers of the blocks to 4 or 8 bits, weights only."""

    name: ClassVar[str] = "weight-only"
    roles: ClassVar[frozenset[str]] = frozenset({"body"})
    kinds: ClassVar[frozenset[str]] = frozenset({"linear", "conv1d"})
    in_place: ClassVar[bool] = True

    bits: Literal[4, 8] = 4
    group_size: Annotated[int, Field(ge=16, le=128)] | None = 32
    symmetric: bool = False
    method: Literal["gptq", "round"] = "gptq"
    range: Literal["mse", "absmax"] = "mse"
    activation_order: bool = False
    damping: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    guided: bool = True

    def apply(self, bench: Bench, context: Context) -> Bench:
        chosen = self.select(bench)
        for layer in chosen:
            check_group(layer, self.group_size, self.name)
        if self.method == "round":
            self._round(bench, context, chosen)
        else:
            self._gptq(bench, context, chosen)
        return bench

    def _round(self, bench: Bench, context: Context, chosen: list[Layer]) -> None:
        for done, layer in enumerate(chosen):
            context.progress(self.name, done, len(chosen))
            quantized = round_to_grid(
                layer.weight, bits=self.bits, group_size=self.group_size, symmetric=self.symmetric, range=self.range
            )
            bench.store(layer, Stored(quantized, packed=True))
        context.progress(self.name, len(chosen), len(chosen))

    def _gptq(self, bench: Bench, context: Context, chosen: list[Layer]) -> None:
        """Block by block: Hessians of the block as it is, integers, then outputs of the block as it will be served."""
        per_block = _by_block(chosen, self.name)
        tick = _Ticker(context.progress, self.name, len(chosen))
        windows, *others = context.windows()
        if others:
            got = f"{1 + len(others)} of them"
            raise RecipeError(f"one data.sequence_length for pass {self.name} with method gptq", got, "give one number")
        tag = tensors_digest({"windows": windows})
        blocks = find_blocks(bench.model)[1]
        saliency: dict[str, torch.Tensor] = {}
        if self.guided and predicts_tokens(bench.model):
            saliency = loss_saliency(bench.model, blocks, chosen, windows, tick)
        stream = Stream.start(bench.model, blocks, windows, tick)
        for index in range(max(per_block) + 1):
            layers = per_block.get(index, [])
            piece = f"block-{index:04d}"
            finished = context.pieces.load(piece, tag) if layers else {}
            if finished is None:
                finished = self._quantize_block(stream, index, layers, saliency, tick)
                context.pieces.save(piece, tag, finished)
            else:
                tick(len(layers))
            for layer in layers:
                bench.store(layer, finished[layer.name])
            if index < max(per_block):
                stream.run(index, keep=True, tick=tick)

    def _quantize_block(
        self, stream: Stream, index: int, layers: list[Layer], saliency: dict[str, torch.Tensor], tick: _Ticker
    ) -> dict[str, Stored]:
        def weights(name: str) -> torch.Tensor | None:
            return saliency[name][stream.part] if name in saliency else None

        with collect_hessians(layers, weights) as sums:
            stream.run(index, keep=False, tick=tick)
        finished = {}
        for layer in layers:
            if layer.name not in sums:
                raise RecipeError(f"{layer.name} to be called on calibration text", "no call", "exclude it")
            hessian = sums[layer.name].matrix
            with one_thread():
                quantized = gptq(
                    layer.weight,
                    hessian,
                    bits=self.bits,
                    group_size=self.group_size,
                    symmetric=self.symmetric,
                    range=self.range,
                    activation_order=self.activation_order,
                    damping=self.damping,
                )
            quality = {"output_error": _output_error(layer.weight, quantized, hessian)}
            finished[layer.name] = Stored(quantized, packed=True, quality=quality)
            tick(1)
        return finished


def predicts_tokens(model: torch.nn.Module) -> bool:
    """Whether the model is a decoder with a head, so that text alone gives it a loss."""
    return infer_task(type(model).__name__) == "text-generation"


@contextmanager
def one_thread() -> Iterator[None]:
    """Thousands of small steps: on a busy machine threads that wait for each other made them twenty times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Ticker:
    """Reports progress: layers done of all; called without a number it says "still alive"."""

    def __init__(self, progress: Progress, stage: str, total: int) -> None:
        self._progress, self._stage, self._done, self._total = progress, stage, 0, total

    def __call__(self, layers: int = 0) -> None:
        self._done += layers
        self._progress(self._stage, self._done, self._total)


def _by_block(chosen: list[Layer], step: str) -> dict[int, list[Layer]]:
    per_block: dict[int, list[Layer]] = {}
    for layer in chosen:
        if layer.block is None:
            raise RecipeError(
                f"pass {step} with method gptq to get layers inside blocks", layer.name, "use method: round"
            )
        per_block.setdefault(layer.block, []).append(layer)
    return per_block


def _output_error(weight: torch.Tensor, quantized: Quantized, hessian: torch.Tensor) -> float:
    """Squared error of the layer's outputs on calibration text over their squares: tr(D H D') / tr(W H W')."""
    difference = weight - quantized.dequantize()
    error = ((difference @ hessian) * difference).sum()
    return float(error / ((weight @ hessian) * weight).sum().clamp_min(1e-30))
