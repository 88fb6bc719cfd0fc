"""Verify: a bundle is what its manifest says, file by file, before anything in it is opened.

This finds damage, mistakes, and files swapped in; it does not prove who wrote the bundle: whoever can write the
manifest can write a consistent one. External data of an ONNX model is covered without reading the model: its bytes are
fixed by its digest, every file beside it by its own, links are refused, and ONNX Runtime refuses paths that leave the
model's folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from planish.errors import BundleError
from planish.runtime.files import (
    FileState,
    bundle_path,
    hash_file,
    list_files,
    read_limited,
    refuse_empty,
    state_of,
)
from planish.runtime.manifest import MANIFEST, Manifest, read_manifest

__all__ = ["Verified", "check_unchanged", "read_verified", "verify", "verify_files"]


@dataclass(frozen=True)
class Verified:
    """A bundle whose every file was hashed, and the state each file was in then."""

    root: Path
    manifest: Manifest
    states: Mapping[str, FileState]


def verify(bundle: str | os.PathLike[str]) -> Manifest:
    """Checks the manifest and every file of a bundle; returns the manifest.

    Raises BundleError for a changed, missing, extra, linked or special file, an empty folder and a damaged manifest.
    Reads every byte once; sizes are compared first. Folders in ``engines/`` that the manifest does not name are builds
    under way, and none of its business.
    """
    return verify_files(bundle).manifest


def verify_files(bundle: str | os.PathLike[str]) -> Verified:
    """As :func:`verify`, and remembers the state of each file, for :func:`check_unchanged`."""
    root = bundle_path(bundle)
    manifest = read_manifest(root)
    found, empty = list_files(root, manifest.engines)
    found.pop(MANIFEST, None)
    _compare_names(manifest, found)
    refuse_empty(empty)
    for name, entry in manifest.files.items():
        if found[name].size != entry.size:
            raise BundleError(f"{name} of {entry.size} bytes", f"{found[name].size} bytes", _COPY)
    states = {}
    for name, entry in manifest.files.items():
        digest, states[name] = hash_file(root / name, found[name])
        if digest != entry.sha256:
            raise BundleError(f"{name} with sha256 {entry.sha256[:12]}...", f"{digest[:12]}...", _COPY)
    return Verified(root, manifest, states)


def read_verified(verified: Verified, name: str) -> bytes | None:
    """The bytes of one verified file, None when there is no such file. Raises BundleError when it changed since."""
    if name not in verified.states:
        return None
    data = read_limited(verified.root / name, verified.states[name].size)
    check_unchanged(verified, name)
    return data


def check_unchanged(verified: Verified, *names: str) -> None:
    """Raises BundleError when a file is no longer the one that was hashed.

    Called after an engine opened the files by path: so the bytes it read are the bytes that were verified, without
    a second copy of the model in memory.
    """
    for name in names or verified.states:
        try:
            now = state_of(os.lstat(verified.root / name))
        except OSError as error:
            raise BundleError(f"{name} to stay while it is loaded", str(error), _STOP) from error
        if now != verified.states[name]:
            raise BundleError(f"{name} to hold still while it is loaded", "a change", _STOP)


def _compare_names(manifest: Manifest, found: Mapping[str, FileState]) -> None:
    missing = sorted(set(manifest.files) - set(found))
    extra = sorted(set(found) - set(manifest.files))
    if missing:
        raise BundleError(f"every file of the manifest in the bundle, {missing[0]} too", "no such file", _COPY)
    if extra:
        raise BundleError("no file that the manifest does not name", extra[0], "move it out of the bundle")


_COPY = "copy the bundle again, or export it again"
_STOP = "stop whatever writes into the bundle"
