"""The whole journey in one call: compress, export, and the gate against the parent."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from planish.outputs import refuse_existing

if TYPE_CHECKING:
    from planish.gate import GateReport

__all__ = ["Shipped", "ship"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Shipped:
    """A shipped bundle: where it lies, the parent's bundle if it was kept, and what the gate said."""

    path: Path
    parent: Path | None
    gate: GateReport


def ship(
    model: str,
    recipe: str,
    output: Path,
    *,
    profile: str = "cpu-x86-avx512-vnni",
    task: str | None = None,
    opset: int = 21,
    atol: float | None = None,
    data: Path | None = None,
    max_loss: float = 0.5,
    no_latency: bool = False,
    seconds: float = 30.0,
    keep_checkpoint: Path | None = None,
    keep_parent: Path | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Shipped:
    """Compress ``model`` by ``recipe``, export it and its parent, compare them, write the verdict into the manifest.

    ``keep_checkpoint`` and ``keep_parent`` are folders that keep the quantized checkpoint and the parent's float
    bundle. A bundle that regresses is renamed ``<output>.rejected``, so that nothing ships by accident.

    Raises ``InputError`` before any work if an output exists, ``ParityError`` if a graph does not compute what its
    checkpoint computes, and what ``compress``, ``export`` and ``gate`` raise.
    """
    from planish import compress, export, gate, runtime

    rejected = output.with_name(output.name + ".rejected")
    for path in filter(None, (output, rejected, keep_checkpoint, keep_parent)):
        refuse_existing(path)
    compress.load_recipe(recipe)  # a wrong recipe is said before minutes of work
    output.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".work", dir=output.parent))
    try:
        checkpoint, parent, candidate = work / "checkpoint", work / "parent", work / "bundle"
        source = as_directory(model, work / "source", trust_remote_code)
        compress.compress(str(source), recipe, checkpoint, progress=progress, trust_remote_code=trust_remote_code)
        export.export(checkpoint, candidate, profile=profile, task=task, opset=opset, atol=atol, progress=progress)
        export.export(source, parent, profile=profile, task=task, opset=opset, progress=progress)
        report = gate.gate(
            candidate,
            parent,
            data=data,
            limits=gate.Limits(max_loss_points=max_loss),
            latency=not no_latency,
            seconds=seconds,
            progress=progress,
        )
        runtime.update_manifest(candidate, gates=[report.to_json()])
        place = rejected if report.verdict == "regress" else output
        for made, kept in ((checkpoint, keep_checkpoint), (parent, keep_parent), (candidate, place)):
            if kept is not None:
                move(made, kept)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Shipped(place, keep_parent, report)


def as_directory(model: str, folder: Path, trust_remote_code: bool) -> Path:
    """The directory of a checkpoint; a GGUF file is written out as one, so that compress and export read the same."""
    from planish import compress
    from planish.compress.gguf_source import gguf_checkpoint

    opened = compress.open_checkpoint(model, trust_remote_code)
    return gguf_checkpoint(opened.path, folder) if opened.is_gguf else opened.path


def move(made: Path, kept: Path) -> None:
    """Rename a finished folder to its place; an empty folder there gives way."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    if kept.is_dir():
        kept.rmdir()
    try:
        os.rename(made, kept)
    except OSError:  # another file system
        shutil.copytree(made, kept)
