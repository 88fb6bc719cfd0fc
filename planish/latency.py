"""A device's latency table: what attention and feed-forward parts of a model cost there, by heads and neurons.

The building blocks are measured where they run: in whole models of several depths, cut to the sizes of a grid,
quantized by the recipe's passes and exported like any model. ``prepare`` makes these probes with torch; ``measure``
opens them with the runtime alone, in turns, so it also runs on the device. One least-squares fit over all probes says
what a part costs. What neither size changes (the products' start, norms) is given to attention, so only sums of the two
mean something. The format is that of :mod:`planish.compress.latency_table`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planish.errors import DataError, InputError
from planish.outputs import check_output, replace_text, staging

__all__ = ["Probe", "measure", "prepare", "table_of"]

Progress = Callable[[str, int, int], None]
INDEX = "probes.json"
DEEP = 3
"""Blocks of the probes that vary one size; those that tell blocks from the rest have one, and all."""
LEAST_MS = 1e-4
QUANTIZERS = ("int8-linear", "fp8-linear", "int8-embedding", "weight-only")


@dataclass(frozen=True)
class Probe:
    """A model of ``layers`` blocks, all with so many heads and neurons; ``name`` is its bundle's folder."""

    name: str
    layers: int
    heads: int
    neurons: int


def prepare(
    model: str,
    recipe: str,
    output: Path,
    *,
    profile: str = "cpu-x86-avx512-vnni",
    multiple: int = 32,
    points: int = 6,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> list[Probe]:
    """Write the probes of a checkpoint into the folder ``output``: bundles, and ``probes.json`` that names them.

    Only what quantizes is taken of the recipe, calibrated on next to nothing: kernels do not look at values.

    Raises:
        RecipeError, CheckpointError, InputError: as ``compress`` and ``export`` do.
    """
    from planish import compress, export
    from planish.compress.bench import Bench
    from planish.compress.recipe import Recipe
    from planish.compress.slicing import cut_blocks, cut_heads, cut_neurons
    from planish.compress.write import write_checkpoint
    from planish.families import block_parts, inputs_of
    from planish.ship import as_directory

    target = check_output(output)
    plan: Recipe = compress.load_recipe(recipe).keeping(QUANTIZERS)
    opened = compress.open_checkpoint(model, trust_remote_code)
    parts = block_parts(opened.load_model())
    width = inputs_of(parts[0].up)
    shared = parts[0].heads // parts[0].kv_heads
    grid = probes_of(parts[0].kv_heads, parts[0].ffn, len(parts), multiple, shared, points)
    with tempfile.TemporaryDirectory() as scratch, staging(target) as folder:
        source = as_directory(opened, Path(scratch) / "parent")
        for done, probe in enumerate(grid):
            if progress:
                progress("probes", done, len(grid))
            bench = Bench.of(compress.open_checkpoint(source, trust_remote_code).load_model())
            cut_blocks(bench, range(probe.layers))
            for block in range(probe.layers):
                if probe.heads < parts[0].heads:
                    cut_heads(bench, block, range(probe.heads // shared))
                cut_neurons(bench, block, range(probe.neurons))
            cut, small = Path(scratch) / f"{probe.name}-cut", Path(scratch) / probe.name
            cut.mkdir()
            write_checkpoint(bench, opened, cut)
            made = compress.compress(cut, plan, small).path if plan.passes else cut
            export.export(made, folder / probe.name, profile=profile, dialects=("ort",))
        facts = {
            "schema": 1,
            "profile": profile,
            "recipe": plan.name,
            "hidden": width,
            "layers": len(parts),
            "probes": [vars(probe) for probe in grid],
        }
        (folder / INDEX).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if progress:
        progress("probes", len(grid), len(grid))
    return grid


def probes_of(groups: int, neurons: int, layers: int, multiple: int, shared: int = 1, points: int = 6) -> list[Probe]:
    """The grid: one size in ``points`` steps while the other stays; full, half and thinnest blocks at two depths.

    >>> [(probe.layers, probe.heads, probe.neurons) for probe in probes_of(2, 64, 6, 32)]
    [(1, 2, 64), (1, 1, 32), (6, 2, 64), (6, 1, 32), (3, 1, 64), (3, 2, 32)]
    """
    deep = min(DEEP, layers)
    least = min(multiple, neurons)
    head_steps = sorted({1, *(max(1, round(groups * part / points)) for part in range(1, points))} - {groups})
    steps = {least, *(max(least, round(neurons * part / points / least) * least) for part in range(1, points))}
    neuron_steps = [count for count in sorted(steps) if count < neurons]
    corners = [(groups, neurons)]
    if head_steps and neuron_steps:
        corners += [(head_steps[len(head_steps) // 2], neuron_steps[len(neuron_steps) // 2])]
        corners += [(head_steps[0], neuron_steps[0])]
    grid = [(depth, *corner) for depth in (1, layers) for corner in corners]
    grid += [(deep, heads, neurons) for heads in head_steps] + [(deep, groups, count) for count in neuron_steps]
    return [
        Probe(f"layers{depth}-heads{heads * shared}-neurons{count}", depth, heads * shared, count)
        for depth, heads, count in dict.fromkeys(grid)
    ]


def measure(
    folder: Path,
    shape: tuple[int, int],
    *,
    seconds: float = 60.0,
    threads: int = 1,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The latency table of the probes in ``folder`` at ``shape`` (batch, length), measured in turns on this host.

    CPU time on ``threads`` threads where a CPU runs them, else wall time. Decoders: a prefill of the shape.

    Raises:
        InputError: not a folder that ``prepare`` wrote.
        BundleError: a probe is damaged.
    """
    from planish import gate

    facts, probes = read_index(folder)
    report = gate.bench(
        [folder / probe.name for probe in probes],
        shapes=[shape],
        seconds=seconds,
        threads=threads,
        device=device,
        memory=False,
        progress=progress,
    )
    clock = report.ratios[0].judged
    found = {row.bundle: row for row in report.measurements if row.phase != "decode"}
    times = [1000 * (found[probe.name].cpu if clock == "cpu" else found[probe.name].p50) for probe in probes]
    host = {key: report.environment["before"].get(key) for key in ("cpu", "threads", "onnxruntime")}
    about = {key: facts[key] for key in ("profile", "recipe", "hidden")}
    return {
        "schema": 1,
        **about,
        "batch": shape[0],
        "length": shape[1],
        **table_of(probes, times, int(facts["layers"])),
        "device": {**host, "clock": clock},
    }


def table_of(probes: Sequence[Probe], times: Sequence[float], layers: int) -> dict[str, Any]:
    """The part of the table that is measured, out of the milliseconds of each probe.

    A probe takes ``base + its layers x (attention(heads) + ffn(neurons))``; least squares of the relative errors of all
    probes at once, so that a noisy one moves the table by its share and no more.
    """
    heads, neurons = sorted({probe.heads for probe in probes}), sorted({probe.neurons for probe in probes})
    design = np.zeros((len(probes), 1 + len(heads) + len(neurons)))
    for row, probe in zip(design, probes, strict=True):
        row[0] = 1.0
        row[1 + heads.index(probe.heads)] = row[1 + len(heads) + neurons.index(probe.neurons)] = probe.layers
    design /= np.asarray(times, dtype=np.float64)[:, None]
    deep = {probe.layers for probe in probes}
    found = _least_squares(design) if len(deep) > 1 else np.zeros(design.shape[1])
    if found[0] <= 0.0:  # one depth cannot tell the base, and noise may make it negative
        found = np.concatenate([[0.0], _least_squares(design[:, 1:])])
    attention, ffn = found[1 : 1 + len(heads)], found[1 + len(heads) :]
    # Only sums are known: the feed-forward part is what grows with its neurons, and a tenth of the thinnest block.
    shift = ffn.min() - 0.1 * (attention.min() + ffn.min())
    attention, ffn = (np.maximum(part, LEAST_MS) for part in (attention + shift, ffn - shift))
    return {
        "layers": layers,
        "base_ms": round(float(found[0]), 5),
        "attention_ms": {"heads": heads, "ms": [round(float(one), 5) for one in attention]},
        "ffn_ms": {"neurons": neurons, "ms": [round(float(one), 5) for one in ffn]},
    }


def _least_squares(design: NDArray[np.float64]) -> NDArray[np.float64]:
    """The shortest solution that brings every row nearest to 1."""
    return np.asarray(np.linalg.lstsq(design, np.ones(len(design)), rcond=None)[0], dtype=np.float64)


def read_index(folder: Path) -> tuple[dict[str, Any], list[Probe]]:
    """What ``prepare`` wrote about its probes."""
    path = folder / INDEX
    if not path.is_file():
        raise InputError(f"a folder of probes ({INDEX})", str(folder), "make one: planish latency MODEL --probes DIR")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        probes = [Probe(**one) for one in facts["probes"]]
        if not probes or any(Path(probe.name).name != probe.name for probe in probes):
            raise ValueError("probes without plain names")
        int(facts["layers"]), int(facts["hidden"]), str(facts["recipe"]), str(facts["profile"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f"probes in {path}", f"{type(error).__name__}: {error}"[:120], "make them again") from None
    return facts, probes


def write_table(table: dict[str, Any], output: Path) -> None:
    """Write a table; the file must not exist."""
    if output.exists():
        raise InputError(f"a free output path: {output}", "something already there", "remove it, or choose another -o")
    replace_text(output, json.dumps(table, indent=1) + "\n")
