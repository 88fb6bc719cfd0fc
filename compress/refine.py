"""Coordinate descent on a layer's output error, from integers that are already good.

GPTQ never looks back at a column it has rounded. Here every column is rounded once more, given all others as they are:
with ``G = H (W - Q)^T`` the best real value of column i is ``Q[:, i] + G[i] / H[i, i]``, and the integer nearest to it
is the best integer. Before each sweep the scale of every group is refitted to the same error. No step makes the error
larger. (Behdin et al., "QuantEase: Optimization-based Quantization for Language Models", 2023; the scale step is ours.)
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from planish.compress.grid import Grid, Quantized, to_scale

__all__ = ["refine"]

_BLOCK = 128  # columns whose changes reach the other columns in one product


def refine(quantized: Quantized, weight: Tensor, hessian: Tensor, *, sweeps: int) -> Quantized:
    """Better integers and scales for ``weight [out, in]`` on inputs with ``hessian [in, in]``; zero points stay.

    ``hessian`` has a positive diagonal. The layout and sizes are those of ``quantized``, which is left as it is.
    """
    run = _Descent(quantized, weight, hessian)
    for _ in range(sweeps):
        run.fit_scales()
        run.fit_integers()
    values, scale = run.integers.t().to(torch.int8).contiguous(), run.scale.t().contiguous()
    return replace(quantized, values=values, scale=scale)


class _Descent:
    """Everything transposed to ``[in, out]``: a column of the weight is contiguous."""

    def __init__(self, quantized: Quantized, weight: Tensor, hessian: Tensor) -> None:
        self.grid, self.hessian = Grid(quantized.bits, quantized.zero_point is None), hessian
        self.width = weight.shape[1] // quantized.scale.shape[1]
        self.integers = quantized.values.t().float().contiguous()
        self.scale = quantized.scale.t().contiguous()
        zero = quantized.zero_point
        self.zero = torch.zeros_like(self.scale) if zero is None else zero.t().float().contiguous()
        self.gradient = hessian @ (weight.float() - quantized.dequantize()).t()

    def fit_scales(self) -> None:
        """The least-squares scale of each group, given the others; taken where it still helps as an fp16 number."""
        for group in range(self.scale.shape[0]):
            part = slice(group * self.width, (group + 1) * self.width)
            levels = self.integers[part] - self.zero[group]
            square = (levels * (self.hessian[part, part] @ levels)).sum(0)
            pull = (levels * self.gradient[part]).sum(0)
            change = to_scale(self.scale[group] + torch.where(square > 0, pull / square, 0.0)) - self.scale[group]
            change = torch.where(change * (change * square - 2 * pull) < 0, change, 0.0)
            self.scale[group] += change
            self.gradient.addmm_(self.hessian[:, part], levels * change, alpha=-1)

    def fit_integers(self) -> None:
        """Round each column once more, in order of storage."""
        columns = self.integers.shape[0]
        for start in range(0, columns, _BLOCK):
            stop = min(start + _BLOCK, columns)
            changes = self._fit_block(start, stop)
            self.gradient.addmm_(self.hessian[:, start:stop], changes, alpha=-1)

    def _fit_block(self, start: int, stop: int) -> Tensor:
        """Round columns ``start`` to ``stop``; returns by how much their weights moved, ``[stop - start, out]``."""
        gradient = self.gradient[start:stop].clone()
        changes = torch.empty_like(gradient)
        inverse = 1 / self.hessian.diagonal()
        for column in range(start, stop):
            group, here = column // self.width, column - start
            scale, zero, old = self.scale[group], self.zero[group], self.integers[column]
            best = torch.addcmul((old - zero) * scale, gradient[here], inverse[column])
            new = self.grid.round(best, scale, zero)
            torch.mul(new - old, scale, out=changes[here])
            self.integers[column] = new
            gradient[here + 1 :].addr_(self.hessian[column, column + 1 : stop], changes[here], alpha=-1)
        return changes
