"""Commands around what passes do: explain what they did, and measure what a device makes of a block's sizes."""

from __future__ import annotations

from pathlib import Path

import click

from planish import say
from planish.commands_make import profile_option, train_option, trust_option, validation_option
from planish.errors import InputError
from planish.options import json_option, seconds_option, shape_of

__all__ = ["explain", "latency"]


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--leave-one-out", is_flag=True, help="Also run the recipe again without each pass. Takes as often as long."
)
@click.option("--model", "-m", help="With --leave-one-out: the checkpoint PATH was made from.")
@train_option
@validation_option
@trust_option
@json_option
def explain(
    path: Path,
    leave_one_out: bool,
    model: str | None,
    train: Path | None,
    validation: Path | None,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """Say what each pass cost and brought, from the receipts of PATH, a compressed checkpoint or a bundle.

    Latencies are there if it was compressed with --measure.
    """
    from planish import explain as half

    found = half.explain(path)
    if leave_one_out and model is None:
        raise InputError("--model, the checkpoint it was made from", "none", "add --model DIRECTORY")
    rows = []
    if leave_one_out and model is not None:
        with say.progress_bar(quiet=as_json) as progress:
            rows = half.leave_one_out(
                path,
                model,
                train=train,
                validation=validation,
                trust_remote_code=trust_remote_code,
                progress=progress,
            )
    if not as_json:
        say.table(f"{found.name}: {found.source} after {found.recipe}", half.HEAD, found.rows())
        if rows:
            say.table("the same recipe without one pass", half.LEFT_OUT_HEAD, rows)
    left = [dict(zip(half.LEFT_OUT_HEAD, row, strict=True)) for row in rows]
    say.answer({"explained": found.to_json(), "left_out": left}, as_json=as_json, lines=found.notes())


@click.command()
@click.argument("model")
@click.option("--recipe", "-r", default="int8-dynamic", show_default=True, help="What quantizes the blocks.")
@profile_option
@click.option("--shape", default="8x64", show_default=True, help="BATCHxLENGTH to measure at.")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="The table, a JSON file; must not exist.")
@click.option("--probes", type=click.Path(path_type=Path), help="Keep the probe bundles here, to measure elsewhere.")
@seconds_option(60.0, "Time to measure.")
@trust_option
@json_option
def latency(
    model: str,
    recipe: str,
    profile: str,
    shape: str,
    output: Path | None,
    probes: Path | None,
    seconds: float,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """Measure how long blocks of MODEL take by heads and neurons: the table that prunes to milliseconds.

    With --probes and no -o, only writes the probe bundles. MODEL may be a folder of probes: it is then measured on this
    host, which needs no torch. The table goes into a recipe's pass `prune` as table, with milliseconds or latency.
    """
    import tempfile

    from planish import latency as half

    wanted = shape_of(shape)
    if output is None and probes is None:
        raise InputError("-o TABLE or --probes DIRECTORY", "neither", "add -o latency.json")
    if output is not None and output.exists():
        raise InputError(f"a free output path: {output}", "something already there", "remove it, or choose another -o")
    ready = (Path(model) / half.INDEX).is_file()
    with say.progress_bar(quiet=as_json) as progress, tempfile.TemporaryDirectory() as scratch:
        folder = Path(model) if ready else probes or Path(scratch) / "probes"
        if not ready:
            half.prepare(model, recipe, folder, profile=profile, trust_remote_code=trust_remote_code, progress=progress)
        table = None if output is None else half.measure(folder, wanted, seconds=seconds, progress=progress)
    lines = [] if ready or probes is None else [f"probes: {probes}"]
    if table is not None and output is not None:
        half.write_table(table, output)
        lines.append(f"table: {output}")
    say.answer(
        {"table": table, "output": output and str(output), "probes": probes and str(probes)},
        as_json=as_json,
        lines=[*lines, "next: a recipe with pass prune, table: TABLE and milliseconds: N"],
    )
