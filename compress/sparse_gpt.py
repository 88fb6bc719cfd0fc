"""SparseGPT: set weights to zero column by column, and let the columns not yet passed make up for each.

Frantar & Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", ICML 2023. A linear layer
with inputs X is judged by its output error ``|| (W - S) X ||^2 = tr (W - S) H (W - S)^T / 2``, ``H = 2 X X^T``. It is
GPTQ (:mod:`planish.compress.gptq`) with zero in the place of the nearest grid point, and a mask that is chosen on the
way: in blocks of 128 columns, by the weights as moved so far, those with the least error
``w^2 / [inv(H_j)]_jj`` (``H_j``: H without the rows and columns before j) go.

One thing is added to the paper, where the update only ever reaches columns to the right: with the mask found, the kept
weights of all rows take a few steps of preconditioned conjugate gradients towards the least error they can have (as
Meng et al., "ALPS", NeurIPS 2024, do behind their own search for a mask).
"""

from __future__ import annotations

import torch
from torch import Tensor

from planish.compress.gptq import check_hessian, damp
from planish.compress.grid import check_weight
from planish.compress.sparse_importance import Pattern, lowest, mask
from planish.errors import CheckpointError

__all__ = ["refit", "sparse_gpt"]


def sparse_gpt(
    weight: Tensor,
    hessian: Tensor,
    kind: float | Pattern,
    *,
    damping: float = 0.01,
    refine: int = 10,
    block: int = 128,
) -> Tensor:
    """``weight [out, in]`` with zeros, its outputs on inputs with ``hessian [in, in]`` changed least.

    ``kind`` is the share of zeros (exact over the layer, to the nearest whole number) or a pattern. ``damping`` is
    added to the diagonal, in units of its mean. ``refine`` steps of :func:`refit` follow; 0 is the paper's method.
    Inputs that were always 0 lose their weights first. Deterministic to the bit for a given number of threads.

    Raises:
        CheckpointError: a weight or Hessian that is not finite, or a Hessian not positive definite.
        InputError: a Hessian that is not ``[in, in]``.
        RecipeError: the pattern's groups do not divide the inputs.
    """
    check_weight(weight)
    columns = weight.shape[1]
    check_hessian(hessian, columns, damping)
    if isinstance(kind, Pattern):
        kind.check(columns)
        block = max(1, block // kind.group) * kind.group
    try:
        damped, root = damp(hessian.double(), damping)
    except CheckpointError as error:
        fix = "give more or other calibration text, or use method: wanda"
        raise CheckpointError(error.expected, error.got, fix) from None
    run = _Run(weight, hessian, root, kind)
    for start in range(0, columns, block):
        run.prune_block(start, min(start + block, columns))
    return refit(weight, run.weight.t(), run.gone.t(), damped.float(), steps=refine)


class _Run:
    """One matrix on its way: weights transposed to ``[in, out]``, so that a column of the paper is contiguous."""

    def __init__(self, weight: Tensor, hessian: Tensor, root: Tensor, kind: float | Pattern) -> None:
        columns = weight.shape[1]
        self.weight = weight.float().t().contiguous().clone()
        self.gone = torch.zeros_like(self.weight, dtype=torch.bool)
        self.kind, self.zeros = kind, 0
        inverse = torch.linalg.solve_triangular(root, torch.eye(columns, dtype=root.dtype), upper=True)
        self.step = (inverse * root.diagonal()[:, None]).float()  # how much of column i's error column j takes over
        silent = hessian.diagonal() == 0
        self.price = torch.where(silent, 0.0, root.diagonal()).float()[:, None]  # root of 1 / [inv(H_j)]_jj

    def prune_block(self, start: int, stop: int) -> None:
        """Choose the zeros of columns ``start`` to ``stop`` and make them; later columns hear of it at the end."""
        errors = torch.zeros(stop - start, self.weight.shape[1])
        if not isinstance(self.kind, Pattern):
            self.gone[start:stop] = self._share(start, stop)
        for column in range(start, stop):
            if isinstance(self.kind, Pattern) and column % self.kind.group == 0:
                part = slice(column, column + self.kind.group)
                self.gone[part] = mask(self._scores(part).t(), self.kind, "layer").t()
            error = torch.mul(self.weight[column], self.gone[column], out=errors[column - start])
            self.weight[column + 1 : stop].addr_(self.step[column, column + 1 : stop], error, alpha=-1)
            self.weight[column].masked_fill_(self.gone[column], 0.0)
        self.weight[stop:].addmm_(self.step[start:stop, stop:].t(), errors, alpha=-1)

    def _share(self, start: int, stop: int) -> Tensor:
        """Zeros of one block; their number is such that the share holds for all columns up to ``stop``."""
        assert isinstance(self.kind, float)
        count = round(self.kind * stop * self.weight.shape[1]) - self.zeros
        self.zeros += count
        found = self._scores(slice(start, stop))
        return lowest(found.reshape(-1), count).view_as(found)

    def _scores(self, part: slice) -> Tensor:
        return self.weight[part].abs() * self.price[part]


def refit(weight: Tensor, start: Tensor, gone: Tensor, hessian: Tensor, *, steps: int) -> Tensor:
    """Move the kept weights of ``start [out, in]`` towards the least ``tr (weight - S) H (weight - S)^T``.

    ``gone`` (bool ``[out, in]``) stays zero; ``hessian`` is positive definite. Conjugate gradients, preconditioned by
    the diagonal, for all rows at once: a step costs one product with H, and no step makes the error of a row larger.
    """
    kept = (~gone).to(hessian.dtype)
    diagonal = hessian.diagonal().clamp_min(1e-30)
    found = start.to(hessian.dtype) * kept
    residual = ((weight.to(hessian.dtype) - found) @ hessian) * kept  # minus half the gradient
    move = residual / diagonal
    size = (residual * move).sum(1, keepdim=True)
    for _ in range(steps):
        curved = (move @ hessian) * kept
        length = size / (move * curved).sum(1, keepdim=True).clamp_min(1e-30)
        found = found + length * move
        residual = residual - length * curved
        preconditioned = residual / diagonal
        new = (residual * preconditioned).sum(1, keepdim=True)
        move = preconditioned + move * (new / size.clamp_min(1e-30))
        size = new
    return found.contiguous()
