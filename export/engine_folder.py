"""The folder an engine is built in, and the switch that makes it one of the bundle's (docs/formats.md, section 5c)."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from planish import runtime
from planish.errors import HostError
from planish.outputs import disk_errors, sync
from planish.runtime import EngineInfo, Manifest

__all__ = ["locked", "switch_on", "workshop", "write_info", "write_plan"]


@contextlib.contextmanager
def locked(bundle: Path) -> Iterator[None]:
    """One build a bundle. The lock is on the folder itself: no file is left, and the system lets go of a dead build's.

    Raises:
        HostError: another build is running.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        yield
        return
    handle = os.open(bundle, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            fix = "wait until it is done"
            raise HostError(f"no other build in {bundle}", "one that is running", fix) from error
        except OSError as error:  # a file system that knows no locks
            got, fix = error.strerror or str(error), "copy the bundle to a local disk"
            raise HostError(f"a lock on {bundle}", got, fix) from error
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def workshop(bundle: Path, name: str) -> Iterator[Path]:
    """The folder ``engines/.<id>/`` to build in, without what a killed build left; removed if anything stops it."""
    engines = bundle / "engines"
    folder = engines / f".{name}"
    shutil.rmtree(folder, ignore_errors=True)
    with disk_errors(bundle):
        folder.mkdir(parents=True)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            engines.rmdir()  # only if it is empty
        raise


def write_plan(folder: Path, plan: Any) -> None:
    """Writes ``model.plan`` from the builder's own memory; raises ``HostError`` if the disk refuses."""
    with disk_errors(folder), open(folder / "model.plan", "xb") as file:
        file.write(plan)
        file.flush()
        os.fsync(file.fileno())


def write_info(folder: Path, info: EngineInfo) -> None:
    """Writes ``engine.json`` and pushes the folder to the disk; raises ``HostError`` if it refuses."""
    with disk_errors(folder):
        runtime.write_engine_info(folder / "engine.json", info)
        sync(folder)


def switch_on(bundle: Path, folder: Path, name: str, *, prove: bool) -> Manifest:
    """Puts a finished engine in its place and into the manifest, in place of an older one of that id.

    With ``prove`` it has to pass the golden set on this host's GPU first, while nobody else can load it.
    """
    target = bundle / "engines" / name
    if name in runtime.read_manifest(bundle).engines:
        runtime.remove_engine(bundle, name)
    shutil.rmtree(target, ignore_errors=True)  # of a build that was killed right here
    with disk_errors(bundle):
        os.rename(folder, target)
        sync(target.parent)
    try:
        return runtime.add_engine(bundle, name, proved=runtime.try_engine(bundle, name) if prove else None)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        with contextlib.suppress(OSError):
            target.parent.rmdir()  # only if it is empty
        raise
