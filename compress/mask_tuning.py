"""Least squares after a cut: what stays of a layer is fitted to what the whole layer gave to the residual stream.

A projection with kept inputs x (after pruning) is to write y: what the original model's stream held behind it, less
what the pruned model's stream holds before it. So errors of earlier layers are made up for, too. With the sums
``G = sum x x^T`` and ``C = sum y x^T`` both problems are small:

- *weights*: ``min_W sum || W x - y ||^2``, ``(W - W0) (G + s I) = C - W0 G``;
- *factors*, one for each head or neuron (Kwon et al., "A Fast Post-Training Pruning Framework for Transformers",
  NeurIPS 2022, section 4.3): the same with ``W = W0 diag(m)``, ``(G * W0^T W0) m = diag(W0^T C)``, point by point.

Both are damped towards what is there (s, m - 1), so nothing moves where the data says nothing. Biases take part
exactly: sums are centred, and the bias is what makes the means agree. How much damping is best, and whether the fit is
any better than nothing, is judged on samples the sums have not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from planish.errors import DataError

__all__ = ["DAMPINGS", "Fit", "FitSums", "Tuning", "fit", "fit_factors", "fit_weights"]

Tuning = Literal["factors", "weights", "none"]
DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""In units of the mean of the diagonal of the system."""
_LARGEST_FACTOR = 10.0
_LEAST_GAIN = 1e-3
"""Share of the error that a fit must save to be taken: less is noise."""
_NO_ERROR = 1e-6
"""Relative squared error below which there is nothing to gain: sums of float32 products tell no smaller one."""


class FitSums:
    """Sums over rows of inputs ``x [in]`` and targets ``y [out]``, float64; a batch's products in its own precision."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self._gram = torch.zeros(inputs, inputs, dtype=torch.float64)
        self._cross = torch.zeros(outputs, inputs, dtype=torch.float64)
        self._x = torch.zeros(inputs, dtype=torch.float64)
        self._y = torch.zeros(outputs, dtype=torch.float64)
        self._square = torch.zeros((), dtype=torch.float64)
        self.count = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add ``x [rows, in]`` and ``y [rows, out]``."""
        self._gram += x.t() @ x
        self._cross += y.t() @ x
        self._x += x.sum(0, dtype=torch.float64)
        self._y += y.sum(0, dtype=torch.float64)
        self._square += y.double().square().sum()
        self.count += len(x)

    def __add__(self, other: FitSums) -> FitSums:
        """The sums over the rows of both."""
        total = FitSums(len(self._x), len(self._y))
        for name in ("_gram", "_cross", "_x", "_y", "_square", "count"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total

    def system(self, *, centred: bool) -> tuple[Tensor, Tensor]:
        """``G [in, in]`` and ``C [out, in]``; ``centred``: around the means, as where a bias is free.

        Raises:
            DataError: nothing was added, or sums that are not finite.
        """
        if not self.count:
            raise DataError("examples to tune on", "none", "give more data, or write tuning: none")
        if not bool(torch.isfinite(self._gram).all() and torch.isfinite(self._cross).all()):
            raise DataError("finite activations to tune on", "NaN or infinity", "check the model on this data")
        if not centred:
            return self._gram, self._cross
        mean = self._x / self.count
        return self._gram - torch.outer(self._x, mean), self._cross - torch.outer(self._y, mean)

    def bias(self, weight: Tensor) -> Tensor:
        """The bias ``[out]`` that makes the mean of ``weight x + bias`` that of y."""
        return (self._y - weight @ self._x) / self.count

    def error(self, weight: Tensor, bias: Tensor | None) -> float:
        """``sum || W x + b - y ||^2 / sum || y ||^2`` of float64 ``[out, in]`` and ``[out]``."""
        total = ((weight @ self._gram) * weight).sum() - 2 * (weight * self._cross).sum() + self._square
        if bias is not None:
            total += self.count * bias.square().sum() + 2 * bias @ (weight @ self._x - self._y)
        return float(total.clamp_min(0) / self._square.clamp_min(1e-30))


@dataclass(frozen=True)
class Fit:
    """Weight ``[out, in]`` and bias ``[out]`` (None as before) after tuning, float32.

    ``before`` and ``after`` are relative squared errors on the samples that were held out; ``damping`` is None where
    nothing was better than leaving all as it is.
    """

    weight: Tensor
    bias: Tensor | None
    before: float
    after: float
    damping: float | None


def fit(
    seen: FitSums,
    held: FitSums,
    weight: Tensor,
    bias: Tensor | None,
    *,
    method: Tuning,
    group: int = 1,
    dampings: Sequence[float] = DAMPINGS,
) -> Fit:
    """Tune ``weight [out, in]`` (and ``bias``) with the damping that, fitted to ``seen``, serves ``held`` best.

    The result is fitted to both; nothing moves where ``held`` is not served better than by ``weight`` as it is.
    ``group`` neighbouring inputs share a factor (a head's).

    Raises:
        DataError: no sample, or activations that are not finite.
    """
    start, centred = weight.double(), bias is not None
    before = held.error(start, None if bias is None else bias.double())
    best, chosen = before * (1 - _LEAST_GAIN) if before > _NO_ERROR else 0.0, None
    for damping in dampings if method != "none" else ():
        found = _fitted(seen, start, method, damping, centred, group)
        if found is not None:
            after = held.error(found, seen.bias(found) if centred else None)
            if after < best:
                best, chosen = after, damping
    if chosen is None:
        return Fit(weight, bias, before, before, None)
    total = seen + held
    final = _fitted(total, start, method, chosen, centred, group)
    if final is None:
        return Fit(weight, bias, before, before, None)
    return Fit(final.float(), total.bias(final).float() if centred else None, before, best, chosen)


def _fitted(sums: FitSums, weight: Tensor, method: Tuning, damping: float, centred: bool, group: int) -> Tensor | None:
    if method == "weights":
        return fit_weights(sums, weight, damping=damping, centred=centred)
    factors = fit_factors(sums, weight, damping=damping, centred=centred, group=group)
    return None if factors is None else weight * factors.repeat_interleave(group)


def fit_weights(sums: FitSums, weight: Tensor, *, damping: float, centred: bool) -> Tensor:
    """The weight ``[out, in]``, float64, of least squares, damped towards ``weight``."""
    gram, cross = sums.system(centred=centred)
    return weight + _solve(gram, (cross - weight @ gram).t(), damping).t()


def fit_factors(sums: FitSums, weight: Tensor, *, damping: float, centred: bool, group: int = 1) -> Tensor | None:
    """Factors ``[in / group]``, float64, of least squares, damped towards 1.

    None where one of them is out of [-10, 10]: then the data does not say what it should be.
    """
    gram, cross = sums.system(centred=centred)
    size = weight.shape[1] // group
    matrix = (gram * (weight.t() @ weight)).view(size, group, size, group).sum((1, 3))
    right = (weight * cross).sum(0).view(size, group).sum(1)
    factors = 1 + _solve(matrix, (right - matrix.sum(1))[:, None], damping)[:, 0]
    return factors if float(factors.abs().max()) <= _LARGEST_FACTOR else None


def _solve(matrix: Tensor, right: Tensor, damping: float) -> Tensor:
    """``(A + damping * mean(diag A) I)^-1 B`` for a positive semidefinite A."""
    scale = float(matrix.diagonal().mean()) or 1.0
    damped = matrix + damping * scale * torch.eye(len(matrix), dtype=matrix.dtype)
    lower, failed = torch.linalg.cholesky_ex(damped)
    return torch.cholesky_solve(right, lower) if not int(failed) else torch.linalg.lstsq(damped, right).solution
