"""Which weights of a linear layer to set to zero: one interface of importances, and masks made from their scores.

An importance says what a squared error of one costs in each input column; the score of a weight is ``|w| sqrt(cost)``,
low for what may go. It looks at the Hessian ``H = 2/n X X^T`` of the layer's inputs, or at nothing:

- *magnitude*: every column costs 1. Compared over the whole layer. Needs no text.
- *wanda*: a column costs ``||x||^2`` of its input, so the score is ``|w| * ||x||_2``; compared within an output (Sun et
  al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024): how far the output moves if the
  inputs are taken as unrelated.
- *sparsegpt*: ``1 / [inv(H)]_jj``, what is left after the weights not yet passed made up for what they can (Frantar &
  Alistarh, "SparseGPT", ICML 2023); :mod:`planish.compress.sparse_gpt` scores with it while weights move.

A mask is bool ``[out, in]``, True where a weight becomes zero. Ties go to the lower index, so that a mask is the same
on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from planish.errors import CheckpointError, RecipeError

__all__ = ["IMPORTANCES", "Importance", "Pattern", "mask", "output_error", "scores"]

Scope = Literal["layer", "output"]


@dataclass(frozen=True)
class Importance:
    """``cost(hessian [in, in]) -> [in]`` (None: 1 everywhere), and among which weights scores are compared."""

    cost: Callable[[Tensor], Tensor] | None
    scope: Scope


IMPORTANCES = {"magnitude": Importance(None, "layer"), "wanda": Importance(torch.diagonal, "output")}
"""Method in a recipe -> importance, of those that leave the weights they keep alone."""


@dataclass(frozen=True)
class Pattern:
    """Of every ``group`` neighbouring inputs at most ``kept`` have a weight: 2:4 is what sparse tensor cores take.

    >>> Pattern.parse("2:4")
    Pattern(kept=2, group=4)
    """

    kept: int
    group: int

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read ``"n:m"``.

        Raises:
            RecipeError: not two numbers with 0 < n < m.
        """
        kept, _, group = text.partition(":")
        numbers = [int(part) if part.isascii() and part.isdigit() else 0 for part in (kept, group)]
        if not 0 < numbers[0] < numbers[1]:
            raise RecipeError("a pattern n:m, n of m weights kept, 0 < n < m", repr(text), 'write pattern: "2:4"')
        return cls(*numbers)

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return 1 - self.kept / self.group

    def check(self, columns: int, name: str = "the layer") -> None:
        """Raise :class:`RecipeError` unless groups divide ``columns`` inputs."""
        if columns % self.group:
            fix = "exclude it, or choose a pattern whose second number divides them"
            raise RecipeError(f"inputs in groups of {self.group}", f"{columns} inputs of {name}", fix)


def scores(weight: Tensor, hessian: Tensor | None, importance: Importance) -> Tensor:
    """``[out, in]`` scores of ``weight [out, in]``.

    Raises:
        CheckpointError: the importance reads a Hessian, and it is missing or not finite.
    """
    if importance.cost is None:
        return weight.abs()
    if hessian is None or not bool(torch.isfinite(hessian).all()):
        got = "none" if hessian is None else "NaN or infinity in the Hessian"
        raise CheckpointError("finite activations in calibration", got, "check that the model runs on this text")
    return weight.abs() * importance.cost(hessian).clamp_min(0).sqrt()


def mask(score: Tensor, kind: float | Pattern, scope: Scope) -> Tensor:
    """Mask ``[out, in]`` of the lowest scores: a share of zeros (to the nearest whole number), or a pattern.

    Raises:
        RecipeError: the pattern's groups do not divide the inputs.
    """
    rows, columns = score.shape
    if isinstance(kind, Pattern):
        kind.check(columns)
        return lowest(score.reshape(rows, -1, kind.group), kind.group - kind.kept).reshape(rows, columns)
    if scope == "output":
        return lowest(score, round(kind * columns))
    return lowest(score.reshape(-1), round(kind * score.numel())).view(rows, columns)


def lowest(score: Tensor, count: int) -> Tensor:
    """Mask of the ``count`` lowest scores along the last axis."""
    order = score.argsort(dim=-1, stable=True)[..., :count]
    return torch.zeros_like(score, dtype=torch.bool).scatter_(-1, order, True)


def output_error(weight: Tensor, other: Tensor, hessian: Tensor) -> float:
    """Squared error of the layer's outputs over their squares: ``tr(D H D') / tr(W H W')``, D the difference."""
    difference = weight - other
    error = ((difference @ hessian) * difference).sum()
    return float(error / ((weight @ hessian) * weight).sum().clamp_min(1e-30))
