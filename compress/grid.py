"""Rounding a weight matrix to a grid of integers times scales, with the range chosen by least squared error.

The grid of a group of weights is what its integers can express: ``(q - zero_point) * scale``, q signed. Plain rounding
("absmax") puts the outermost integers on the outermost weights. "mse" searches the range for the least squared error: a
smaller one clips few weights and places all others finer, a slightly larger one lets the whole-numbered zero point fit
better. Then the scale is refitted to the chosen integers by linear least squares. (Range search by squared error: Nagel
et al., "A White Paper on Neural Network Quantization", 2021, section 3.1.)

The scale is rounded to fp16 before integers are chosen, so what is stored is what was optimized. All maths is float32.
"""

from __future__ import annotations

import builtins
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from planish.errors import CheckpointError, RecipeError

__all__ = ["Grid", "Quantized", "Range", "check_weight", "group_width", "round_to_grid", "to_scale"]

Range = Literal["mse", "absmax"]

_SMALLEST, _LARGEST = 2.0**-14, 65504.0  # normal fp16 numbers only: engines may flush smaller scales to zero
_WIDENINGS = tuple(
    1.12 - 0.62 * step / 23 for step in range(24)
)  # 1.12 .. 0.5 of the weights' range; measured against 400 steps
_CHUNK = 1 << 17  # weights searched at a time: the working set stays in the processor's cache


@dataclass(frozen=True)
class Quantized:
    """The integers of a weight ``[out, in]``, and what turns them back: ``(values - zero_point) * scale``."""

    values: Tensor
    """int8 ``[out, in]``, signed: -8..7 (4 bit), -128..127 (8 bit), -127..127 (8 bit symmetric), -64..63 (7 bit, stored
    in 8); or float8_e4m3fn."""
    scale: Tensor
    """float32 ``[out, groups]`` (float8: ``[1, 1]``), each a positive normal fp16 number."""
    zero_point: Tensor | None
    """int8 ``[out, groups]``, in the range of ``values``; None if symmetric."""
    bits: int
    group_size: int | None
    """Input channels that share a scale; None = one scale a row."""

    def dequantize(self) -> Tensor:
        """The float32 weights ``[out, in]`` the integers stand for."""
        rows, columns = self.values.shape
        grouped = self.values.float().view(rows, self.scale.shape[1], -1)
        if self.zero_point is not None:
            grouped = grouped - self.zero_point.float()[:, :, None]
        return (grouped * self.scale[:, :, None]).view(rows, columns)


@dataclass(frozen=True)
class Grid:
    """Which integers a weight may take, and how a group finds its scale and zero point.

    ``groups`` below is always ``[size, n]``: one group a column, so that sums over a group run along memory.
    """

    bits: int
    symmetric: bool

    def __post_init__(self) -> None:
        if self.bits not in (4, 8) and not (self.bits == 7 and self.symmetric):
            raise RecipeError("bits: 4 or 8 (7 if symmetric)", str(self.bits), "set bits to 4 or 8")

    @property
    def lowest(self) -> int:
        """-8, -64 or -128; 8 bit symmetric leaves -128 out, as integer kernels that add pairs in 16 bit want it."""
        return -127 if self.symmetric and self.bits == 8 else -(1 << (self.bits - 1))

    @property
    def highest(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def round(self, weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """The nearest integers (as floats) to ``weight`` on the grid of ``scale`` and ``zero``, broadcast."""
        return torch.addcmul(zero, weight, 1 / scale).round_().clamp_(self.lowest, self.highest)

    def fit(self, groups: Tensor, range: Range, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scale and zero point of each group, ``[n]`` float32; the zero point is 0 if symmetric.

        ``importance`` (``[size, 1]`` or ``[size, n]``, >= 0) weighs the squared errors; None = all alike.
        """
        low, high = groups.amin(0).clamp_(max=0.0), groups.amax(0).clamp_(min=0.0)
        best = _Best(self, groups, importance, *self._spread(low, high))
        if range == "mse":
            for widening in _WIDENINGS:
                best.offer(*self._spread(low * widening, high * widening))
            best.refit()
        return best.scale, best.zero

    def _spread(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The finest grid that reaches from ``low <= 0`` to ``high >= 0``."""
        if self.symmetric:
            scale = to_scale(torch.maximum(low / self.lowest, high / self.highest))
            return scale, torch.zeros_like(scale)
        scale = to_scale((high - low) / (self.highest - self.lowest))
        return scale, self._zero(self.lowest - low / scale)

    def _zero(self, position: Tensor) -> Tensor:
        return position.round().clamp_(self.lowest, self.highest)


class _Best:
    """The best grid so far of each group, by weighted squared error."""

    def __init__(self, grid: Grid, groups: Tensor, importance: Tensor | None, scale: Tensor, zero: Tensor) -> None:
        self.grid, self.groups, self.importance = grid, groups, importance
        self.scale, self.zero = scale, zero
        self.error = self._error(scale, zero)

    def _error(self, scale: Tensor, zero: Tensor) -> Tensor:
        position = torch.addcmul(zero, self.groups, 1 / scale)
        miss = position.round().clamp_(self.grid.lowest, self.grid.highest).sub_(position).square_()
        return self._sum(miss) * scale.square()

    def _sum(self, values: Tensor) -> Tensor:
        return values.sum(0) if self.importance is None else (values * self.importance).sum(0)

    def offer(self, scale: Tensor, zero: Tensor) -> None:
        """Take this grid for the groups where it errs less. NaN (from weights too large to square) never does."""
        error = self._error(scale, zero)
        better = error < self.error
        self.error = torch.where(better, error, self.error)
        self.scale = torch.where(better, scale, self.scale)
        self.zero = torch.where(better, zero, self.zero)

    def refit(self) -> None:
        """Offer the least-squares line through (integer, weight): with a free zero point, then with the chosen one."""
        if not self.grid.symmetric:
            integers = self.grid.round(self.groups, self.scale, self.zero)
            weight = self._sum(torch.ones_like(integers)).clamp_(min=1e-30)
            centre, mean = self._sum(integers) / weight, self._sum(self.groups) / weight
            scale = self._slope(integers - centre)
            self.offer(scale, self.grid._zero(centre - mean / scale))
        self.offer(self._slope(self.grid.round(self.groups, self.scale, self.zero) - self.zero), self.zero)

    def _slope(self, integers: Tensor) -> Tensor:
        slope = self._sum(integers * self.groups) / self._sum(integers.square())
        return to_scale(torch.where(slope > 0, slope, self.scale))


def round_to_grid(
    weight: Tensor, *, bits: int, group_size: int | None, symmetric: bool, range: Range = "mse"
) -> Quantized:
    """Quantize ``weight [out, in]`` by rounding; a group is ``group_size`` neighbours in a row, the whole row if None.

    7 bits, symmetric only, are stored as 8: what comes back says ``bits`` 8, and its values lie in -64..63. Raises
    :class:`RecipeError` for bits other than 4, 7 or 8 or a group size that does not divide ``in``, and
    :class:`CheckpointError` for weights that are not a finite matrix.
    """
    grid = Grid(bits, symmetric)
    check_weight(weight)
    rows, columns = weight.shape
    width = group_width(columns, group_size)
    values = torch.empty(rows, columns, dtype=torch.int8)
    scale = torch.empty(rows, columns // width)
    zero = torch.empty(rows, columns // width, dtype=torch.int8)
    step = max(1, _CHUNK // columns)
    for start in builtins.range(0, rows, step):
        part = slice(start, start + step)
        groups = weight[part].float().reshape(-1, width).t().contiguous()
        fitted = grid.fit(groups, range)
        values[part] = grid.round(groups, *fitted).t().reshape(-1, columns).to(torch.int8)
        scale[part], zero[part] = (found.view(-1, columns // width) for found in fitted)
    return Quantized(values, scale, None if symmetric else zero, 8 if bits == 7 else bits, group_size)


def check_weight(weight: Tensor) -> None:
    """Raise :class:`CheckpointError` unless ``weight`` is a float matrix without NaN and infinity."""
    if weight.ndim != 2 or weight.numel() == 0 or not weight.is_floating_point():
        raise CheckpointError(
            "a weight matrix of floats [out, in]",
            f"{weight.dtype} {list(weight.shape)}",
            "exclude this layer in the recipe",
        )
    if not bool(torch.isfinite(weight).all()):
        raise CheckpointError(
            "finite weights",
            "NaN or infinity",
            "the checkpoint is damaged: get it again, or train on from an earlier one",
        )


def group_width(columns: int, group_size: int | None) -> int:
    """Input channels per scale; raises :class:`RecipeError` if ``group_size`` does not divide ``columns``."""
    if group_size is None:
        return columns
    if group_size < 1 or columns % group_size:
        fits = [size for size in (16, 32, 64, 128) if columns % size == 0]
        advice = (
            f"choose {' or '.join(map(str, fits))}"
            if fits
            else "exclude the layer, or use one scale a row (group_size: null)"
        )
        raise RecipeError(f"a group_size that divides the {columns} input channels", str(group_size), advice)
    return group_size


def to_scale(scale: Tensor) -> Tensor:
    """The nearest normal positive fp16 number, as float32."""
    return scale.clamp(_SMALLEST, _LARGEST).half().float()
