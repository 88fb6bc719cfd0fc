"""Writing to disk: syncs, and failures told apart from bugs."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from planish.errors import HostError

__all__ = ["disk_errors", "sync"]


@contextlib.contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn failures of the disk into :class:`HostError`."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
        fix = "free some space or choose another disk" if full else "check the folder's permissions"
        raise HostError(f"to write under {where}", error.strerror or str(error), fix) from error
    except SafetensorError as error:
        raise HostError(
            f"to write under {where}", str(error)[:200], "free some space or choose another disk"
        ) from error


def sync(path: Path) -> None:
    """Push a file or a directory's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
