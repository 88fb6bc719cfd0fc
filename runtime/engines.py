"""Engines come into a bundle and go out of it by one rename of its manifest; serving never sees half of one.

A builder fills ``engines/<anything>/``, which nobody looks at, renames that folder to the engine's id, and calls
:func:`add_engine`. Killed at any point it leaves a bundle that serves as before.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planish.errors import BundleError, HostError, nearest
from planish.runtime.decode import encode
from planish.runtime.engine_info import EngineInfo, read_engine_info
from planish.runtime.files import ENGINES, FileState, bundle_path, hash_file, list_files, refuse_empty
from planish.runtime.manifest import EngineEntry, FileEntry, Manifest, is_safe_path, read_manifest, rewrite_manifest

__all__ = ["add_engine", "check_known", "check_origin", "engine_changes", "record_proof", "remove_engine"]

FILES = ("engine.json", "model.plan")


def add_engine(bundle: str | os.PathLike[str], engine_id: str, *, proved: Mapping[str, Any] | None = None) -> Manifest:
    """Names ``engines/<engine_id>/`` in the manifest: from then on the runtime may choose it.

    ``proved`` is what :func:`planish.runtime.try_engine` said of it on this host. The folder has to hold ``model.plan``
    and ``engine.json`` and nothing else. Raises BundleError when it does not, when the engine was made from another
    graph than the bundle's, or when the name is taken: :func:`remove_engine` comes first then.
    """
    root = bundle_path(bundle)
    manifest = read_manifest(root)
    changes, _ = engine_changes(root, manifest, engine_id, proved)
    return _rewrite(root, manifest, **changes)


def engine_changes(
    root: Path, manifest: Manifest, engine_id: str, proved: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, FileState]]:
    """What naming an engine changes in the manifest, and the states its files were in when they were hashed.

    Raises as :func:`add_engine`.
    """
    if not is_safe_path(engine_id) or "/" in engine_id:
        raise BundleError("a folder's name for an engine", repr(engine_id), "take the one engine_id() gives")
    if engine_id in manifest.engines:
        raise BundleError("the id of a new engine", f"{engine_id!r}, which is there", "remove_engine() first")
    folder = root / ENGINES / engine_id
    if not folder.is_dir():
        raise BundleError(f"a folder {ENGINES}{engine_id}", "none", "build the engine first: planish build BUNDLE")
    found, empty = list_files(folder)
    refuse_empty(empty)
    if sorted(found) != list(FILES):
        raise BundleError(f"{' and '.join(FILES)} in {folder}", ", ".join(found) or "nothing", "build the engine again")
    info = read_engine_info(folder / "engine.json")
    check_origin(manifest, info)
    prefix = f"{ENGINES}{engine_id}/"
    hashed = {f"{prefix}{name}": hash_file(folder / name, state) for name, state in found.items()}
    files = {name: FileEntry(digest, state.size) for name, (digest, state) in hashed.items()}
    entry = EngineEntry(f"{prefix}model.plan", f"{prefix}engine.json", info.dialect, proved)
    changes = {"engines": {**manifest.engines, engine_id: entry}, "files": {**manifest.files, **files}}
    return changes, {name: state for name, (_, state) in hashed.items()}


def remove_engine(bundle: str | os.PathLike[str], engine_id: str) -> Manifest:
    """Takes an engine out of the manifest, then deletes its folder. Raises BundleError for an unknown id."""
    root = bundle_path(bundle)
    manifest = read_manifest(root)
    check_known(manifest, engine_id)
    prefix = f"{ENGINES}{engine_id}/"
    engines = {name: entry for name, entry in manifest.engines.items() if name != engine_id}
    files = {name: entry for name, entry in manifest.files.items() if not name.startswith(prefix)}
    after = _rewrite(root, manifest, engines=engines, files=files)
    try:
        shutil.rmtree(root / prefix)
        with contextlib.suppress(OSError):  # others are being built there
            (root / ENGINES).rmdir()
    except OSError as error:
        raise HostError(f"a folder {prefix} that can be deleted", str(error), "delete it by hand") from error
    return after


def record_proof(bundle: str | os.PathLike[str], engine_id: str, proof: dict[str, Any] | None) -> Manifest:
    """Sets an engine's ``proved``; see :func:`planish.runtime.prove_engine`, which finds out what to record."""
    root = bundle_path(bundle)
    manifest = read_manifest(root)
    check_known(manifest, engine_id)
    engines = {**encode(manifest.engines)}
    engines[engine_id] = {**engines[engine_id], "proved": proof}
    return _rewrite(root, manifest, engines=engines)


def check_origin(manifest: Manifest, info: EngineInfo) -> None:
    """Raises BundleError when the engine was not made from the bundle's graph."""
    dialect = manifest.dialects.get(info.dialect)
    if dialect is None:
        raise BundleError(
            f"the dialect {info.dialect!r} of the engine", ", ".join(manifest.dialects), "export it first"
        )
    folder = Path(dialect.path).parent.as_posix()
    graph = {
        name[len(folder) + 1 :]: entry.sha256 for name, entry in manifest.files.items() if name.startswith(folder + "/")
    }
    if dict(info.onnx_sha256) != graph:
        got = f"one made from {_short(info.onnx_sha256.get('model.onnx', '?'))}"
        fix = f"planish build BUNDLE --profile {info.profile}"
        raise BundleError(f"an engine made from {_short(graph.get('model.onnx', '?'))} ({dialect.path})", got, fix)


def _short(digest: str) -> str:
    return digest[:12]


def check_known(manifest: Manifest, engine_id: str) -> None:
    """Raises BundleError when the manifest has no engine of this id."""
    if engine_id not in manifest.engines:
        known = manifest.engines
        fix = nearest(engine_id, known) if known else "this bundle has none: planish build BUNDLE --profile P"
        raise BundleError("an engine of this bundle", repr(engine_id), fix)


def _rewrite(root: Path, manifest: Manifest, **changes: Any) -> Manifest:
    return rewrite_manifest(root, manifest.to_json(), encode(changes))
