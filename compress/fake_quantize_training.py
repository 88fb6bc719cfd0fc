"""Quantization-aware training: the student computes with the integers it will be stored with, and learns around them.

Weights and inputs are rounded in the forward pass and gradients pass the rounding as if it were not there (the
straight-through estimator: Bengio, Leonard & Courville 2013; for integer models Jacob et al. 2018). Which layers, how
many bits and which groups is read off the passes that follow in the recipe. Grids are fitted with the arithmetic those
passes use (:mod:`planish.compress.grid`), every :data:`REFRESH` steps and before each evaluation; between, scales stay.

Dynamic inputs are rounded as they are served (:mod:`planish.compress.activations`). Static ones follow a moving maximum
of what training batches show each channel (up at once, down slowly), of which SmoothQuant's factors are made, too; the
``int8-linear`` pass measures the ranges that are stored anew on calibration text. Integers that ``weight-only`` chooses
by GPTQ stand on the same grids, but are not always the nearest; training sees the nearest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from planish.compress.activations import fake_quantize
from planish.compress.bench import Bench
from planish.compress.calibrate import SharedInputs
from planish.compress.grid import Grid, Range, group_width
from planish.compress.input_range import pre_quant_scale, static_scale
from planish.compress.int8_embedding import Int8Embedding
from planish.compress.int8_linear import Int8Linear
from planish.compress.passes import Pass
from planish.compress.walk import Layer
from planish.compress.weight_only import WeightOnly
from planish.compress.widths import check_group
from planish.errors import RecipeError

__all__ = ["REFRESH", "FakeQuantization", "Spec", "plan"]

REFRESH = 100
"""Steps for which scales stay as they are."""

_DECAY = 0.01  # how much of the way to a smaller maximum a moving maximum goes in a step
_CHUNK = 1 << 17  # weights fitted at a time, as in grid.py


@dataclass(frozen=True)
class Spec:
    """How one layer will be quantized; ``activations`` and ``smoothing`` as in ``int8-linear``, None = not at all."""

    bits: int
    group_size: int | None
    symmetric: bool
    range: Range
    activations: str | None = None
    smoothing: float | None = None

    @property
    def grid(self) -> Grid:
        return Grid(self.bits, self.symmetric)


def plan(later: Iterable[Pass], bench: Bench) -> dict[str, Spec]:
    """Module name -> spec, for all layers the passes that follow will quantize.

    Raises:
        RecipeError: no pass that follows is int8-linear, int8-embedding or weight-only, or a pattern matches no layer.
    """
    found: dict[str, Spec] = {}
    for step in later:
        if isinstance(step, Int8Linear):
            for layer in step.select(bench):
                plain = any(fnmatchcase(layer.name, pattern) for pattern in step.smoothing_exclude)
                found[layer.name] = Spec(8, None, True, step.range, step.activations, None if plain else step.smoothing)
        elif isinstance(step, (WeightOnly, Int8Embedding)):
            bits, symmetric = (step.bits, step.symmetric) if isinstance(step, WeightOnly) else (8, True)
            tables = step._positions(bench) if isinstance(step, Int8Embedding) else []
            for layer in step.select(bench) + tables:
                check_group(layer, step.group_size, step.name)
                found[layer.name] = Spec(bits, step.group_size, symmetric, step.range)
    if not found:
        expected = "a pass int8-linear, int8-embedding or weight-only after distill, to train for"
        raise RecipeError(expected, "none", "add one, or set quantization_aware: false")
    return found


class _Straight(torch.autograd.Function):
    """``rounded`` forward, the gradient of ``x`` backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def straight(x: Tensor, rounded: Tensor) -> Tensor:
    """``rounded``, to the bit, with the gradient going to ``x``."""
    return cast(Tensor, _Straight.apply(x, rounded.detach()))  # type: ignore[no-untyped-call]


@dataclass
class _Fake:
    """One layer under training: its grid (``scale``, ``zero``: ``[out, groups]``) and, if static, its input's range."""

    layer: Layer
    spec: Spec
    scale: Tensor
    zero: Tensor
    limits: Tensor | None = None
    factor: Tensor | None = None
    input_scale: Tensor | None = None

    @property
    def static(self) -> bool:
        return self.spec.activations == "static"

    def fit(self) -> None:
        """Fit the grid to the weights as they are."""
        weight = self.layer.weight if self.factor is None else self.layer.weight / self.factor
        self.scale, self.zero = fit_rows(weight, self.spec)

    def rounded(self, weight: Tensor, rows: Tensor | None = None) -> Tensor:
        """Rows ``[.., in]`` of the weight on the grid of all rows, or of the rows by these numbers."""
        scale, zero = (self.scale, self.zero) if rows is None else (self.scale[rows], self.zero[rows])
        with torch.no_grad():
            grouped = weight.detach().view(*scale.shape, -1)
            spread, shift = scale.unsqueeze(-1), zero.unsqueeze(-1)
            values = self.spec.grid.round(grouped, spread, shift)
            if not self.spec.symmetric:
                values = values.sub_(shift)
            near = values.mul_(spread).flatten(-2)
        return straight(weight, near)

    def weight(self) -> Tensor:
        """The weight ``[out, in]`` that is multiplied with (smoothed) inputs."""
        parameter = cast(Tensor, self.layer.module.weight)
        weight = parameter.t() if self.layer.kind == "conv1d" else parameter
        return self.rounded(weight if self.factor is None else weight / self.factor)

    def inputs(self, x: Tensor) -> Tensor:
        """The layer's input as it is quantized when served."""
        kind = self.spec.activations
        if kind is None or (kind == "static" and self.input_scale is None):
            return x
        if kind != "static":
            return straight(x, fake_quantize(x.detach(), kind))
        assert self.input_scale is not None
        scaled = torch.clamp((x if self.factor is None else x * self.factor) / self.input_scale, -128, 127)
        return straight(scaled, torch.round(scaled.detach())) * self.input_scale


def fit_rows(weight: Tensor, spec: Spec) -> tuple[Tensor, Tensor]:
    """Scale and zero point ``[out, groups]`` of a weight ``[out, in]``, as ``round_to_grid`` finds them."""
    rows, columns = weight.shape
    width = group_width(columns, spec.group_size)
    step, found = max(1, _CHUNK // columns), []
    for start in range(0, rows, step):
        groups = weight[start : start + step].float().reshape(-1, width).t().contiguous()
        found.append(spec.grid.fit(groups, spec.range))
    scale, zero = (torch.cat(parts).view(rows, columns // width) for parts in zip(*found, strict=True))
    return scale, zero


class FakeQuantization:
    """The fake-quantized layers of a model. Parameters keep their names: only ``forward`` of each layer is replaced."""

    def __init__(self, bench: Bench, specs: Mapping[str, Spec]) -> None:
        layers = {layer.name: layer for layer in bench.layers}
        self.specs = dict(specs)
        self._fakes: dict[str, _Fake] = {}
        self._shared = SharedInputs()
        for name, spec in specs.items():
            self._fakes[name] = _Fake(layers[name], spec, *fit_rows(layers[name].weight, spec))

    def attach(self) -> None:
        """Compute with rounded weights and inputs from now on."""
        for name, fake in self._fakes.items():
            fake.layer.module.forward = self._forward(name, fake)

    def detach(self) -> None:
        """Give the layers their own forward back."""
        for fake in self._fakes.values():
            fake.layer.module.__dict__.pop("forward", None)

    def weight(self, name: str) -> Tensor:
        """The rounded weight ``[out, in]`` a layer multiplies its (smoothed) input by."""
        return self._fakes[name].weight()

    def inputs(self, name: str, x: Tensor) -> Tensor:
        """``x`` as a layer rounds what it reads."""
        return self._fakes[name].inputs(x)

    @torch.no_grad()
    def refresh(self, reduce: Callable[[Tensor], Tensor] | None = None) -> None:
        """Fit all grids to the weights as they are, and the ranges of static inputs to what was seen.

        ``reduce`` makes one of what several processes saw.
        """
        for leader in dict.fromkeys(self._shared.leaders.values()):  # in one order on all processes
            self._ranges(leader, reduce)
        fitted: dict[tuple[int, Spec], tuple[Tensor, Tensor]] = {}
        for fake in self._fakes.values():
            key = (fake.layer.weight.data_ptr(), fake.spec)
            if key in fitted:  # a head tied to the table
                fake.scale, fake.zero = fitted[key]
            else:
                fake.fit()
                fitted[key] = fake.scale, fake.zero

    def _ranges(self, leader: str, reduce: Callable[[Tensor], Tensor] | None) -> None:
        limits = self._fakes[leader].limits
        if limits is None:
            return
        if reduce is not None:
            limits.copy_(reduce(limits))
        readers = [self._fakes[name] for name, first in self._shared.leaders.items() if first == leader]
        smoothing = [fake.spec.smoothing for fake in readers]
        factor = None
        if None not in smoothing and smoothing[0] is not None:
            factor = pre_quant_scale(limits, [fake.layer.weight for fake in readers], smoothing[0])
        reached = float((limits if factor is None else limits * factor).max())
        for fake in readers:
            fake.factor = factor
            fake.input_scale = torch.tensor(static_scale(reached), device=limits.device)

    def state(self) -> dict[str, Tensor]:
        """All that training has to remember, by name; the same grids again after :meth:`restore`."""
        found: dict[str, Tensor] = {}
        for name, fake in self._fakes.items():
            for part in ("scale", "zero", "limits", "factor", "input_scale"):
                value = getattr(fake, part)
                if value is not None:
                    found[f"{name}:{part}"] = value.clone()
        names = list(self._fakes)
        leaders = [names.index(self._shared.leaders.get(name, name)) for name in names]
        return {**found, "leaders": torch.tensor(leaders)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        names = list(self._fakes)
        for name, leader in zip(names, state["leaders"].tolist(), strict=True):
            if self._fakes[name].static:
                self._shared.leaders[name] = names[leader]
        for key, value in state.items():
            name, _, part = key.rpartition(":")
            if name:
                setattr(self._fakes[name], part, value.clone())

    def _forward(self, name: str, fake: _Fake) -> Callable[..., Tensor]:
        module, kind = fake.layer.module, fake.layer.kind

        def embed(ids: Tensor) -> Tensor:
            rows = F.embedding(ids, cast(Tensor, module.weight), cast("int | None", module.padding_idx))
            return fake.rounded(rows, ids)

        def linear(x: Tensor) -> Tensor:
            if fake.static:
                self._see(name, fake, x)
            return F.linear(fake.inputs(x), fake.weight(), cast("Tensor | None", module.bias))

        return embed if kind == "embedding" else linear

    @torch.no_grad()
    def _see(self, name: str, fake: _Fake, x: Tensor) -> None:
        """Follow the largest magnitude of each channel; in training, and before the first range is known."""
        if not (fake.layer.module.training or fake.input_scale is None) or not self._shared.leads(name, x):
            return
        seen = x.detach().float().abs().reshape(-1, x.shape[-1]).amax(0)
        if fake.limits is None:
            fake.limits = seen
        else:
            torch.maximum(fake.limits.lerp_(seen, _DECAY), seen, out=fake.limits)
