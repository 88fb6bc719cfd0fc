"""Unstructured and n:m sparsity: zeros in the linear layers of the blocks, shapes as they were.

``method: magnitude`` takes the smallest weights and needs no text; ``wanda`` weighs them by their inputs; ``sparsegpt``
also moves the weights it keeps, so that the layer's *outputs* on calibration text stay. The last two go block by block,
each seeing what the sparse blocks before it produce.

Zeros bring no speed by themselves, and no smaller file: ONNX Runtime multiplies by them. TensorRT uses the pattern 2:4
on GPUs with sparse tensor cores. A pass that quantizes later may turn zeros into other numbers (``weight-only`` with
its asymmetric grid and corrections does; symmetric rounding does not), so sparsity is promised for float weights only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from planish.compress.bench import Bench, Context, relative_error
from planish.compress.digest import tensors_digest
from planish.compress.passes import Pass
from planish.compress.sparse_gpt import sparse_gpt
from planish.compress.sparse_importance import IMPORTANCES, Pattern, mask, output_error, scores
from planish.compress.stream import Stream, collect_hessians
from planish.compress.walk import Layer, find_blocks
from planish.compress.weight_only import one_thread
from planish.errors import RecipeError

__all__ = ["NOTE", "Sparsify"]

NOTE = (
    "zeros bring no speed by themselves in ONNX Runtime; TensorRT uses 2:4 on GPUs with sparse tensor cores; "
    "a later pass that quantizes need not keep them zero"
)


@dataclass(frozen=True, kw_only=True)
class Sparsify(Pass):
    """Set a share of the weights of the blocks' linear layers to zero, or n of m by a pattern."""

    name: ClassVar[str] = "sparsify"
    roles: ClassVar[frozenset[str]] = frozenset({"body"})
    kinds: ClassVar[frozenset[str]] = frozenset({"linear", "conv1d"})
    in_place: ClassVar[bool] = True

    sparsity: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    pattern: str | None = None
    method: Literal["sparsegpt", "wanda", "magnitude"] = "sparsegpt"
    damping: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    refine: Annotated[int, Field(ge=0, le=1000)] = 10

    def __post_init__(self) -> None:
        if (self.sparsity is None) == (self.pattern is None):
            got = "none" if self.sparsity is None else "both"
            fix = 'write sparsity: 0.5, or pattern: "2:4"'
            raise RecipeError(f"one of sparsity and pattern in pass {self.name}", got, fix)
        _ = self.kind

    @property
    def kind(self) -> float | Pattern:
        """The share of zeros, or the pattern."""
        return Pattern.parse(self.pattern) if self.pattern is not None else float(self.sparsity or 0.0)

    def apply(self, bench: Bench, context: Context) -> Bench:
        chosen = self.select(bench)
        for layer in chosen:
            self._check(bench, layer)
        reports: dict[str, dict[str, float]] = {}
        if self.method == "magnitude":
            self._by_magnitude(context, chosen, reports)
        else:
            self._by_block(bench, context, chosen, reports)
        bench.facts.update(_facts(self.kind, reports, {layer.name: layer.weight.numel() for layer in chosen}))
        return bench

    def _check(self, bench: Bench, layer: Layer) -> None:
        if isinstance(self.kind, Pattern):
            self.kind.check(layer.weight.shape[1], layer.name)
        if bench.tied and layer.role == "head":
            raise RecipeError(
                f"pass {self.name} on layers with weights of their own", f"{layer.name}, tied", "exclude it"
            )
        if self.method != "magnitude" and layer.block is None:
            fix = "use method: magnitude"
            raise RecipeError(f"pass {self.name} with method {self.method} to get layers in blocks", layer.name, fix)

    def _by_magnitude(self, context: Context, chosen: list[Layer], reports: dict[str, dict[str, float]]) -> None:
        for done, layer in enumerate(chosen):
            context.progress(self.name, done, len(chosen))
            sparse = self._sparse(layer.weight, None)
            reports[layer.name] = _report(layer.weight, sparse, None)
            layer.set_weight(sparse)
        context.progress(self.name, len(chosen), len(chosen))

    def _by_block(
        self, bench: Bench, context: Context, chosen: list[Layer], reports: dict[str, dict[str, float]]
    ) -> None:
        """Block by block: Hessians of the block as it is, zeros, then outputs of the block as it now is."""

        def tick() -> None:
            context.progress(self.name, len(reports), len(chosen))

        windows, *others = context.windows()
        if others:
            expected = f"one data.sequence_length for pass {self.name} with method {self.method}"
            raise RecipeError(expected, f"{1 + len(others)} of them", "give one number")
        tag = tensors_digest({"windows": windows})
        blocks = find_blocks(bench.model)[1]
        stream = Stream.start(bench.model, blocks, windows, tick)
        last = max(layer.block for layer in chosen if layer.block is not None)
        for index in range(last + 1):
            layers = [layer for layer in chosen if layer.block == index]
            piece = f"block-{index:04d}"
            finished = context.pieces.load_state(piece, tag) if layers else ({}, {})
            if finished is None:
                finished = self._block(stream, index, layers, tick)
                context.pieces.save_state(piece, tag, *finished)
            weights, found = finished
            for layer in layers:
                layer.set_weight(weights[layer.name])
            reports.update(found)
            tick()
            if index < last:
                stream.run(index, keep=True, tick=tick)

    def _block(
        self, stream: Stream, index: int, layers: list[Layer], tick: Callable[[], None]
    ) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
        """New weights of the chosen layers of one block, and what they cost."""
        with collect_hessians(layers) as sums:
            stream.run(index, keep=False, tick=tick)
        weights, found = {}, {}
        for layer in layers:
            if layer.name not in sums:
                raise RecipeError(f"{layer.name} to be called on calibration text", "no call", "exclude it")
            hessian = sums[layer.name].matrix
            weights[layer.name] = self._sparse(layer.weight, hessian)
            found[layer.name] = _report(layer.weight, weights[layer.name], hessian)
            tick()
        return weights, found

    def _sparse(self, weight: Tensor, hessian: Tensor | None) -> Tensor:
        """The weight with zeros, ``[out, in]``."""
        if hessian is not None and self.method == "sparsegpt":
            with one_thread():
                return sparse_gpt(weight, hessian, self.kind, damping=self.damping, refine=self.refine)
        importance = IMPORTANCES[self.method]
        return weight.masked_fill(mask(scores(weight, hessian, importance), self.kind, importance.scope), 0.0)


def _report(weight: Tensor, sparse: Tensor, hessian: Tensor | None) -> dict[str, float]:
    errors = {"weight_error": relative_error(weight, sparse)}
    if hessian is not None:
        errors["output_error"] = output_error(weight, sparse, hessian)
    zeros = int(torch.count_nonzero(sparse == 0))
    return {"zeros": zeros, "sparsity": zeros / sparse.numel(), **errors}


def _facts(kind: float | Pattern, reports: dict[str, dict[str, float]], sizes: dict[str, int]) -> dict[str, Any]:
    """What the receipt says: counts over all layers, errors averaged over layers, and each layer by itself."""
    zeros, weights = sum(int(report["zeros"]) for report in reports.values()), sum(sizes.values())
    facts: dict[str, Any] = {
        "asked": f"{kind.kept}:{kind.group}" if isinstance(kind, Pattern) else kind,
        "weights": weights,
        "zeros": zeros,
        "sparsity": _short(zeros / weights),
        "note": NOTE,
    }
    for error in ("weight_error", "output_error"):
        found = [report[error] for report in reports.values() if error in report]
        if found:
            facts[f"mean_{error}"] = _short(sum(found) / len(found))
    kept = ("sparsity", "weight_error", "output_error")
    facts["layers"] = {
        name: {key: _short(report[key]) for key in kept if key in report} for name, report in reports.items()
    }
    return facts


def _short(value: float) -> float:
    return float(f"{value:.6g}")
