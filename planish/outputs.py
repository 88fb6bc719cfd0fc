"""Where results may be written: never over something that is there. All halves that write ask here."""

from __future__ import annotations

import os
from pathlib import Path

from planish.errors import InputError

__all__ = ["check_output", "refuse_existing"]


def refuse_existing(path: Path) -> None:
    """Raise ``InputError`` if anything but an empty directory is at ``path``."""
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise InputError(f"a free output path: {path}", "something already there", "remove it, or choose another -o")


def check_output(output: str | Path) -> Path:
    """The absolute path of an output that may be written.

    Raises:
        InputError: it exists and is not an empty directory, or its parent is not a directory.
    """
    path = Path(os.path.abspath(output))
    refuse_existing(path)
    if not path.parent.is_dir():
        raise InputError(f"a directory at {path.parent}", "none", f"mkdir -p {path.parent}")
    return path
