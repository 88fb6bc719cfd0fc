"""How much each hidden channel of the residual stream matters, and norms refitted to what is left of it.

Importance is the mean ``|h|`` of a channel after each norm, summed over the norms (Muralidharan et al., "Compact
Language Models via Pruning and Knowledge Distillation" (Minitron), NeurIPS 2024): a norm's output is what
blocks read, so a channel that is small there moves little.

With channels gone, a norm divides by the length of what is left, and everything it gives is too large or too small. So
each norm gets new gains (and shifts, where it has them): per channel the least squares fit of what the whole norm gave
on what the cut one gives, on the same text. Only norms change, so it costs one more run and no training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from planish.compress.window_sums import Hook, sum_over_windows
from planish.families import block_list, block_parts

if TYPE_CHECKING:
    from planish.compress.resume import Pieces

__all__ = ["Fits", "channel_importance", "stream_norms"]


def stream_norms(model: Any) -> dict[str, nn.Module]:
    """The norms that read the residual stream, by name: those of the blocks, and those before, behind and on top."""
    width = int(model.config.hidden_size)
    inside = {id(module) for block in block_list(model) for module in block.modules()}
    wanted = {id(norm) for part in block_parts(model) for norm in part.norms}
    return {
        name: module
        for name, module in model.named_modules()
        if id(module) in wanted or (id(module) not in inside and _is_norm(module, width))
    }


def _is_norm(module: Any, width: int) -> bool:
    return "Norm" in type(module).__name__ and tuple(getattr(module, "weight", torch.empty(0)).shape) == (width,)


def channel_importance(
    model: Any,
    norms: dict[str, nn.Module],
    windows: Sequence[Tensor],
    *,
    tick: Callable[[int, int], None],
    pieces: Pieces,
) -> Tensor:
    """Float64 ``[hidden]``: mean ``|h|`` after each of ``norms``, summed over them, on ``windows`` ``[n, tokens]``."""
    width = int(model.config.hidden_size)
    sums = {"sizes": torch.zeros(width, dtype=torch.float64), "calls": torch.zeros(1, dtype=torch.float64)}

    def add(_: nn.Module, __: tuple[Any, ...], ___: dict[str, Any], output: Tensor) -> None:
        rows = output.detach().reshape(-1, width)
        sums["sizes"] += rows.abs().sum(0, dtype=torch.float64)
        sums["calls"] += rows.shape[0]

    hooks: list[tuple[nn.Module, Hook]] = [(norm, add) for norm in norms.values()]
    sum_over_windows(model, windows, hooks, sums, tick=tick, pieces=pieces, piece="channels")
    return sums["sizes"] / sums["calls"] * len(norms)


@dataclass(frozen=True)
class Fits:
    """New gains and shifts ``[kept]`` of each norm, by name; a norm without a shift has none here."""

    gains: dict[str, Tensor]
    shifts: dict[str, Tensor]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        norms: dict[str, nn.Module],
        keep: Tensor,
        windows: Sequence[Tensor],
        *,
        tick: Callable[[int, int], None],
        pieces: Pieces,
    ) -> Fits:
        """Fit every norm of the model as it is, uncut, for the channels ``keep`` (int64 ``[kept]``)."""
        zero = torch.zeros(len(norms), 4, len(keep), dtype=torch.float64)
        sums = {"moments": zero, "rows": torch.zeros(len(norms), dtype=torch.float64)}

        def hook(number: int) -> Hook:
            def add(norm: Any, args: tuple[Any, ...], _: dict[str, Any], output: Tensor) -> None:
                x = plain_norm(norm, args[0].detach()[..., keep]).reshape(-1, len(keep))
                y = output.detach()[..., keep].reshape(-1, len(keep))
                found = (x, y, x * x, x * y)
                sums["moments"][number] += torch.stack([part.sum(0, dtype=torch.float64) for part in found])
                sums["rows"][number] += len(x)

            return add

        hooks = [(norm, hook(number)) for number, norm in enumerate(norms.values())]
        sum_over_windows(model, windows, hooks, sums, tick=tick, pieces=pieces, piece="fits")
        gains, shifts = {}, {}
        for number, (name, norm) in enumerate(norms.items()):
            gain, shift = fit(sums["moments"][number] / sums["rows"][number], norm, keep)
            gains[name] = gain
            if shift is not None:
                shifts[name] = shift
        return cls(gains, shifts)

    def set(self, model: nn.Module) -> None:
        """Write them into the norms of the cut model, which have the same names."""
        for name, gain in self.gains.items():
            norm: Any = model.get_submodule(name)
            norm.weight.copy_(gain)
            if name in self.shifts:
                norm.bias.copy_(self.shifts[name])


def plain_norm(norm: Any, hidden: Tensor) -> Tensor:
    """What ``norm`` makes of ``hidden [..., kept]`` before its gain and shift."""
    if isinstance(norm, nn.LayerNorm):
        return nn.functional.layer_norm(hidden, hidden.shape[-1:], eps=norm.eps)
    epsilon = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    return hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + epsilon)


def fit(moments: Tensor, norm: Any, keep: Tensor) -> tuple[Tensor, Tensor | None]:
    """Gain and shift ``[kept]`` of least squares from mean x, y, xx, xy (``[4, kept]``); no shift without a bias.

    A channel that never moves keeps its gain.
    """
    x, y, xx, xy = moments
    old = norm.weight[keep].double()
    if getattr(norm, "bias", None) is None:
        return torch.where(xx > 0, xy / xx.clamp_min(1e-300), old).float(), None
    variance = xx - x * x
    moves = variance > 1e-9 * xx
    gain = torch.where(moves, (xy - x * y) / torch.where(moves, variance, 1.0), old)
    return gain.float(), (y - gain * x).float()
