"""A bench and a context to run one pass on, without the driver around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from planish.compress.bench import Bench, Context
from planish.compress.passes import Pass
from planish.compress.recipe import Data
from planish.compress.resume import WorkFolder
from planish.compress.safetensors_file import read_header

WINDOWS = torch.randint(5, 512, (10, 48), generator=torch.Generator().manual_seed(0))
OTHERS = torch.randint(5, 512, (10, 48), generator=torch.Generator().manual_seed(1))
"""Token ids to calibrate and to judge on."""


def never(*_: Any) -> Any:
    raise AssertionError("this pass needs no such thing")


def nothing(*_: Any) -> None:
    return


@torch.no_grad()
def work(
    step: Pass,
    model: Any,
    folder: Path,
    *,
    windows: Tensor | Callable[[], tuple[Tensor, ...]] = WINDOWS,
    progress: Callable[[str, int, int], None] = nothing,
    examples: Callable[[], Any] = never,
    data: Data | None = None,
) -> Bench:
    """Run ``step`` on ``model``; what is finished is kept in ``folder`` and taken up by the next call."""
    bench = Bench.of(model.requires_grad_(False))
    folder.mkdir(parents=True, exist_ok=True)
    held = WorkFolder(folder / "out", {"settings": step.settings()})
    context = Context(
        windows=windows if callable(windows) else lambda: (windows,),
        pieces=held.pieces(0),
        progress=progress,
        seed=0,
        source=None,  # type: ignore[arg-type]
        tokenizer=never,
        examples=examples,
        data=data or Data(),
        folder=folder,
    )
    try:
        assert step.apply(bench, context) is bench
    finally:
        held.close(keep=True)
    return bench


def pieces(folder: Path) -> list[str]:
    """Names of the finished pieces, each of them whole."""
    found = sorted((folder / ".out.partial").glob("*.safetensors"))
    for path in found:
        read_header(path)
    return [path.stem.removeprefix("pass-0-") for path in found]


@torch.no_grad()
def answers(model: Any, ids: Tensor = OTHERS) -> Tensor:
    """Logits or hidden states."""
    output: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids))[0]
    return output


def moved(found: Tensor, expected: Tensor) -> float:
    """Relative distance of answers."""
    return float((found - expected).norm() / expected.norm())


class Stop:
    """A progress callback that ends a run, as Ctrl-C does, when its ``at``-th call comes."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, *_: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
