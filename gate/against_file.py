"""The gate against a baseline file: the candidate runs here, the baseline's answers were kept.

Accuracy and agreement are judged sample by sample, by the same checks as against an open bundle, on the same data. Size
is as it is there. Times and peak memory are reported beside the file's and judge nothing: sessions of one bundle differ
by 1-3 % within a process, and by more between days (`planish.gate.latency`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from planish.errors import InconclusiveError, InputError
from planish.gate.baseline_file import BaselineFile, RecordedLatency, data_of, readable
from planish.gate.budgets import judge_measured_budgets
from planish.gate.checks import Check, Verdict
from planish.gate.clock import Clock, KeptClock, ProcessClock, Timing, environment
from planish.gate.data import Dataset
from planish.gate.fingerprint import Fingerprint, fingerprint_of
from planish.gate.limits import Limits
from planish.gate.memory import peak_memory
from planish.gate.parents import RecordedParent
from planish.gate.pick_baseline import pick_baseline
from planish.gate.report import GateReport, Side
from planish.gate.sit_alone import sit_alone, timed_on
from planish.gate.verdict import DEFAULT_TOKENS, Session, dataset_for, report_of, same_kind, side_of
from planish.gate.workloads import Shape, longest_input, shapes_for
from planish.runtime.loader import load

if TYPE_CHECKING:
    from planish.runtime.model import Model

__all__ = ["Options", "gate_against_file"]

WHY_NOT = "reported, not judged: it was not measured in the same session"
NO_DIVERGENCE = "KL divergence: not available, since it takes all the baseline's logits, and a file holds none"


@dataclass(frozen=True)
class Options:
    """What `planish.gate.gate` was told, in its words."""

    limits: Limits
    latency: bool
    seconds: float
    seed: int
    shapes: Sequence[tuple[int, int]] | None
    device: str
    threads: int | None
    across_devices: bool
    clock: Clock | None
    progress: Callable[[str, int, int], None] | None
    memory: bool = False
    energy: bool = False


def gate_against_file(
    candidate: str | Path,
    baseline: str | Path,
    *,
    data: str | Path | Dataset | None,
    texts: str | Path | Sequence[str] | None,
    options: Options,
) -> GateReport:
    """Compare a bundle with a baseline file, or with the one of a directory that fits.

    Raises:
        InputError: no file fits, or it is of another kind, device or data; a limit that takes an open baseline.
        DataError: a bad line in the data.
        BundleError: the candidate is damaged.
    """
    begun = time.perf_counter()
    refuse_limits(options.limits)
    with load(candidate, options.device, threads=options.threads) as new:
        judged, threads = timed_on(new, options.threads)
        here = fingerprint_of(new, options.device, threads)
        path, file = pick_baseline(baseline, new.manifest.task, here, across_devices=options.across_devices)
        same_kind(new.manifest, file)
        samples = dataset_for(new, data, texts)
        check_data(file, samples)
        session = Session(new, RecordedParent(file), samples, options.limits, options.seed, options.progress)
        if file.windows is not None:
            session.judge_generation(DEFAULT_TOKENS if data is None and texts is None else None)
            session.checks.append(not_available("KL divergence", "nats", NO_DIVERGENCE))
        else:
            session.judge()
        session.judge_bytes()
        shapes = shapes_of(new, file.latency, options.shapes) if options.latency else []
    session.checks += judge_measured_budgets(
        candidate, options.limits, memory=options.memory, energy=options.energy, shapes=options.shapes,
        device=options.device, threads=options.threads,
    )  # fmt: skip
    before = {**environment(), "threads": threads, "judged": judged}
    side = side_of(candidate, new.manifest, new.dialect)
    session.checks.append(beside("size", side.bytes, file.bundle.bytes, "bytes"))
    if options.latency:
        session.checks.append(memory_check(candidate, file, session.checks, options))
        session.checks += latency_checks(candidate, file.latency, shapes, judged, threads, options)
    old = Side(file.bundle.name, file.bundle.digest, file.bundle.bytes, dict(file.bundle.precision))
    return report_of(session, (side, old), before, time.perf_counter() - begun, notes_of(path, file, here))


def refuse_limits(limits: Limits) -> None:
    """Raises InputError for limits that only an open baseline can be held to."""
    for name, value, why in (
        ("max_kl", limits.max_kl, "a baseline file holds no logits"),
        ("require_speedup", limits.require_speedup, "times of two sessions are not comparable"),
        ("max_wall_ratio", limits.max_wall_ratio, "times of two sessions are not comparable"),
    ):
        if value is not None:
            raise InputError(f"a bundle as the baseline for {name}", f"a baseline file: {why}", "give the bundle")


def check_data(file: BaselineFile, samples: Dataset) -> None:
    """Raises InputError unless the baseline was asked just these samples."""
    wanted, got = file.data, data_of(samples)
    if got.digest != wanted.digest:
        told, mine = (f"{data.name} ({data.samples} samples, {data.digest[:15]})" for data in (wanted, got))
        raise InputError(
            f"the data the baseline was asked, {told}", mine, "give that data, or record the baseline again on this"
        )
    lines = [sample.line for sample in samples.samples]
    if file.windows is None and [sample.line for sample in file.samples] != lines:
        raise InputError("an answer of the baseline to every line of the data", "others", "record the baseline again")


def notes_of(path: Path, file: BaselineFile, here: Fingerprint) -> list[str]:
    """What a reader has to know: where the baseline's answers come from, and whether from another device."""
    apart = [f"{name} {theirs} (here {ours})" for name, theirs, ours in file.fingerprint.differences(here)]
    other = [f"baseline from another device: {', '.join(apart)}"] if apart else []
    return [f"baseline from a file: {readable(path.name)}, latency is reported and not judged", *other]


def shapes_of(model: Model, kept: RecordedLatency | None, wanted: Sequence[tuple[int, int]] | None) -> list[Shape]:
    """The shapes asked for, else those the file has times of and the candidate takes."""
    pairs = (name.split(" ")[0].split("x") for name in (kept.times if kept else ()))
    shapes = dict.fromkeys((int(batch), int(length)) for batch, length in pairs)
    room = longest_input(model)
    return shapes_for([model], wanted or [shape for shape in shapes if shape[1] <= room], {})


def not_available(name: str, unit: str, reason: str) -> Check:
    """A quantity that is asked for everywhere else and cannot be had here."""
    return Check(name, Verdict.PASS, math.nan, None, unit, reason, required=False)


def beside(name: str, new: float, old: float, unit: str) -> Check:
    """A quantity of both sides, reported as a ratio."""
    ratio = new / old if old else math.nan
    reason = f"{name} {new:,.0f} {unit}, {ratio:.3f} times the baseline's {old:,.0f}"
    return Check(f"{name} ratio", Verdict.PASS, ratio, None, "ratio", reason, required=False)


def memory_check(candidate: str | Path, file: BaselineFile, checks: Sequence[Check], options: Options) -> Check:
    """Peak memory beside the file's, reported, even where it cannot be had; what a budget measured is taken from it."""
    name, old = "peak memory ratio", file.bundle.peak_memory_bytes
    if old is None:
        return not_available(name, "ratio", "peak memory: not available, since the baseline's was not recorded")
    known = [check.value for check in checks if check.name == "peak memory" and math.isfinite(check.value)]
    if known:
        return beside("peak memory", known[0], old, "bytes")
    try:
        new = peak_memory(candidate, threads=options.threads, device=options.device)["peak_rss_bytes"]
    except InconclusiveError as error:
        return not_available(name, "ratio", f"peak memory: {error}")
    return beside("peak memory", new, old, "bytes")


def latency_checks(
    candidate: str | Path,
    kept: RecordedLatency | None,
    shapes: Sequence[Shape],
    judged: KeptClock,
    threads: int | None,
    options: Options,
) -> list[Check]:
    """Medians beside the file's, on the clock both have: CPU time if it speaks for both sides, else the wall clock."""
    if kept is None or not shapes:
        reason = "latency: the baseline file holds no times; it would be reported, not judged"
        return [not_available("latency", "ratio", reason)]
    found = sit_alone(
        candidate,
        shapes,
        options.clock or ProcessClock(),
        seconds=options.seconds,
        seed=options.seed,
        device=options.device,
        threads=threads,
        progress=options.progress,
    )
    return [latency_check(name, timings, kept, judged) for name, timings in found.items()]


def latency_check(name: str, timings: Sequence[Timing], kept: RecordedLatency, judged: KeptClock) -> Check:
    """The ratio of medians of one phase of one shape."""
    kind: KeptClock = "cpu" if judged == kept.judged == "cpu" else "wall"
    new = float(np.median([getattr(timing, kind) for timing in timings]))
    words, times = f"{'CPU' if kind == 'cpu' else 'wall'} time {1e3 * new:.3f} ms", kept.times.get(name)
    if times is None:
        reason = f"{name}: {words}; the baseline has none for this shape"
        return Check(f"latency {name}", Verdict.PASS, 1e3 * new, None, "ms", reason, n=len(timings), required=False)
    old = times.median_cpu if kind == "cpu" else times.median_wall
    ratio = new / old if old > 0 else math.nan
    reason = f"{name}: {words}, {ratio:.3f} times the {1e3 * old:.3f} ms the baseline took when it was recorded"
    reason = f"{reason}; {WHY_NOT}"
    return Check(f"latency {name}", Verdict.PASS, ratio, None, "ratio", reason, n=len(timings), required=False)
