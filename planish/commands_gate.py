"""The command that keeps a baseline: what a later `planish gate` compares with, without the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from planish import say
from planish.commands_use import device_option
from planish.options import data_option, json_option, seconds_option, threads_option

__all__ = ["baseline"]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), help="The directory of baseline files.")
@data_option("JSONL with labels, or .txt; default: built-in text, without labels.")
@click.option("--replace", is_flag=True, help="Replace the file of this bundle's name and this device.")
@click.option("--no-latency", is_flag=True, help="Keep answers and size alone: no times, no memory.")
@seconds_option(20.0, "Time the latency measurement may take.")
@device_option
@threads_option
@json_option
def baseline(
    bundle: Path,
    output: Path,
    data: Path | None,
    replace: bool,
    no_latency: bool,
    seconds: float,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Run BUNDLE once and write NAME.FINGERPRINT.json: all it says, for `planish gate --baseline`."""
    from planish.gate import record_baseline
    from planish.gate.baseline_file import read_baseline

    with say.progress_bar(quiet=as_json) as progress:
        path = record_baseline(
            bundle,
            output,
            data=data,
            latency=not no_latency,
            seconds=seconds,
            device=device,
            threads=threads,
            replace=replace,
            progress=progress,
        )
    told: dict[str, Any] = summary(read_baseline(path).to_json())
    words = f"{path}: {told['task']}, {told['data']['samples']} samples of {told['data']['name']}"
    say.answer({"baseline": {"path": str(path), **told}}, as_json=as_json, lines=[words])


def summary(file: dict[str, Any]) -> dict[str, Any]:
    """A baseline file's object without what it says on each sample."""
    return {key: value for key, value in file.items() if key != "samples"}
