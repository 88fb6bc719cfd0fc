"""bench(): how fast, how big, how much memory; several bundles take turns, so that their ratios mean something.

Every round runs each bundle once, in random order, after one untimed inference. Percentiles are of the wall clock,
which is what a caller waits; ratios are to the first bundle, paired by sitting, of CPU time on CPU engines, of the
device's own time on TensorRT engines and of the wall clock elsewhere, with sessions opened anew for each
(`planish.gate.latency` says why). With labelled data every bundle's metric is found, too. Nothing is judged here: that
is `planish.gate.gate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from planish.errors import InputError
from planish.gate.clock import Clock, ProcessClock, Timing, environment, judged_on
from planish.gate.latency import SETTLED, Probe, median_timing
from planish.gate.limits import check_seconds
from planish.gate.memory import peak_memory
from planish.gate.report import between, table
from planish.gate.scores import Score, data_for, score_bundles
from planish.gate.slowdown import UNKNOWN, Comparison, Pairs, Plan, decide
from planish.gate.statistics import Interval, hodges_lehmann
from planish.gate.workloads import BENCH_SHAPES, Shape, probes, shapes_for, spelled
from planish.runtime.device_time import device_time_counted
from planish.runtime.loader import load
from planish.runtime.manifest import read_manifest

if TYPE_CHECKING:
    from planish.gate.data import Dataset
    from planish.runtime.manifest import Manifest
    from planish.runtime.model import Model

Times = dict[tuple[int, Shape, str], list[list[Timing]]]
"""For each bundle (by number), shape and phase: the times of each sitting."""

__all__ = ["BenchReport", "Measurement", "bench"]

Progress = Callable[[str, int, int], None]

SITTINGS = 6  # of several bundles; fewer give no interval of 95 %
LEAST_ROUNDS, MOST_ROUNDS = 5, 500
WARM_UP_ROUNDS = 2


@dataclass(frozen=True)
class Measurement:
    """One bundle, shape and phase: seconds of one unit of work (an inference, a prefill, a decode step).

    Attributes:
        p50, p90, p95: of the wall clock, seconds.
        interval: of the median, from the medians of the sittings (Hodges-Lehmann); unbounded below six sittings.
        cpu: median process CPU time, seconds.
        rows_per_second: sequences (encoders, prefill) or decode steps times the batch.
        tokens_per_second: tokens read (encoders, prefill) or written (decode).
        times: every unit by the wall clock, seconds, in the order they were measured; not part of the JSON.
    """

    bundle: str
    shape: str
    phase: str
    p50: float
    p90: float
    p95: float
    cpu: float
    rows_per_second: float
    tokens_per_second: float
    rounds: int
    interval: Interval = UNKNOWN
    times: tuple[float, ...] = field(default=(), repr=False)

    def to_json(self) -> dict[str, Any]:
        plain = {name: value for name, value in vars(self).items() if name != "times"}
        return {**plain, "interval": self.interval.to_json()}


@dataclass(frozen=True)
class BenchReport:
    """The result of `bench`; ``ratios`` compare each further bundle with the first, ``scores`` are on the data."""

    bundles: tuple[Mapping[str, Any], ...]
    measurements: tuple[Measurement, ...]
    ratios: tuple[Comparison, ...]
    environment: Mapping[str, Any]
    seed: int
    scores: tuple[Score, ...] = ()
    data: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        return {
            "schema": 1,
            "bundles": [dict(bundle) for bundle in self.bundles],
            "measurements": [measurement.to_json() for measurement in self.measurements],
            "ratios": [ratio.to_json() for ratio in self.ratios],
            "scores": [score.to_json() for score in self.scores],
            "data": None if self.data is None else dict(self.data),
            "environment": dict(self.environment),
            "seed": self.seed,
        }

    def to_markdown(self) -> str:
        """Tables of bundles, scores, times and ratios."""
        parts = [
            table(("bundle", "task", "MB", "peak RSS MB"), map(bundle_cells, self.bundles)),
            table(TIMES_HEAD, map(time_cells, self.measurements)),
        ]
        if self.scores:
            parts.insert(1, table(SCORE_HEAD, map(score_cells, self.scores)))
        if self.ratios:
            parts.append(table(RATIO_HEAD, map(ratio_cells, self.ratios)))
        before = self.environment["before"]
        words = [
            f"{key} {before[key]}" for key in ("cpu", "threads", "onnxruntime", "governor", "load") if before.get(key)
        ]
        return "\n\n".join([*parts, ", ".join(words)]) + "\n"


SCORE_HEAD = ("bundle", "metric", "found", "95 % interval", "n")
TIMES_HEAD = ("bundle", "shape", "phase", "p50 ms", "p90 ms", "p95 ms", "CPU ms", "rows/s", "tokens/s", "rounds")
RATIO_HEAD = ("time of", "clock", "ratio", "95 % interval", "wall ratio", "sittings")


def bench(
    bundles: str | Path | Sequence[str | Path],
    *,
    data: str | Path | Dataset | None = None,
    shapes: Sequence[tuple[int, int]] | None = None,
    seconds: float = 20.0,
    seed: int = 0,
    threads: int | None = None,
    device: str = "auto",
    memory: bool = True,
    clock: Clock | None = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Measure one bundle, or several side by side.

    Args:
        data: an evaluation file with labels (decoders: text) on which each bundle's metric is found.
        shapes: ``(batch, length)`` pairs; default 1x32, 1x128 and 8x128; decoders a prompt of 1x128 and 16 steps.
        seconds: for all shapes together, opening the bundles not counted; at least five rounds a sitting.
        memory: also the peak memory of each, in a process of its own.

    Raises:
        InputError: no bundle, bundles of different tasks, a shape too long, ``seconds`` that are not above 0, data
            without labels.
        DataError: a bad line in the data.
        BundleError: a bundle is damaged.
    """
    paths = [bundles] if isinstance(bundles, (str, Path)) else list(bundles)
    if not paths:
        raise InputError("at least one bundle", "none", "name a bundle directory")
    check_seconds(seconds)
    names = unique_names(paths)
    manifests = [read_manifest(path) for path in paths]
    tasks = {manifest.task for manifest in manifests}
    if len({task == "text-generation" for task in tasks}) > 1:
        raise InputError("bundles that can be run side by side", " and ".join(sorted(tasks)), "measure them apart")
    samples = None if data is None else data_for(manifests, data)
    clock, rng, times = clock or ProcessClock(), np.random.default_rng(seed), Times()
    before = {**environment(), "threads": threads}
    count = SITTINGS if len(paths) > 1 else 1
    for number in range(count):
        with ExitStack() as stack:
            stack.enter_context(device_time_counted())
            order = [int(index) for index in rng.permutation(len(paths))]
            settled = SETTLED if len(paths) > 1 else None  # one alone disturbs nobody
            opened = {
                index: stack.enter_context(load(paths[index], device, threads=threads, session_options=settled))
                for index in order
            }
            models = [opened[index] for index in range(len(paths))]
            wanted = shapes_for(models, shapes, BENCH_SHAPES)
            judged = judged_on(models)
            for shape in wanted:
                take_turns(models, shape, clock, seconds / len(wanted) / count, rng, times)
        if progress:
            progress("bench", number + 1, count)
    after, plan = environment(), Plan(limit=None, judged=judged, seed=seed)
    found: tuple[Score, ...] = ()
    if samples is not None:
        found = score_bundles(names, paths, samples, device=device, threads=threads, seed=seed, progress=progress)
    described = [
        describe(name, path, manifest, memory, threads, device)
        for name, path, manifest in zip(names, paths, manifests, strict=True)
    ]
    rows = sorted(times.items(), key=lambda row: row[0][0])  # by bundle; shapes and phases as they came
    return BenchReport(
        bundles=tuple(described),
        measurements=tuple(measured(names[index], shape, phase, taken) for (index, shape, phase), taken in rows),
        ratios=tuple(compared(names, times, plan)),
        environment={"before": before, "after": after},
        seed=seed,
        scores=found,
        data=None if samples is None else {"name": samples.name, "samples": len(samples.samples)},
    )


def unique_names(paths: Sequence[str | Path]) -> list[str]:
    """Directory names; the number is added to one that occurs twice.

    >>> unique_names(["a/x", "b/x", "y"])
    ['x', 'x (2)', 'y']
    """
    names: list[str] = []
    for path in paths:
        name = Path(path).resolve().name
        count = 1 + sum(1 for other in paths[: len(names)] if Path(other).resolve().name == name)
        names.append(name if count == 1 else f"{name} ({count})")
    return names


def take_turns(
    models: Sequence[Model], shape: Shape, clock: Clock, seconds: float, rng: np.random.Generator, times: Times
) -> None:
    """One sitting on a shape: rounds of one block each, in random order, until the time is up."""
    blocks: list[Probe] = probes(models, shape, clock, 0, inferences=1)
    for _ in range(WARM_UP_ROUNDS):
        for probe in blocks:
            probe(clock)
    sitting: dict[tuple[int, Shape, str], list[Timing]] = {}
    end = clock.wall() + seconds
    for done in range(1, MOST_ROUNDS + 1):
        for index in rng.permutation(len(blocks)):
            for phase, timing in blocks[index](clock).items():
                sitting.setdefault((int(index), shape, phase), []).append(timing)
        if done >= LEAST_ROUNDS and clock.wall() >= end:
            break
    for key, taken in sitting.items():
        times.setdefault(key, []).append(taken)


def measured(name: str, shape: Shape, phase: str, sittings: Sequence[Sequence[Timing]]) -> Measurement:
    """The times of all sittings together."""
    taken = [timing for sitting in sittings for timing in sitting]
    wall = np.array([timing.wall for timing in taken])
    medians = np.array([median_timing(sitting).wall for sitting in sittings])
    p50, p90, p95 = (float(value) for value in np.percentile(wall, (50, 90, 95)))
    tokens = shape.batch * (1 if phase == "decode" else shape.length)
    return Measurement(
        bundle=name,
        shape=str(shape),
        phase=phase,
        p50=p50,
        p90=p90,
        p95=p95,
        cpu=float(np.median([timing.cpu for timing in taken])),
        rows_per_second=shape.batch / p50 if p50 > 0 else 0.0,
        tokens_per_second=tokens / p50 if p50 > 0 else 0.0,
        rounds=len(taken),
        interval=hodges_lehmann(medians),
        times=tuple(wall.tolist()),
    )


def compared(names: Sequence[str], times: Times, plan: Plan) -> Iterator[Comparison]:
    """Each further bundle against the first, shape by shape and phase by phase; a pair is a sitting."""
    for index, name in enumerate(names[1:], 1):
        for shape, phase in [key[1:] for key in times if key[0] == index]:
            new, old = ([median_timing(taken) for taken in times[number, shape, phase]] for number in (index, 0))
            yield decide(f"{name} / {names[0]} {shape} {phase}", Pairs(new, old), plan)


def describe(
    name: str, path: str | Path, manifest: Manifest, memory: bool, threads: int | None, device: str
) -> dict[str, Any]:
    size = sum(entry.size for entry in manifest.files.values())
    found: dict[str, Any] = {"name": name, "task": manifest.task, "digest": manifest.digest, "bytes": size}
    measured = peak_memory(path, threads=threads, device=device) if memory else {}
    found["peak_rss_bytes"] = measured.get("peak_rss_bytes")
    return found


def bundle_cells(bundle: Mapping[str, Any]) -> list[str]:
    peak = bundle["peak_rss_bytes"]
    return [bundle["name"], bundle["task"], f"{bundle['bytes'] / 1e6:.1f}", "" if peak is None else f"{peak / 1e6:.0f}"]


def time_cells(found: Measurement) -> list[str]:
    times = [f"{1e3 * value:.3f}" for value in (found.p50, found.p90, found.p95, found.cpu)]
    speeds = [f"{found.rows_per_second:.1f}", f"{found.tokens_per_second:,.0f}"]
    return [found.bundle, found.shape, spelled(found.phase), *times, *speeds, str(found.rounds)]


def score_cells(found: Score) -> list[str]:
    value = f"{found.interval.estimate:.4f}"
    return [found.bundle, found.metric, value, between(found.interval), str(found.n)]


def ratio_cells(found: Comparison) -> list[str]:
    ratio = found.ratio
    interval = f"{ratio.low:.3f} to {ratio.high:.3f}"
    return [
        spelled(found.name),
        found.judged,
        f"{ratio.estimate:.3f}",
        interval,
        f"{found.wall_ratio.estimate:.3f}",
        str(found.pairs),
    ]
