"""Digests: of files, of a checkpoint, of tensors in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

__all__ = ["checkpoint_digest", "combine", "file_sha256", "tensors_digest"]


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def combine(entries: Iterable[tuple[str, str]]) -> str:
    """``sha256:`` over the sorted (name, hex digest) pairs."""
    digest = hashlib.sha256()
    for name, value in sorted(entries):
        digest.update(f"{name}\0{value}\n".encode())
    return "sha256:" + digest.hexdigest()


def checkpoint_digest(files: Iterable[Path]) -> str:
    """Digest of a checkpoint: its weight files and config.json (docs/formats.md, section 1)."""
    return combine((path.name, file_sha256(path)) for path in files)


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Digest of tensors in memory, by name and bytes."""
    entries: list[tuple[str, str]] = []
    for name, tensor in tensors.items():
        flat = tensor.detach().contiguous().reshape(-1)
        entries.append((name, hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()))
    return combine(entries)
