"""Record a bundle as a baseline: run it once and keep what it said, so that a later gate can do without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from planish import __version__
from planish.errors import DataError, HostError, InconclusiveError, InputError
from planish.gate.baseline_file import (
    BaselineFile,
    RecordedBundle,
    RecordedLatency,
    RecordedSample,
    RecordedWindows,
    data_of,
    readable,
    sample_of,
    spelled,
    times_of,
)
from planish.gate.clock import Clock, ProcessClock
from planish.gate.data import Dataset
from planish.gate.fingerprint import Fingerprint, fingerprint_of
from planish.gate.likelihood import CONTEXT, WindowError, context_for, cut_windows, tokenized
from planish.gate.limits import check_seconds
from planish.gate.memory import peak_memory
from planish.gate.outputs import collect
from planish.gate.packed import pack
from planish.gate.parents import window_alone, windows_digest
from planish.gate.pick_baseline import baseline_name
from planish.gate.sit_alone import sit_alone, timed_on
from planish.gate.verdict import BASELINE_FAILURES, DEFAULT_TOKENS, dataset_for, side_of
from planish.gate.workloads import GATE_SHAPES, shapes_for
from planish.runtime.files import replace_file
from planish.runtime.loader import load

if TYPE_CHECKING:
    from planish.runtime.model import Model

__all__ = ["record_baseline"]

Progress = Callable[[str, int, int], None] | None


def record_baseline(
    bundle: str | Path,
    directory: str | Path,
    *,
    data: str | Path | Dataset | None = None,
    texts: str | Path | Sequence[str] | None = None,
    latency: bool = True,
    seconds: float = 20.0,
    seed: int = 0,
    shapes: Sequence[tuple[int, int]] | None = None,
    device: str = "auto",
    threads: int | None = None,
    replace: bool = False,
    clock: Clock | None = None,
    progress: Progress = None,
) -> Path:
    """Run a bundle on data and write ``directory/<bundle's name>.<fingerprint>.json``, whole or not at all.

    Args:
        directory: made if it is not there.
        data, texts, shapes, device, threads, clock: as of `planish.gate.gate`.
        latency: also its times, in up to nine sittings, and its peak memory.
        seconds: after which no further sitting begins.
        replace: an existing file of that name; else it is refused.

    Raises:
        InputError: the file is there, the directory cannot be, two sources of text.
        DataError: a bad line in the data, or too little text.
        BundleError: the bundle is damaged.
        InconclusiveError: the bundle fails on more than 1 % of the samples; its memory cannot be measured.
        HostError: the disk refuses.
    """
    if data is not None and texts is not None:
        raise InputError("data or texts", "both", "leave one out")
    check_seconds(seconds)
    folder, builtin = checked_folder(Path(directory)), data is None and texts is None
    with load(bundle, device, threads=threads) as model:
        judged, timed = timed_on(model, threads)
        here, manifest = fingerprint_of(model, device, timed), model.manifest
        side = side_of(bundle, manifest, model.dialect)
        path = free_path(folder, readable(side.name), here, replace)
        samples = dataset_for(model, data, texts)
        wanted = shapes_for([model], shapes, GATE_SHAPES) if latency else []
        windows, said = told_by(model, samples, DEFAULT_TOKENS if builtin else None, progress)
    refuse_failing(said)
    times: RecordedLatency | None = None
    memory: int | None = None
    if latency:
        found = sit_alone(
            bundle,
            wanted,
            clock or ProcessClock(),
            seconds=seconds,
            seed=seed,
            device=device,
            threads=timed,
            progress=progress,
        )
        times = times_of(found, judged)
        memory = peak_memory(bundle, threads=threads, device=device)["peak_rss_bytes"]
    file = BaselineFile(
        schema=1,
        planish=__version__,
        bundle=RecordedBundle(readable(side.name), side.digest, side.bytes, memory, side.precision),
        task=manifest.task,
        labels=manifest.labels,
        problem_type=manifest.problem_type,
        vocab_size=manifest.vocab_size,
        fingerprint=here,
        data=data_of(samples),
        latency=times,
        windows=windows,
        samples=said,
    )
    write(path, file)
    return path


def free_path(folder: Path, name: str, here: Fingerprint, replace: bool) -> Path:
    """Where the file goes. Raises InputError for one that is there and shall stay."""
    path = folder / baseline_name(name, here)
    if path.exists() and not (replace and path.is_file()):
        raise InputError(f"no {path.name} in {folder} yet", "one", "keep it, or pass --replace")
    return path


def told_by(
    model: Model, samples: Dataset, most: int | None, progress: Progress
) -> tuple[RecordedWindows | None, tuple[RecordedSample, ...]]:
    """All a bundle says; of text-generation on the first ``most`` tokens."""
    if model.manifest.task == "text-generation" and not samples.labelled:
        return windows_said(model, samples, most, progress)
    return None, answers_said(model, samples, progress)


def checked_folder(folder: Path) -> Path:
    """Raises InputError where no directory is or can be made."""
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"a directory {folder}", "a file", "choose another -o")
        if not folder.exists() and not folder.absolute().parent.is_dir():
            raise InputError(f"a directory at {folder.parent}", "none", f"mkdir -p {folder.parent}")
    except OSError as error:  # a name too long, a folder we may not look into
        raise InputError(f"a directory {folder}", error.strerror or str(error), "choose another -o") from error
    return folder


def answers_said(model: Model, samples: Dataset, progress: Progress) -> tuple[RecordedSample, ...]:
    """An entry a sample."""
    said = collect(model, samples, "baseline", progress)
    failed = {failure.line: failure for failure in said.failures}
    pairs = zip(samples.samples, said.items, strict=True)
    return tuple(sample_of(sample.line, output, failed.get(sample.line)) for sample, output in pairs)


def windows_said(
    model: Model, samples: Dataset, most: int | None, progress: Progress
) -> tuple[RecordedWindows, tuple[RecordedSample, ...]]:
    """An entry a window: summed loss and likeliest tokens. Raises DataError for fewer than two tokens."""
    ids = tokenized(model, [sample.text for sample in samples.samples], most)
    generation = model.manifest.generation
    context = context_for(ids, generation.max_length if generation else CONTEXT)
    windows = cut_windows(ids, context)
    if not windows:
        raise DataError("text of at least two tokens", "less", "give more text")
    said = []
    for number, window in enumerate(windows, 1):
        try:
            loss, top = window_alone("baseline", model, window)
            said.append(RecordedSample(number, tokens=pack(top.astype(np.int64)), loss=loss))
        except WindowError as error:
            said.append(RecordedSample(number, failed=readable(str(error))))
        if progress:
            progress("perplexity", number, len(windows))
    return RecordedWindows(context, windows_digest(windows)), tuple(said)


def refuse_failing(said: Sequence[RecordedSample]) -> None:
    """Raises InconclusiveError for a baseline no gate could decide against (`planish.gate.verdict`)."""
    failed = [sample for sample in said if sample.failed is not None]
    if len(failed) > BASELINE_FAILURES * len(said):
        first = failed[0]
        got = f"failures on {len(failed)} of {len(said)} samples; sample {first.line}: {first.failed}"
        raise InconclusiveError("a bundle that answers", got, "correct the data, or give another bundle")


def write(path: Path, file: BaselineFile) -> None:
    """Raises HostError."""
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise HostError(f"to make {path.parent}", error.strerror or str(error), "check its permissions") from error
    replace_file(path, spelled(file).encode("utf-8"), scratch=path.parent)
