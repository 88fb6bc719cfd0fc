"""Failures of the disk told apart from bugs, those that safetensors reports in its own way included."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from planish import outputs
from planish.errors import HostError

__all__ = ["disk_errors"]


@contextlib.contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn failures of the disk into :class:`HostError`."""
    try:
        with outputs.disk_errors(where):
            yield
    except SafetensorError as error:
        raise HostError(
            f"to write under {where}", str(error)[:200], "free some space or choose another disk"
        ) from error
