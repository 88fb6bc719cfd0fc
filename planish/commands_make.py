"""Commands that make something: compress, export, ship, demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planish import say
from planish.errors import PlanishError
from planish.options import data_option, json_option, seconds_option

if TYPE_CHECKING:
    from planish.ship import Shipped

__all__ = ["compress", "demo", "export", "ship"]

DEFAULT_PROFILE = "cpu-x86-avx512-vnni"

recipe_option = click.option("--recipe", "-r", required=True, help="A shipped recipe's name, or a YAML file.")
profile_option = click.option(
    "--profile", "-p", default=DEFAULT_PROFILE, show_default=True, help="The device's profile: a name or a YAML file."
)
output_option = click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(path_type=Path),
    help="Where to write; must not exist, or be empty.",
)
trust_option = click.option(
    "--trust-remote-code", is_flag=True, help="Run Python code that comes with a hub model. Off."
)
task_option = click.option(
    "--task", help="feature-extraction, text-classification, ...; default: what the checkpoint's config says."
)
opset_option = click.option("--opset", default=21, show_default=True, help="ONNX opset of the graph.")
atol_option = click.option(
    "--atol",
    type=float,
    help="Largest difference from the checkpoint that export accepts; loosening it is written in the manifest.",
)


train_option = click.option(
    "--train",
    type=click.Path(path_type=Path),
    help="JSONL (labels or not) or .txt to prune, train and calibrate on, instead of the recipe's.",
)
validation_option = click.option(
    "--validation", type=click.Path(path_type=Path), help="The same to judge passes on; default: a share of --train."
)
seed_option = click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Instead of the recipe's.")


@click.command()
@click.argument("model")
@recipe_option
@output_option
@train_option
@validation_option
@seed_option
@click.option(
    "--measure", metavar="BATCHxLENGTH", help="Also export after each pass and measure its latency, e.g. 8x64."
)
@profile_option
@trust_option
@json_option
def compress(
    model: str, recipe: str, output: Path, measure: str | None, profile: str, as_json: bool, **options: Any
) -> None:
    """Shrink MODEL (a directory, a .gguf file or a hub id) into a smaller, quantized checkpoint.

    The profile matters only with --measure.
    """
    from planish.measure_steps import compress_measured

    with say.progress_bar(quiet=as_json) as progress:
        made = compress_measured(model, recipe, output, measure, profile, progress=progress, **options)
    receipts = [dict(receipt) for receipt in made.receipts]
    say.answer(
        {"checkpoint": str(made.path), "receipts": receipts},
        as_json=as_json,
        lines=[
            *(receipt_line(receipt) for receipt in receipts),
            f"checkpoint: {made.path}",
            f"next: planish export {made.path} -o BUNDLE; planish explain {made.path}",
        ],
    )


def receipt_line(receipt: dict[str, Any]) -> str:
    """What one pass did, in a line."""
    before, after = receipt["before"]["bytes"], receipt["after"]["bytes"]
    bits = receipt.get("bits_per_weight")
    precise = f", {bits:.3f} bits per weight" if bits else ""
    sizes = f"{say.megabytes(before)} -> {say.megabytes(after)}"
    layers = f"{receipt['layers']} layers, " if receipt["layers"] else ""
    return f"{receipt['pass']}: {layers}{sizes}{precise}, {receipt['seconds']:.0f} s"


@click.command()
@click.argument("checkpoint")
@profile_option
@output_option
@task_option
@opset_option
@atol_option
@json_option
def export(
    checkpoint: str, profile: str, output: Path, task: str | None, opset: int, atol: float | None, as_json: bool
) -> None:
    """Turn CHECKPOINT, quantized or float, into a verified bundle."""
    from planish import export as half

    with say.progress_bar(quiet=as_json) as progress:
        made = half.export(
            Path(checkpoint), output, profile=profile, task=task, opset=opset, atol=atol, progress=progress
        )
    parity = {name: report.max_abs_error for name, report in made.manifest.parity.items()}
    say.answer(
        {"bundle": str(made.path), "digest": made.manifest.digest, "parity": made.manifest.to_json()["parity"]},
        as_json=as_json,
        lines=[
            f"bundle: {made.path}",
            f"largest difference from the checkpoint: {parity}",
            f'next: planish run {made.path} "some text"',
        ],
    )


@click.command()
@click.argument("model")
@recipe_option
@profile_option
@output_option
@task_option
@opset_option
@atol_option
@data_option("JSONL with labels, or .txt, to judge on; default: built-in text, without labels.")
@train_option
@validation_option
@seed_option
@click.option(
    "--max-loss", type=float, default=0.5, show_default=True, help="Largest loss of the task metric, in points."
)
@click.option("--keep-checkpoint", type=click.Path(path_type=Path), help="Also keep the quantized checkpoint, here.")
@click.option("--no-latency", is_flag=True, help="Judge accuracy alone.")
@seconds_option(30.0, "Time the latency comparison may take.")
@trust_option
@json_option
def ship(as_json: bool, **options: Any) -> int:
    """compress, export and gate MODEL in one; the parent is exported too and is the gate's baseline.

    A bundle that regresses is renamed BUNDLE.rejected, and the exit code is 1. For a device whose engine can be built
    on any host (rtx-4090), the engine is built too; if that fails the bundle stays, and the exit code is the failure's.
    """
    from planish.ship import ship as journey

    with say.progress_bar(quiet=as_json) as progress:
        shipped = journey(progress=progress, **options)
    engine, line, engine_code = engine_told(shipped)
    code = shipped.gate.exit_code or engine_code
    say.answer(
        {"bundle": str(shipped.path), "gate": shipped.gate.to_json(), "engine": engine, "exit_code": code},
        as_json=as_json,
        lines=[shipped.gate.to_markdown(), f"bundle: {shipped.path}", *line],
    )
    return code


def engine_told(shipped: Shipped) -> tuple[Any, list[str], int]:
    """What became of the engine: for JSON, as lines, and the exit code it asks for."""
    from planish.commands_build import result_lines

    made = shipped.engine
    if made is None:
        return None, [], 0
    if isinstance(made, PlanishError):
        return {"built": False, "message": str(made)}, [f"no engine: {made}"], made.exit_code
    return {"built": True, "engine": made.engine_id, "info": made.info.to_json()}, list(result_lines(made)), 0


@click.command()
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="Keep the two bundles here; default: a temporary folder."
)
@click.option("--only", type=click.Choice(["bert", "gpt"]), help="One of the two models.")
@json_option
def demo(output: Path | None, only: str | None, as_json: bool) -> int:
    """Ship MiniLM and SmolLM2 from their packages and print one table; no network."""
    from planish.demo import HEAD, run_demo

    with say.progress_bar(quiet=as_json) as progress:
        shown = run_demo(output, only=only, progress=progress)
    if not as_json:
        say.table("parent against planished", HEAD, shown.rows)
    say.answer({"models": shown.models, "exit_code": shown.exit_code}, as_json=as_json, lines=shown.samples)
    return shown.exit_code
