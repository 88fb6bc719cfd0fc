"""bench(): how fast, how big, how much memory; several bundles take turns, so that their ratios mean something.

Every round runs each bundle once, in random order, after one untimed inference. Percentiles are of the wall clock,
which is what a caller waits; ratios are to the first bundle, paired by round, of CPU time on CPU engines and of the
wall clock elsewhere. Nothing is judged here: that is `planish.gate.gate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from planish.errors import InputError
from planish.gate.clock import Clock, ProcessClock, Timing, environment
from planish.gate.latency import Probe
from planish.gate.memory import peak_memory
from planish.gate.report import table
from planish.gate.slowdown import Comparison, Judged, Pairs, Plan, decide
from planish.gate.workloads import BENCH_SHAPES, Shape, probes, shapes_for
from planish.runtime.loader import load

if TYPE_CHECKING:
    from planish.runtime.manifest import Manifest
    from planish.runtime.model import Model

__all__ = ["BenchReport", "Measurement", "bench"]

Progress = Callable[[str, int, int], None]

LEAST_ROUNDS, MOST_ROUNDS = 5, 500
WARM_UP_ROUNDS = 2


@dataclass(frozen=True)
class Measurement:
    """One bundle, shape and phase: seconds of one unit of work (an inference, a prefill, a decode step).

    Attributes:
        p50, p90, p95: of the wall clock, seconds.
        cpu: median process CPU time, seconds.
        rows_per_second: sequences (encoders, prefill) or decode steps times the batch.
        tokens_per_second: tokens read (encoders, prefill) or written (decode).
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

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class BenchReport:
    """The result of `bench`; ``ratios`` compare each further bundle with the first."""

    bundles: tuple[Mapping[str, Any], ...]
    measurements: tuple[Measurement, ...]
    ratios: tuple[Comparison, ...]
    environment: Mapping[str, Any]
    seed: int

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        return {
            "schema": 1,
            "bundles": [dict(bundle) for bundle in self.bundles],
            "measurements": [measurement.to_json() for measurement in self.measurements],
            "ratios": [ratio.to_json() for ratio in self.ratios],
            "environment": dict(self.environment),
            "seed": self.seed,
        }

    def to_markdown(self) -> str:
        """Tables of bundles, times and ratios."""
        parts = [
            table(("bundle", "task", "MB", "peak RSS MB"), map(bundle_cells, self.bundles)),
            table(TIMES_HEAD, map(time_cells, self.measurements)),
        ]
        if self.ratios:
            parts.append(table(RATIO_HEAD, map(ratio_cells, self.ratios)))
        before = self.environment["before"]
        words = [
            f"{key} {before[key]}" for key in ("cpu", "threads", "onnxruntime", "governor", "load") if before.get(key)
        ]
        return "\n\n".join([*parts, ", ".join(words)]) + "\n"


TIMES_HEAD = ("bundle", "shape", "phase", "p50 ms", "p90 ms", "p95 ms", "CPU ms", "rows/s", "tokens/s", "rounds")
RATIO_HEAD = ("time of", "judged", "ratio", "95 % interval", "wall ratio", "rounds")


def bench(
    bundles: str | Path | Sequence[str | Path],
    *,
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
        shapes: ``(batch, length)`` pairs; default 1x32, 1x128 and 8x128; decoders a prompt of 1x128 and 16 steps.
        seconds: for all shapes together; each gets five rounds at least.
        memory: also the peak memory of each, in a process of its own.

    Raises:
        InputError: no bundle, bundles of different tasks, a shape too long.
        BundleError: a bundle is damaged.
    """
    paths = [bundles] if isinstance(bundles, (str, Path)) else list(bundles)
    if not paths:
        raise InputError("at least one bundle", "none", "name a bundle directory")
    names = unique_names(paths)
    clock = clock or ProcessClock()
    with ExitStack() as stack:
        models = [stack.enter_context(load(path, device, threads=threads)) for path in paths]
        tasks = {model.manifest.task for model in models}
        if len({task == "text-generation" for task in tasks}) > 1:
            raise InputError("bundles that can be run side by side", " and ".join(sorted(tasks)), "measure them apart")
        judged: Judged = "cpu" if all(model.device == "CPUExecutionProvider" for model in models) else "wall"
        plan = Plan(limit=None, judged=judged, seed=seed)
        before = {**environment(), "threads": threads, "device": models[0].device}
        measurements: list[Measurement] = []
        ratios: list[Comparison] = []
        wanted = shapes_for(models, shapes, BENCH_SHAPES)
        for shape in wanted:
            times = take_turns(models, shape, clock, seconds / len(wanted), seed, progress)
            for name, phases in zip(names, times, strict=True):
                measurements += [measured(name, shape, phase, taken) for phase, taken in phases.items()]
            ratios += compared(names, times, shape, plan)
        manifests = [model.manifest for model in models]
    described = [
        describe(name, path, manifest, memory, threads)
        for name, path, manifest in zip(names, paths, manifests, strict=True)
    ]
    after = environment()
    return BenchReport(tuple(described), tuple(measurements), tuple(ratios), {"before": before, "after": after}, seed)


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


Times = dict[str, list[Timing]]


def take_turns(
    models: Sequence[Model], shape: Shape, clock: Clock, seconds: float, seed: int, progress: Progress | None
) -> list[Times]:
    """Rounds of one block each, in random order, until the time is up."""
    blocks: list[Probe] = probes(models, shape, clock, seed, inferences=1)
    for _ in range(WARM_UP_ROUNDS):
        for probe in blocks:
            probe(clock)
    rng = np.random.default_rng(seed)
    times: list[Times] = [{} for _ in models]
    end = clock.wall() + seconds
    for done in range(1, MOST_ROUNDS + 1):
        for index in rng.permutation(len(blocks)):
            for phase, timing in blocks[index](clock).items():
                times[index].setdefault(phase, []).append(timing)
        if progress:
            progress(f"bench {shape}", done, MOST_ROUNDS)
        if done >= LEAST_ROUNDS and clock.wall() >= end:
            break
    return times


def measured(name: str, shape: Shape, phase: str, taken: Sequence[Timing]) -> Measurement:
    wall = np.array([timing.wall for timing in taken])
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
    )


def compared(names: Sequence[str], times: Sequence[Times], shape: Shape, plan: Plan) -> list[Comparison]:
    """Each further bundle against the first, phase by phase."""
    return [
        decide(f"{name} / {names[0]} {shape} {phase}", Pairs(phases[phase], times[0][phase]), plan)
        for name, phases in zip(names[1:], times[1:], strict=True)
        for phase in phases
    ]


def describe(name: str, path: str | Path, manifest: Manifest, memory: bool, threads: int | None) -> dict[str, Any]:
    size = sum(entry.size for entry in manifest.files.values())
    found: dict[str, Any] = {"name": name, "task": manifest.task, "digest": manifest.digest, "bytes": size}
    found["peak_rss_bytes"] = peak_memory(path, threads=threads)["peak_rss_bytes"] if memory else None
    return found


def bundle_cells(bundle: Mapping[str, Any]) -> list[str]:
    peak = bundle["peak_rss_bytes"]
    return [bundle["name"], bundle["task"], f"{bundle['bytes'] / 1e6:.1f}", "" if peak is None else f"{peak / 1e6:.0f}"]


def time_cells(found: Measurement) -> list[str]:
    times = [f"{1e3 * value:.3f}" for value in (found.p50, found.p90, found.p95, found.cpu)]
    speeds = [f"{found.rows_per_second:.1f}", f"{found.tokens_per_second:,.0f}"]
    return [found.bundle, found.shape, found.phase, *times, *speeds, str(found.rounds)]


def ratio_cells(found: Comparison) -> list[str]:
    ratio = found.ratio
    interval = f"{ratio.low:.3f} to {ratio.high:.3f}"
    return [
        found.name,
        found.judged,
        f"{ratio.estimate:.3f}",
        interval,
        f"{found.wall_ratio.estimate:.3f}",
        str(found.pairs),
    ]
