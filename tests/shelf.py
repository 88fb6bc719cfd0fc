"""What several tests take from the real models is made once a run, whichever worker asks first."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Shelf", "alone"]

Shelf = Callable[..., Path]


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Only one worker at a time makes ``path``."""
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
