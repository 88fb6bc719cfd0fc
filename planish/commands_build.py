"""The command that builds an engine: says what it will take, then takes it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planish import say
from planish.options import json_option

if TYPE_CHECKING:
    from planish.export.build_bundle import BuildResult, Preparation

__all__ = ["build"]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--profile", "-p", help="The device's profile: a name or a YAML file; default: the bundle's.")
@click.option("--module", help="tensorrt or tensorrt_rtx; default: the first of them that can build for the device.")
@click.option(
    "--optimization-level", type=click.IntRange(0, 5), help="How hard the builder searches; default: its own."
)
@click.option("--dry-run", is_flag=True, help="Say what it would take, and what stands in the way; build nothing.")
@json_option
def build(bundle: Path, dry_run: bool, as_json: bool, **options: Any) -> int:
    """Build a TensorRT engine of BUNDLE, on the device or (TensorRT-RTX) ahead for it.

    The bundle serves through ONNX Runtime until the engine is switched on.
    """
    from planish.export.build_bundle import prepare

    ready = prepare(bundle, **options)
    if dry_run:
        return answer_dry(ready, as_json)
    if not as_json:
        print("\n".join(f"planish: {line}" for line in estimate_lines(ready)), file=sys.stderr, flush=True)
    with say.progress_bar(quiet=as_json) as progress:
        made = ready.run(progress)
    say.answer(
        {"bundle": str(bundle), "engine": made.engine_id, "info": made.info.to_json(), "proved": facts_of(made.proved)},
        as_json=as_json,
        lines=list(result_lines(made)),
    )
    return 0


def answer_dry(ready: Preparation, as_json: bool) -> int:
    """The plan of a build; the exit code is that of the first thing in its way."""
    refused = [
        {"expected": error.expected, "got": error.got, "fix": error.fix, "exit_code": error.exit_code}
        for error in ready.refused
    ]
    code = ready.refused[0].exit_code if ready.refused else 0
    shapes = [{"name": shape.name, "shapes": facts_of(shape.shapes)} for shape in ready.shapes]
    say.answer(
        {
            "bundle": str(ready.bundle),
            "engine": ready.engine_id,
            "profile": ready.profile.name,
            "estimate": ready.estimate.to_json(),
            "profiles": shapes,
            "lint": ready.lint.to_json(),
            "refused": refused,
            "exit_code": code,
        },
        as_json=as_json,
        lines=[*estimate_lines(ready), *ready.lint.lines(), *(f"in the way: {error}" for error in ready.refused)],
    )
    return code


def estimate_lines(ready: Preparation) -> Iterator[str]:
    """What a build will take, in lines."""
    need = ready.estimate
    yield f"engine: {ready.engine_id or 'none that this host can build'}"
    yield f"device memory: about {say.megabytes(need.device_bytes)} of {device_memory(ready)}"
    yield (
        f"  weights {say.megabytes(need.weights_bytes)}, activations {say.megabytes(need.activation_bytes)}, "
        f"inputs, outputs and cache {say.megabytes(need.buffer_bytes)}"
    )
    yield f"to build: about {say.megabytes(need.build_bytes)} of memory, {say.megabytes(need.disk_bytes)} of disk"
    yield f"time: about {need.seconds:.0f} s"
    for shape in ready.shapes:
        ranges = (f"{name} {s.min} {s.opt} {s.max}" for name, s in shape.shapes.items() if "past_key" not in name)
        yield f"shapes, {shape.name}: {'; '.join(ranges)}"


def device_memory(ready: Preparation) -> str:
    """The profile's memory."""
    memory = ready.profile.memory
    return say.megabytes(memory.bytes) if memory else "an unknown size"


def result_lines(made: BuildResult) -> Iterator[str]:
    """What was built."""
    facts = made.info.build
    yield f"engine: {made.path}"
    sizes = {name: facts[name] for name in ("plan_bytes", "weights_bytes", "activation_bytes", "scratch_bytes")}
    told = ", ".join(f"{name[:-6]} {say.megabytes(size)}" for name, size in sizes.items() if size is not None)
    yield f"built in {facts['seconds']:.1f} s: {told}"
    for name, counts in (made.info.diagnostic or {}).items():
        gemms = ", ".join(f"{number} {kind}" for kind, number in counts["gemms"].items())
        yield f"{name}: {counts['fused_attentions']} fused attentions, products: {gemms or 'none'}"
    yield from (f"warning: {warning}" for warning in made.warnings)
    if made.proved:
        yield f"golden set: passed on this device, drift {made.proved['drift']:.4g}"
    else:
        yield "golden set: not run here (no such GPU); the runtime runs it where the engine is first loaded"


def facts_of(value: Any) -> Any:
    """Dataclasses and mappings as plain dicts and lists."""
    from planish.runtime.decode import encode

    return encode(value)
