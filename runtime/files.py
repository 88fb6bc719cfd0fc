"""Files of a bundle: listed without following links, hashed, replaced atomically."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from planish.errors import BundleError, HostError, RequestError

__all__ = [
    "ENGINES",
    "FileState",
    "bundle_path",
    "hash_file",
    "list_files",
    "read_limited",
    "refuse_empty",
    "replace_file",
    "state_of",
]

CHUNK = 1 << 20
ENGINES = "engines/"
"""The one folder in which others may work on a finished bundle: a build lies there until the manifest names it."""


@dataclass(frozen=True)
class FileState:
    """What changes when a file changes: a swap moves the inode, a write the change time (which nobody can set back)."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


def state_of(status: os.stat_result) -> FileState:
    """The state of a file from its stat."""
    return FileState(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def bundle_path(bundle: object) -> Path:
    """The path of a bundle as a caller gave it; raises RequestError for what is no path."""
    path = os.fspath(bundle) if isinstance(bundle, (str, os.PathLike)) else None
    if not isinstance(path, str):
        raise RequestError("the path of a bundle directory", repr(bundle)[:80], "pass str or pathlib.Path")
    return Path(path)


def list_files(root: Path, engines: Collection[str] = ()) -> tuple[dict[str, FileState], list[str]]:
    """Every file below ``root`` by its path with forward slashes, and every empty folder.

    Of the folders in ``engines/`` only those named are looked into: others are builds under way, or what a killed one
    left. Raises BundleError for symbolic links, files with more than one hard link, and special files (pipes, devices).
    """
    if not root.is_dir():
        raise BundleError("a bundle directory", f"no directory at {root}", "make one with `planish export`")
    found: dict[str, FileState] = {}
    empty: list[str] = []
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        entries = _entries(root / prefix)
        # A build that is killed between its first two steps leaves engines/ empty; the bundle still serves.
        if not entries and prefix not in ("", ENGINES):
            empty.append(prefix.rstrip("/"))
        for name, path, status in entries:
            if not stat.S_ISDIR(status.st_mode):
                # On Windows a directory entry's stat knows neither inode nor links.
                found[prefix + name] = _plain(prefix + name, status if os.name == "posix" else os.lstat(path))
            elif prefix != ENGINES or name in engines:
                waiting.append(f"{prefix}{name}/")
    return dict(sorted(found.items())), empty


def refuse_empty(folders: list[str]) -> None:
    """Raises BundleError for an empty folder: a list of files cannot name it."""
    if folders:
        raise BundleError("only folders with files in the bundle", f"an empty one: {min(folders)}", "remove it")


def _entries(folder: Path) -> list[tuple[str, str, os.stat_result]]:
    try:
        with os.scandir(folder) as entries:
            return [(entry.name, entry.path, entry.stat(follow_symlinks=False)) for entry in entries]
    except OSError as error:
        raise HostError(f"a readable directory {folder}", str(error), "check its permissions") from error


def _plain(name: str, status: os.stat_result) -> FileState:
    if stat.S_ISLNK(status.st_mode):
        raise BundleError(
            "plain files only", f"a symbolic link: {name}", "copy the bundle with its links resolved (`cp -rL`)"
        )
    if not stat.S_ISREG(status.st_mode):
        raise BundleError("plain files only", f"a special file: {name}", "remove it")
    if status.st_nlink > 1:
        raise BundleError(
            "plain files only", f"a file with {status.st_nlink} hard links: {name}", "copy the bundle (`cp -r`)"
        )
    return state_of(status)


def hash_file(path: Path, expected: FileState) -> tuple[str, FileState]:
    """The hexadecimal sha256 of a file, and its state while it was read.

    ``expected`` is its state when it was listed; a file swapped or written since raises BundleError.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0, opener=_open_plain) as file:
            buffer = memoryview(bytearray(CHUNK))
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
            state = state_of(os.fstat(file.fileno()))
    except OSError as error:
        raise BundleError(f"a readable file {path.name}", str(error), "copy the bundle again") from error
    if state != expected:
        raise BundleError(
            f"{path.name} to hold still while it is read", "a change", "stop whatever writes into the bundle"
        )
    return digest.hexdigest(), state


def read_limited(path: Path, limit: int) -> bytes:
    """The bytes of a plain file of at most ``limit`` bytes; raises BundleError."""
    try:
        with open(path, "rb", opener=_open_plain) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise BundleError(f"a readable plain file {path.name}", str(error), "copy the bundle again") from error
    if len(data) > limit:
        raise BundleError(f"{path.name} of at most {limit} bytes", "more", "export the bundle again")
    return data


def _open_plain(path: str, flags: int) -> int:
    # O_NONBLOCK: a pipe that took the file's place must not hang us.
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def replace_file(path: Path, data: bytes, scratch: Path | None = None) -> None:
    """Writes ``data`` to ``path`` so that a crash leaves the old file or the new one, never a torn one.

    The temporary file lies in ``scratch``; without one beside the bundle, where that is the same disk and writable, so
    that a crash does not leave an extra file inside the bundle. Raises HostError when the disk refuses.
    """
    temporary = (scratch or _scratch_folder(path.parent)) / f".{path.name}.{secrets.token_hex(6)}.partial"
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise HostError(f"room to write {path}", str(error), "free some space or check the permissions") from error


def _scratch_folder(folder: Path) -> Path:
    parent = folder.resolve().parent
    same_disk = parent.stat().st_dev == folder.stat().st_dev
    return parent if same_disk and os.access(parent, os.W_OK) else folder


def sync_folder(folder: Path) -> None:
    """Makes a rename inside ``folder`` durable (POSIX only; elsewhere renames need none)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
