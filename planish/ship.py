"""The whole journey in one call: compress, export, and the gate against the parent."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from planish.errors import InputError, PlanishError
from planish.outputs import check_output, disk_errors, move, refuse_existing, refuse_nested

if TYPE_CHECKING:
    from planish.compress import Checkpoint
    from planish.export import BuildResult
    from planish.gate import Dataset, GateReport

__all__ = ["Shipped", "ship"]

Progress = Callable[[str, int, int], None]

PIECES = ".checkpoint.partial"  # what compress continues from when its output is called "checkpoint"
OURS = ("lock", "source", "checkpoint", "parent", "bundle")  # what lies in a work folder


@dataclass(frozen=True)
class Shipped:
    """A shipped bundle: where it lies, the parent's bundle if it was kept, and what the gate said.

    ``engine`` is what became of the engine where the profile has one that can be built here, else None.
    """

    path: Path
    parent: Path | None
    gate: GateReport
    engine: BuildResult | PlanishError | None = None


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
    train: Path | None = None,
    validation: Path | None = None,
    seed: int | None = None,
    max_loss: float = 0.5,
    no_latency: bool = False,
    seconds: float = 30.0,
    keep_checkpoint: Path | None = None,
    keep_parent: Path | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Shipped:
    """Compress ``model`` by ``recipe``, export it and its parent, compare them, write the verdict into the manifest.

    ``train``, ``validation`` and ``seed`` replace the recipe's; ``data`` is what the gate judges on.
    ``keep_checkpoint`` and ``keep_parent`` are folders that keep the quantized checkpoint and the parent's float
    bundle. A bundle that regresses is renamed ``<output>.rejected``, so that nothing ships by accident. Killed or
    interrupted while it compresses, the same call continues at the last finished layer.

    Raises ``InputError`` before it compresses if an argument cannot be used or an output exists, ``ParityError`` if a
    graph does not compute what its checkpoint computes, and what ``compress``, ``export`` and ``gate`` raise.
    """
    from planish import compress, export, gate, profiles, runtime
    from planish.export.parity import tolerance
    from planish.gate.limits import check_seconds

    target, rejected, keep_checkpoint, keep_parent = check_places(output, keep_checkpoint, keep_parent)
    plan = compress.load_recipe(recipe).on(train, validation, seed)
    profiles.load(profile)
    tolerance(atol)
    check_seconds(seconds)
    limits = gate.Limits(max_loss_points=max_loss)
    opened = compress.open_checkpoint(model, trust_remote_code)
    samples = read_samples(opened, task, data)
    with work_folder(target.parent / f".{target.name}.work") as work:
        checkpoint, parent, candidate = work / "checkpoint", work / "parent", work / "bundle"
        source = as_directory(opened, work / "source")
        # The parent first: what export refuses (task, opset, architecture) is said before the long part.
        export.export(source, parent, profile=profile, task=task, opset=opset, dialects=("ort",), progress=progress)
        compress.compress(str(source), plan, checkpoint, progress=progress, trust_remote_code=trust_remote_code)
        export.export(checkpoint, candidate, profile=profile, task=task, opset=opset, atol=atol, progress=progress)
        report = gate.gate(
            candidate,
            parent,
            data=samples,
            limits=limits,
            latency=not no_latency,
            seconds=seconds,
            progress=progress,
        )
        runtime.update_manifest(candidate, gates=[report.to_json()])
        place = rejected if report.verdict == "regress" else target
        # The bundle first: it is the work of the longest time, and must not go if another place is full.
        for made, kept in ((candidate, place), (checkpoint, keep_checkpoint), (parent, keep_parent)):
            if kept is not None:
                move(made, kept)
    engine = build_ahead(place, profile, progress) if place == target else None
    return Shipped(place, keep_parent, report, engine)


def build_ahead(bundle: Path, profile: str, progress: Progress | None) -> BuildResult | PlanishError | None:
    """The engine of a finished bundle, where the profile's first engine can be built on any host, else None.

    The bundle serves without it, so an engine that cannot be built is told, not raised.
    """
    from planish import export, profiles

    first = profiles.load(profile).engines[0]
    if first.build != "anywhere":
        return None
    try:
        return export.build(bundle, profile=profile, progress=progress)
    except PlanishError as error:
        return error


def check_places(
    output: Path, keep_checkpoint: Path | None, keep_parent: Path | None
) -> tuple[Path, Path, Path | None, Path | None]:
    """Absolute paths of the bundle, the rejected bundle and what is kept, all free and none inside another.

    Raises ``InputError`` else.
    """
    target = Path(os.path.abspath(output))
    rejected = target.parent / f"{target.name}.rejected"
    kept = {"--keep-checkpoint": keep_checkpoint, "--keep-parent": keep_parent}
    places = {name: Path(os.path.abspath(path)) for name, path in kept.items() if path is not None}
    refuse_nested({"--output": target, "the rejected bundle": rejected, **places})
    for path in (target, *places.values()):
        check_output(path)
    refuse_existing(rejected)
    return target, rejected, places.get("--keep-checkpoint"), places.get("--keep-parent")


def read_samples(opened: Checkpoint, task: str | None, data: Path | None) -> Dataset | None:
    """The evaluation file, checked against the checkpoint's task and labels; no weights are read.

    Raises ``InputError`` for an unknown task, ``DataError`` for a bad line.
    """
    from planish.export.describe import infer_task, label_fields
    from planish.gate import load_data

    chosen = infer_task(opened.raw_config, task)
    if data is None:
        return None
    if opened.is_gguf:
        return load_data(data, chosen)
    return load_data(data, chosen, **label_fields(opened.raw_config, chosen))


def as_directory(opened: Checkpoint, folder: Path) -> Path:
    """The directory of a checkpoint; a GGUF file is written out as one, so that compress and export read the same."""
    from planish.compress.gguf_source import gguf_checkpoint

    return gguf_checkpoint(opened.path, folder) if opened.is_gguf else opened.path


@contextlib.contextmanager
def work_folder(path: Path) -> Iterator[Path]:
    """The folder beside the output where the parts are made, locked; it goes at the end, well or not.

    Only what an interrupted or killed compress continues from is kept, so its name does not change from run to run.

    Raises ``InputError`` if another run is using it, or something of that name is not ours.
    """
    if path.is_symlink() or (path.exists() and not is_ours(path)):
        raise InputError(f"no foreign folder at {path}", "one that planish did not write", "move it away")
    with disk_errors(path.parent):
        path.mkdir(exist_ok=True)
        lock = os.open(path / "lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise InputError(f"{path} to be free", "another run using it", "wait for it to end") from None
    keep = False
    try:
        remove_parts(path)
        yield path
    except (KeyboardInterrupt, InputError) as stop:  # a slip in the second call must not cost the first one's layers
        keep = (path / PIECES).is_dir()
        if isinstance(stop, KeyboardInterrupt) and keep and not str(stop):
            raise KeyboardInterrupt(
                f"finished layers are kept in {path / PIECES}; the same command continues"
            ) from None
        raise
    finally:
        if keep:
            remove_parts(path)
        else:
            shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def is_ours(path: Path) -> bool:
    """Whether nothing but what a shipping run writes is in the folder."""
    return path.is_dir() and all(item.name.lstrip(".").split(".")[0] in OURS for item in path.iterdir())


def remove_parts(path: Path) -> None:
    """Take all out of a work folder but the lock and what compress continues from."""
    for item in path.iterdir():
        if item.name not in ("lock", PIECES):
            shutil.rmtree(item, ignore_errors=True)
