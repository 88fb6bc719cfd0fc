"""The manifest of a bundle: what is in it, in typed fields, with the digest of every file.

The file is canonical JSON and carries its own digest, so that one changed bit anywhere in it is seen (docs/formats.md,
section 4). Reading checks the text alone; :func:`planish.runtime.verify` compares it with the files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from planish import __version__
from planish.errors import BundleError, nearest
from planish.runtime.decode import decode, encode
from planish.runtime.files import ENGINES, bundle_path, hash_file, list_files, read_limited, refuse_empty, replace_file

__all__ = [
    "MANIFEST",
    "Dialect",
    "EngineEntry",
    "FileEntry",
    "Generation",
    "Manifest",
    "Parity",
    "Pooling",
    "Task",
    "TensorInfo",
    "canonical",
    "read_manifest",
    "rewrite_manifest",
    "update_manifest",
    "write_manifest",
]

MANIFEST = "manifest.json"
SCHEMA = 1
MAX_BYTES = 16 << 20
"""A manifest is kilobytes; receipts of a large model stay far below this."""

Task = Literal[
    "feature-extraction",
    "text-classification",
    "token-classification",
    "question-answering",
    "fill-mask",
    "text-generation",
]


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of a graph; ``shape`` mixes sizes and names of dynamic axes."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Dialect:
    """One spelling of the model: where it lies and how its session has to be opened."""

    path: str
    opset: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    precision: Mapping[str, str] = field(default_factory=dict)
    session: Mapping[str, str] = field(default_factory=dict)
    disabled_optimizers: tuple[str, ...] = ()
    audit: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class EngineEntry:
    """A TensorRT plan of the bundle: docs/formats.md, section 5c. ``proved`` is None until it passed on a device."""

    path: str
    info: str
    dialect: str
    proved: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Pooling:
    """How token vectors become one sentence vector."""

    mode: Literal["mean", "cls", "max"]
    normalize: bool


@dataclass(frozen=True)
class Generation:
    """What a decoder's loop has to know; ``max_length`` counts prompt and answer together, in tokens."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    max_length: int
    cache_dtype: str
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FileEntry:
    """Digest (hexadecimal sha256) and size in bytes of one file."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Parity:
    """How far the exported graph was from the checkpoint, and how far it was allowed to be.

    ``golden_drift`` and ``golden_limit``: the same for the outputs in ``golden/``, as relative root mean square (see
    :func:`planish.runtime.golden_drift`). An engine made from the graph has to stay within the limit, too.
    """

    atol: float
    default_atol: float
    loosened: bool
    max_abs_error: float
    cases: tuple[Mapping[str, Any], ...] = ()
    golden_drift: float | None = None
    golden_limit: float | None = None


@dataclass(frozen=True)
class Manifest:
    """The whole manifest; docs/formats.md, section 4, explains each field."""

    schema: Literal[1]
    planish: str
    digest: str
    task: Task
    architecture: str
    model_type: str
    labels: tuple[str, ...] | None
    problem_type: Literal["single_label_classification", "multi_label_classification"] | None
    vocab_size: int
    max_length: int
    pad_token_id: int | None
    pooling: Pooling | None
    dialects: Mapping[str, Dialect]
    generation: Generation | None
    files: Mapping[str, FileEntry]
    source: Mapping[str, Any] | None
    recipe: Mapping[str, Any] | None
    receipts: tuple[Mapping[str, Any], ...]
    profile: str | None
    parity: Mapping[str, Parity]
    gates: tuple[Mapping[str, Any], ...]
    engines: Mapping[str, EngineEntry] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain dicts and lists, digest included."""
        result = encode(self)
        assert isinstance(result, dict)
        return result


OPTIONAL: dict[str, Any] = {
    "schema": SCHEMA,
    "planish": __version__,
    "labels": None,
    "problem_type": None,
    "pad_token_id": None,
    "pooling": None,
    "generation": None,
    "source": None,
    "recipe": None,
    "receipts": [],
    "profile": None,
    "parity": {},
    "gates": [],
    "engines": {},
}
"""What :func:`write_manifest` fills in when ``fields`` leaves it out."""

COMPUTED = ("digest", "files")
FIXED = ("digest", "files", "schema", "planish")


def canonical(obj: Any) -> bytes:
    """The one byte string of a JSON object: sorted keys, one space of indent, UTF-8, final newline, no NaN.

    Raises ValueError for NaN, infinity and lone surrogates, TypeError for what JSON does not know.

    >>> canonical({"b": 1, "a": "é"})
    b'{\\n "a": "\\xc3\\xa9",\\n "b": 1\\n}\\n'
    """
    text = json.dumps(obj, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8")


def read_manifest(bundle: str | os.PathLike[str]) -> Manifest:
    """Reads and checks ``manifest.json``: syntax, schema, digest, canonical form. The other files are not looked at.

    Raises BundleError when the directory or the manifest is missing, or any check fails, RequestError for what is no
    path.
    """
    return parse_manifest(_manifest_bytes(bundle_path(bundle)))


def parse_manifest(data: bytes) -> Manifest:
    """A manifest from the bytes of its file; raises BundleError."""
    raw = _parse_json(data)
    if raw.get("schema") != SCHEMA or isinstance(raw.get("schema"), bool):
        got = f"schema {raw.get('schema')!r}"
        raise BundleError(
            f"a manifest of schema {SCHEMA}", got, "install the planish that wrote the bundle, or export again"
        )
    try:
        same = data == canonical(raw)
    except (ValueError, RecursionError) as error:
        raise _damaged(f"values that JSON cannot hold ({error})") from error
    if not same:
        raise _damaged("another spelling of it")
    manifest = decode(Manifest, raw, MANIFEST)
    if manifest.digest != _digest(raw):
        raise _damaged("a text that does not match its own digest")
    _check_meaning(manifest)
    return manifest


def write_manifest(bundle_dir: str | os.PathLike[str], fields: Mapping[str, Any]) -> Manifest:
    """Hashes every file below ``bundle_dir`` and writes ``manifest.json`` atomically (temp, fsync, rename).

    ``fields`` are the manifest's keys without ``files`` and ``digest``; ``schema`` and ``planish`` are filled in.
    Call it last. Raises BundleError for links, special files, empty folders and fields that do not fit the schema,
    HostError when the disk refuses.
    """
    root = bundle_path(bundle_dir)
    for key in fields:
        if key in COMPUTED:
            raise BundleError("fields without computed keys", repr(key), "leave it out: it is computed here")
    found, empty = list_files(root, fields.get("engines", ()))
    refuse_empty(empty)
    files = {name: entry for name, entry in found.items() if name != MANIFEST}
    hashed = {name: {"sha256": hash_file(root / name, entry)[0], "size": entry.size} for name, entry in files.items()}
    return _write(root, {**OPTIONAL, **encode(fields), "files": hashed})


def update_manifest(bundle_dir: str | os.PathLike[str], **changes: Any) -> Manifest:
    """Rewrites the manifest with some keys changed (gate results, say); file digests stay as they are.

    Two updates at once: the last one wins. Raises BundleError when the manifest is damaged, a key is unknown or may
    not be changed.
    """
    root = bundle_path(bundle_dir)
    raw = read_manifest(root).to_json()
    for key in changes:
        if key in FIXED or key not in raw:
            raise BundleError("a key that may change", repr(key), nearest(key, set(raw) - set(FIXED)))
    return rewrite_manifest(root, raw, encode(changes))


def rewrite_manifest(root: Path, raw: Mapping[str, Any], changes: Mapping[str, Any]) -> Manifest:
    """Writes the manifest ``raw`` (as ``to_json`` gave it) with ``changes`` to any key: files, too, as they are now."""
    return _write(root, {**{key: value for key, value in raw.items() if key != "digest"}, **changes})


def _write(root: Path, raw: dict[str, Any]) -> Manifest:
    # Decoded once before it is signed, so that optional keys are written too and the file is complete.
    raw = decode(Manifest, {**raw, "digest": ""}, MANIFEST).to_json()
    try:
        raw["digest"] = _digest(raw)
        data = canonical(raw)
    except (TypeError, ValueError) as error:
        raise BundleError("fields that JSON can hold", str(error), "convert arrays and numpy numbers first") from error
    manifest = parse_manifest(data)
    replace_file(root / MANIFEST, data)
    return manifest


def _digest(raw: Mapping[str, Any]) -> str:
    text = canonical({key: value for key, value in raw.items() if key != "digest"})
    return "sha256:" + hashlib.sha256(text).hexdigest()


def _manifest_bytes(root: Path) -> bytes:
    if not root.is_dir():
        raise BundleError("a bundle directory", f"no directory at {root}", "make one with `planish export`")
    if not (root / MANIFEST).is_file():
        raise BundleError(f"a {MANIFEST} in {root}", "none", "make a bundle with `planish export`")
    return read_limited(root / MANIFEST, MAX_BYTES)


def _parse_json(data: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _damaged(f"something else ({error})") from error
    if not isinstance(raw, dict):
        raise _damaged(f"a {type(raw).__name__}")
    return raw


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key twice in one object")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"the constant {name}")


def _damaged(got: str) -> BundleError:
    return BundleError(f"{MANIFEST} as it was written", got, "copy the bundle again, or export it again")


def _check_meaning(manifest: Manifest) -> None:
    """What types cannot say: paths stay inside, digests look like digests, sizes are sizes."""
    for name, entry in manifest.files.items():
        if not is_safe_path(name) or name == MANIFEST:
            raise BundleError("file names inside the bundle", repr(name), "export the bundle again")
        if not re.fullmatch(r"[0-9a-f]{64}", entry.sha256) or entry.size < 0:
            raise BundleError(f"a sha256 and a size for {name}", repr(entry), "export the bundle again")
    for name, dialect in manifest.dialects.items():
        if dialect.path not in manifest.files:
            raise BundleError(f"the {name} model among the files", repr(dialect.path), "export the bundle again")
    _check_engines(manifest)
    for name in ("vocab_size", "max_length"):
        if getattr(manifest, name) < 1:
            raise BundleError(f"{name} of at least 1", str(getattr(manifest, name)), "export the bundle again")


def _check_engines(manifest: Manifest) -> None:
    """Engines lie where their names say, and no other file lies in their folder."""
    allowed = set()
    for name, engine in manifest.engines.items():
        folder = f"{ENGINES}{name}"
        if "/" in name or not is_safe_path(folder):
            raise BundleError("a folder's name for an engine", repr(name), "build it again")
        if (engine.path, engine.info) != (f"{folder}/model.plan", f"{folder}/engine.json"):
            raise BundleError(f"the files of the engine in {folder}", repr(engine.path), "build it again")
        if engine.dialect not in manifest.dialects:
            raise BundleError(f"the dialect of the engine {name}", repr(engine.dialect), "export the bundle again")
        allowed |= {engine.path, engine.info}
    there = {name for name in manifest.files if name.startswith(ENGINES)}
    if there != allowed:
        odd = min(there ^ allowed)
        raise BundleError("the two files of each engine among the files", repr(odd), "build the engine again")


def is_safe_path(name: str) -> bool:
    """Whether ``name`` is a plain relative path with forward slashes that cannot leave its directory.

    >>> [is_safe_path(name) for name in ("onnx/ort/model.onnx", "../x", "/x", "a//b", "a\\\\b", "C:x", "")]
    [True, False, False, False, False, False, False]
    """
    parts = name.split("/")
    plain = all(part not in ("", ".", "..") for part in parts)
    return plain and not re.search(r"[\\:\x00-\x1f\x7f]", name)


def field_names() -> tuple[str, ...]:
    """The manifest's keys, in order."""
    return tuple(item.name for item in dataclasses.fields(Manifest))
