"""`planish gate selftest BUNDLE`: does the gate work on this machine, with this bundle?"""

from __future__ import annotations

from pathlib import Path

import click

from planish import say
from planish.options import data_option, json_option, seconds_option, threads_option

__all__ = ["selftest"]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@data_option("JSONL with labels, or .txt; default: built-in text, whose answers stand for the truth.")
@click.option("--no-latency", is_flag=True, help="Try the accuracy rule alone.")
@seconds_option(240.0, "Time for everything together; latency has what the bundle's answers leave.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of all that is drawn.")
@click.option("--device", default="auto", show_default=True, help="As for planish gate.")
@threads_option
@json_option
def selftest(
    bundle: Path,
    data: Path | None,
    no_latency: bool,
    seconds: float,
    seed: int,
    device: str,
    threads: int | None,
    as_json: bool,
) -> int:
    """Plant losses in BUNDLE and see whether the gate finds them: exit 0 it works here, 1 it does not, 3 too noisy."""
    from planish.gate import selftest as half

    with say.progress_bar(quiet=as_json) as progress:
        report = half(
            bundle,
            data=data,
            latency=not no_latency,
            seconds=seconds,
            seed=seed,
            device=device,
            threads=threads,
            progress=progress,
        )
    lines = [report.to_markdown()]
    say.answer({"selftest": report.to_json(), "exit_code": report.exit_code}, as_json=as_json, lines=lines)
    return report.exit_code
