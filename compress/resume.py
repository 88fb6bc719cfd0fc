"""The work folder of a run: finished pieces on disk, so that a killed run continues where it stopped.

``.<output>.partial/`` beside the output holds ``key.json`` (recipe, source, versions) and one safetensors file a
finished piece, each written aside, synced and renamed. Pieces of another recipe or checkpoint are thrown away, never
mixed in. The folder goes when the run ends, well or not; only a killed or interrupted run leaves it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from planish.compress.bench import Stored
from planish.compress.grid import Quantized
from planish.compress.safetensors_file import read_header
from planish.errors import CheckpointError, InputError
from planish.outputs import sync

__all__ = ["Pieces", "WorkFolder"]


class WorkFolder:
    """The folder as a whole; made when the first piece is saved.

    Raises:
        InputError: another run is using it, or something of that name is not ours.
    """

    def __init__(self, output: Path, key: dict[str, Any]) -> None:
        self.path = output.parent / f".{output.name}.partial"
        self._key = key
        self._lock: int | None = None
        if self.path.is_symlink() or (self.path.exists() and not self._ours()):
            raise InputError(f"no foreign folder at {self.path}", "one that planish did not write", "move it away")
        if self.path.is_dir():
            self._acquire()
            if self._read_key() != key:
                self._empty()

    def pieces(self, index: int) -> Pieces:
        """Pieces of the pass with this number in the recipe."""
        return Pieces(self, f"pass-{index}")

    def piece(self, name: str) -> Pieces:
        """Pieces that belong to no pass."""
        return Pieces(self, f"pass-{name}")

    def has_pieces(self) -> bool:
        return self.path.is_dir() and any(self.path.glob("*.safetensors"))

    def make(self) -> None:
        """Create the folder and write the key, once."""
        if self._lock is None:
            self.path.mkdir(exist_ok=True)
            self._acquire()
        if self._read_key() != self._key:
            write_synced(self.path / "key.json", json.dumps(self._key, sort_keys=True).encode())

    def close(self, *, keep: bool) -> None:
        """Remove the folder, or leave it (``keep``) to a run that continues."""
        if not keep:
            shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _ours(self) -> bool:
        names = {"key.json", "lock"}
        return self.path.is_dir() and all(
            item.name in names or item.name.startswith(("pass-", "key.json.")) for item in self.path.iterdir()
        )

    def _acquire(self) -> None:
        self._lock = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = None
            raise InputError(f"{self.path} to be free", "another run using it", "wait for it to end") from None

    def _read_key(self) -> Any:
        try:
            return json.loads((self.path / "key.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _empty(self) -> None:
        for item in self.path.iterdir():
            if item.name != "lock":
                item.unlink()


class Pieces:
    """Finished pieces of one pass: layers by name, as stored.

    ``tag`` guards what the key cannot know in advance, such as the calibration tokens.
    """

    def __init__(self, folder: WorkFolder, name: str) -> None:
        self._folder = folder
        self._name = name

    def load(self, piece: str, tag: str) -> dict[str, Stored] | None:
        """A piece saved with the same tag by an earlier run, else None."""
        saved = self.load_state(piece, tag)
        if saved is None:
            return None
        tensors, layers = saved
        return {name: _unpack(facts, name, tensors) for name, facts in layers}

    def save(self, piece: str, tag: str, layers: dict[str, Stored]) -> None:
        """Write a piece: aside, synced, renamed."""
        tensors: dict[str, torch.Tensor] = {}
        for name, stored in layers.items():
            q = stored.quantized
            tensors |= {f"{name}:values": q.values, f"{name}:scale": q.scale}
            if q.zero_point is not None:
                tensors[f"{name}:zero_point"] = q.zero_point
        self.save_state(piece, tag, tensors, [(name, _facts(stored)) for name, stored in layers.items()])

    def load_state(self, piece: str, tag: str) -> tuple[dict[str, torch.Tensor], Any] | None:
        """Tensors and facts saved with the same tag by an earlier run, else None."""
        path = self._path(piece)
        if not path.is_file():
            return None
        try:
            read_header(path)
        except CheckpointError:
            return None
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("tag") != tag:
                return None
            return {key: file.get_tensor(key) for key in file.keys()}, json.loads(metadata["facts"])  # noqa: SIM118

    def save_state(self, piece: str, tag: str, tensors: dict[str, torch.Tensor], facts: Any) -> None:
        """Write tensors and facts (plain JSON): aside, synced, renamed."""
        self._folder.make()
        path = self._path(piece)
        aside = path.with_suffix(".tmp")
        save_file(
            {key: value.contiguous() for key, value in tensors.items()},
            aside,
            metadata={"tag": tag, "facts": json.dumps(facts)},
        )
        _sync_rename(aside, path)

    def _path(self, piece: str) -> Path:
        return self._folder.path / f"{self._name}-{piece}.safetensors"


def _facts(stored: Stored) -> dict[str, Any]:
    q = stored.quantized
    return {
        "bits": q.bits,
        "group_size": q.group_size,
        "packed": stored.packed,
        "activations": stored.activations,
        "quality": stored.quality,
    }


def _unpack(facts: dict[str, Any], name: str, tensors: dict[str, torch.Tensor]) -> Stored:
    quantized = Quantized(
        tensors[f"{name}:values"],
        tensors[f"{name}:scale"],
        tensors.get(f"{name}:zero_point"),
        facts["bits"],
        facts["group_size"],
    )
    return Stored(quantized, facts["packed"], facts["activations"], facts["quality"])


def write_synced(path: Path, content: bytes) -> None:
    """Write a small file aside, sync it, rename it into place."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_bytes(content)
    _sync_rename(aside, path)


def _sync_rename(aside: Path, path: Path) -> None:
    sync(aside)
    os.replace(aside, path)
    sync(path.parent)
