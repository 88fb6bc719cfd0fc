"""GPTQ: round column by column, and let the columns not yet rounded make up for each error.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023. A linear
layer with inputs X is judged by its output error ``|| (W - Q) X ||^2 = tr (W - Q) H (W - Q)^T / 2``, ``H = 2 X X^T``.
Rounding column i and moving all later columns by the optimal brain surgeon step

    W[:, j] -= (W[:, i] - Q[:, i]) * inv(H_i)[i, j] / inv(H_i)[i, i]      H_i: H without the rows and columns before i

minimizes it greedily. All the inverses needed are rows of one triangular matrix ``U`` with ``inv(H) = U^T U``:
``inv(H_i)[i, j] / inv(H_i)[i, i] = U[i, j] / U[i, i]``.

Two things are added to the paper. An error in column i costs, once the later columns have made up for what they can,
``1 / U[i, i]^2`` per square: the range search weighs columns by that (measured 11 % less output error than unweighted,
6 % less than weighted by ``H[i, i]``). And a few sweeps of :mod:`~planish.compress.refine` follow (8 % less).
"""

from __future__ import annotations

import torch
from torch import Tensor

from planish.compress.grid import Grid, Quantized, Range, check_weight, group_width
from planish.compress.refine import refine
from planish.errors import CheckpointError, InputError, RecipeError

__all__ = ["HessianSum", "check_hessian", "damp", "gptq"]

_DAMPING_STEPS = 4  # an indefinite Hessian is tried again with ten times the damping


class HessianSum:
    """``H = 2/n * sum of g x x^T`` over a layer's inputs x, added up batch by batch; g is 1 unless weights are given.

    With g the squared gradient of the model's loss by the layer's output at that position, summed over the outputs, H
    counts an output error by what it does to the loss (Kim et al., "GuidedQuant", 2025, with one group of outputs).
    """

    def __init__(self, columns: int) -> None:
        self._sum = torch.zeros(columns, columns)
        self.count = 0

    def add(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """Add inputs ``[..., in]``; every leading position counts as one sample, with its entry of ``weights [...]``.

        Only the ratios of weights matter to :func:`gptq`; scale them to about 1, so that float32 keeps their products.
        """
        rows = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        if weights is not None:
            rows = rows * weights.detach().reshape(-1, 1).float().sqrt()
        self._sum.addmm_(rows.t(), rows)
        self.count += rows.shape[0]

    @property
    def matrix(self) -> Tensor:
        """float32 ``[in, in]``; raises :class:`InputError` if nothing was added."""
        if self.count == 0:
            raise InputError(
                "calibration inputs for every layer", "none", "give calibration text that reaches this layer"
            )
        return self._sum * (2.0 / self.count)


def gptq(
    weight: Tensor,
    hessian: Tensor,
    *,
    bits: int,
    group_size: int | None,
    symmetric: bool,
    range: Range = "mse",
    activation_order: bool = False,
    damping: float = 0.01,
    sweeps: int = 3,
    block: int = 128,
) -> Quantized:
    """Quantize ``weight [out, in]`` so that its outputs on inputs with ``hessian [in, in]`` change least.

    A group's scale is fitted to its weights as corrected so far; with ``activation_order`` (columns with the largest
    inputs first) to the original ones, so that groups stay neighbours in storage. ``damping`` is added to the diagonal,
    in units of its mean. ``sweeps`` of coordinate descent refine the result; 0 is the paper's method. Deterministic to
    the bit for a given number of threads.

    Raises as :func:`~planish.compress.grid.round_to_grid` does, and :class:`CheckpointError` for a Hessian that is not
    finite, not ``[in, in]``, or not positive definite even at a thousand times the damping.
    """
    grid = Grid(bits, symmetric)
    check_weight(weight)
    columns = weight.shape[1]
    width = group_width(columns, group_size)
    check_hessian(hessian, columns, damping)
    order = torch.arange(columns)
    if activation_order:
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    damped, root = damp(hessian.double()[order][:, order], damping)
    run = _Run(grid, weight.float().t()[order].contiguous(), root, width, range)
    if activation_order:
        run.fit_in_storage(order)
    run.round_all(block if width == columns else width * max(1, block // width))
    storage = torch.argsort(order)
    values, scale = run.integers[storage].t().contiguous(), run.scale.t().contiguous()
    zero = None if symmetric else run.zero.t().to(torch.int8).contiguous()
    found = Quantized(values, scale, zero, bits, group_size)
    return refine(found, weight, damped[storage][:, storage].float(), sweeps=sweeps)


class _Run:
    """One matrix on its way: weights transposed to ``[in, out]``, so that a column of the paper is contiguous."""

    def __init__(self, grid: Grid, weight: Tensor, root: Tensor, width: int, mode: Range) -> None:
        columns, rows = weight.shape
        self.grid, self.weight, self.width, self.mode = grid, weight, width, mode
        inverse = torch.linalg.solve_triangular(root, torch.eye(columns, dtype=root.dtype), upper=True)
        self.step = (inverse * root.diagonal()[:, None]).float()  # how much of column i's error column j takes over
        self.importance = root.diagonal().square().float()[:, None]
        self.integers = torch.empty(columns, rows, dtype=torch.int8)
        self.scale = torch.empty(columns // width, rows)
        self.zero = torch.empty(columns // width, rows)
        self.group = (torch.arange(columns) // width).tolist()
        self.fitted = False

    def fit_in_storage(self, order: Tensor) -> None:
        """Fit all groups before anything moves; row i of ``weight`` is column ``order[i]`` in storage."""
        self.group, self.fitted = (order // self.width).tolist(), True
        for group, members in enumerate(torch.argsort(order).view(-1, self.width)):
            self._fit(group, members)

    def _fit(self, group: int, members: Tensor | slice) -> None:
        found = self.grid.fit(self.weight[members], self.mode, self.importance[members])
        self.scale[group], self.zero[group] = found

    def round_all(self, block: int) -> None:
        """Round every column; the later blocks hear of a block's errors in one product at its end."""
        columns = self.weight.shape[0]
        for start in range(0, columns, block):
            stop = min(start + block, columns)
            errors = self._round_block(start, stop)
            self.weight[stop:].addmm_(self.step[start:stop, stop:].t(), errors, alpha=-1)

    def _round_block(self, start: int, stop: int) -> Tensor:
        """Round columns ``start`` to ``stop``; returns their errors ``[stop - start, out]`` at the time of rounding."""
        errors = torch.empty(stop - start, self.weight.shape[1])
        for column in range(start, stop):
            group = self.group[column]
            if not self.fitted and column % self.width == 0:
                self._fit(group, slice(column, column + self.width))
            scale, zero, current = self.scale[group], self.zero[group], self.weight[column]
            rounded = self.grid.round(current, scale, zero)
            self.integers[column] = rounded.to(torch.int8)
            error = torch.sub(current, rounded.sub_(zero).mul_(scale), out=errors[column - start])
            self.weight[column + 1 : stop].addr_(self.step[column, column + 1 : stop], error, alpha=-1)
        return errors


def damp(hessian: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """The damped Hessian, and upper triangular R with ``H = R R^T``; the inverse of R is the paper's U.

    Inputs that are always 0 tell nothing about their column: a diagonal of the mean leaves it to plain rounding.
    """
    diagonal = hessian.diagonal()
    mean = float(diagonal.mean()) or 1.0
    silent = torch.where(diagonal > 0, 0.0, mean)
    for step in range(_DAMPING_STEPS):
        damped = hessian + torch.diag(silent + damping * 10**step * mean)
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not int(failed):
            return damped, lower.flip(0, 1)
    raise CheckpointError(
        "a positive definite Hessian of the calibration inputs",
        f"an indefinite one, even with damping {damping * 10 ** (_DAMPING_STEPS - 1):g}",
        "give more or other calibration text, or use method: round",
    )


def check_hessian(hessian: Tensor, columns: int, damping: float) -> None:
    if not 0 <= damping < float("inf"):
        raise RecipeError("damping of 0 or more", str(damping), "use 0.01")
    if tuple(hessian.shape) != (columns, columns):
        raise InputError(
            f"a Hessian [{columns}, {columns}]", str(list(hessian.shape)), "collect it on this layer's inputs"
        )
    if not bool(torch.isfinite(hessian).all()) or bool((hessian.diagonal() < 0).any()):
        raise CheckpointError(
            "finite activations in calibration",
            "NaN, infinity or a negative square in the Hessian",
            "check that the model runs in float32 on this text",
        )
