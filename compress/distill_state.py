"""What a distillation that was killed continues from, and what it has seen so far.

A state holds everything the next step depends on: weights, AdamW's moments, the projection, the random numbers drawn so
far, scales of fake-quantized layers, the best weights and the position. It is written between steps, at most every
:data:`EVERY` seconds and never so often that writing takes more than a twentieth of the time; writing changes nothing,
so a run that continues ends with the same bits as one that was never stopped (on one thread of a CPU).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from planish.compress.resume import Pieces

__all__ = ["EVERY", "History", "Keeper", "Weights", "moments", "restore_moments", "snapshot", "write_back"]

EVERY = 30.0
"""Seconds of work a kill may cost."""

_SHARE = 20  # a save may take this part of the time between two

Weights = dict[str, Tensor]


@dataclass
class History:
    """Position and figures of a run; plain JSON.

    ``losses``: about twenty points, each the mean since the one before; ``evaluations``: the metric after steps.
    ``sums`` and ``counted`` are what the next point will be the mean of.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    best_step: int = 0
    best: float | None = None
    stale: int = 0
    stopped: str | None = None
    sums: dict[str, float] = field(default_factory=dict)
    counted: int = 0

    def add(self, losses: Mapping[str, float]) -> None:
        """Take in the losses of one step."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.counted += 1

    def point(self) -> dict[str, float]:
        """The mean losses since the last point; starts the next."""
        means = {name: value / max(self.counted, 1) for name, value in self.sums.items()}
        self.sums, self.counted = {}, 0
        self.losses.append({"step": self.step, **{name: float(f"{value:.6g}") for name, value in means.items()}})
        return means

    def judge(self, name: str, value: float, *, higher: bool) -> bool:
        """Write down an evaluation; whether these weights are to be kept as the best (the later of two alike)."""
        self.evaluations.append({"step": self.step, name: round(value, 6)})
        if self.best is None or value == self.best:
            keep, better = True, self.best is None
        else:
            keep = better = (value > self.best) == higher and value == value
        self.stale = 0 if better else self.stale + 1
        if keep:
            self.best, self.best_step = value, self.step
        return keep


def snapshot(module: nn.Module) -> Weights:
    """Copies of all parameters on the CPU, a shared one once."""
    return {name: parameter.detach().cpu().clone() for name, parameter in module.named_parameters()}


@torch.no_grad()
def write_back(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Overwrite the parameters of ``module`` with a snapshot."""
    for name, parameter in module.named_parameters():
        parameter.copy_(weights[name])


def moments(module: nn.Module, optimizer: torch.optim.Optimizer) -> Weights:
    """AdamW's state by name of parameter."""
    found: Weights = {}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{name}:{key}"] = value.detach().cpu().clone()
    return found


def restore_moments(module: nn.Module, optimizer: torch.optim.Optimizer, saved: Mapping[str, Tensor]) -> None:
    """Put saved moments back; parameters without any have had no gradient yet."""
    for name, parameter in module.named_parameters():
        state = {key: saved[f"{name}:{key}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}:{key}" in saved}
        if state:
            optimizer.state[parameter] = {
                key: value.clone() if key == "step" and parameter.device.type == "cpu" else value.to(parameter.device)
                for key, value in state.items()
            }


class Keeper:
    """Writes states into the work folder when it is time, and finds the last one."""

    def __init__(self, pieces: Pieces, tag: str, *, active: bool = True) -> None:
        self._pieces, self._tag, self._active = pieces, tag, active
        self._last, self._took = time.monotonic(), 0.0

    def due(self) -> bool:
        return self._active and time.monotonic() - self._last >= max(EVERY, _SHARE * self._took)

    def save(self, tensors: Mapping[str, Weights], history: History) -> None:
        """Write a state: groups of tensors by name."""
        if not self._active:
            return
        start = time.monotonic()
        flat = {f"{group}/{name}": value for group, values in tensors.items() for name, value in values.items()}
        self._pieces.save_state("train", self._tag, flat, asdict(history))
        self._last = time.monotonic()
        self._took = self._last - start

    def load(self) -> tuple[dict[str, Weights], History] | None:
        """The last state saved for the same data and settings, if there is one."""
        saved = self._pieces.load_state("train", self._tag) if self._active else None
        if saved is None:
            return None
        groups: dict[str, Weights] = {}
        for key, value in saved[0].items():
            group, _, name = key.partition("/")
            groups.setdefault(group, {})[name] = value
        return groups, History(**saved[1])
