"""Where results are written: never over something that is there, and whole or not at all.

A result is built in a temporary sibling directory, pushed to the disk and renamed into place.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from planish.errors import HostError, InputError
from planish.interrupts import raise_interrupt

__all__ = [
    "check_output",
    "disk_errors",
    "move",
    "refuse_existing",
    "refuse_nested",
    "replace_text",
    "staging",
    "sync",
]


def refuse_existing(path: Path) -> None:
    """Raise ``InputError`` if anything but an empty directory is at ``path``."""
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise InputError(f"a free output path: {path}", "something already there", "remove it, or choose another -o")


def check_output(output: str | Path) -> Path:
    """The absolute path of an output that may be written.

    Raises:
        InputError: it exists and is not an empty directory, its parent is not a directory, or no path can be so.
    """
    path = Path(os.path.abspath(output))
    try:
        refuse_existing(path)
        if not path.parent.is_dir():
            taken = next(folder for folder in path.parents if folder.exists())  # "/" is always there
            if not taken.is_dir():
                raise InputError(f"a directory at {path.parent}", f"a file at {taken}", "choose another -o")
            raise InputError(f"a directory at {path.parent}", "none", f"mkdir -p {path.parent}")
    except OSError as error:  # a name too long, a folder we may not look into
        raise InputError(f"an output path: {path}", error.strerror or str(error), "choose another -o") from error
    return path


def refuse_nested(outputs: Mapping[str, Path]) -> None:
    """Raise ``InputError`` if two outputs are the same path, or one lies inside another."""
    real = [(name, Path(os.path.realpath(path.parent)) / path.name) for name, path in outputs.items()]
    for (outer, folder), (inner, path) in itertools.permutations(real, 2):
        if path.is_relative_to(folder):
            raise InputError(f"{inner} outside {outer}", f"{path} in {folder}", "choose paths beside each other")


def move(made: Path, kept: Path) -> None:
    """Rename a finished folder to its place, whole or not at all; an empty folder there gives way.

    Raises:
        HostError: the disk refuses.
    """
    with disk_errors(kept.parent):
        try:
            os.rename(made, kept)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with staging(kept) as folder:  # another file system
                shutil.copytree(made, folder, dirs_exist_ok=True)
        sync(kept.parent)


@contextlib.contextmanager
def staging(output: Path) -> Iterator[Path]:
    """A temporary sibling that becomes ``output`` if the block succeeds, and is removed if anything stops it before.

    Raises:
        HostError: the disk refuses.
    """
    with disk_errors(output.parent):
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
    try:
        with disk_errors(output.parent):
            yield folder
            _settle(folder)
            raise_interrupt()
            os.rename(folder, output)
            sync(output.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextlib.contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn failures of the disk into :class:`HostError`."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
        fix = "free some space or choose another disk" if full else "check the folder's permissions"
        raise HostError(f"to write under {where}", error.strerror or str(error), fix) from error


def replace_text(path: Path, text: str) -> None:
    """Write a small file aside, push it to the disk, rename it into place.

    Raises:
        HostError: the disk refuses.
    """
    aside = path.with_name(f".{path.name}.partial")
    with disk_errors(path.parent):
        try:
            aside.write_text(text, encoding="utf-8")
            sync(aside)
            os.replace(aside, path)
            sync(path.parent)
        finally:
            aside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Push a file or a directory's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _settle(folder: Path) -> None:
    """Give every file the usual permissions (temporary ones are private) and push it to the disk."""
    for path in [*sorted(folder.rglob("*")), folder]:
        path.chmod(0o755 if path.is_dir() else 0o644)
        sync(path)
