"""Commands that use bundles: run, bench, gate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import click

from planish import say
from planish.budget_options import budget_options
from planish.errors import InputError
from planish.options import data_option, json_option, seconds_option, shape_of, threads_option
from planish.report_files import bench_report_options, check_reports, report_options, write_reports
from planish.subcommand import with_subcommand

__all__ = ["bench", "gate", "run"]

device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto, cpu, cuda, tensorrt (both also :N), or a plugin of ONNX Runtime such as openvino.",
)
dialect_option = click.option(
    "--dialect", help="ONNX Runtime: the graph to open, ort or qdq (what engines are made from); default: ort."
)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1)
@click.option("--question", help="question-answering: the question; TEXTS are the contexts.")
@click.option(
    "--pooling",
    type=click.Choice(["mean", "cls", "max"]),
    help="embeddings: how token vectors become one; default: the model's.",
)
@click.option("--top-k", type=int, help="classify and fill: how many answers; generate: sample among so many tokens.")
@click.option("--max-new-tokens", default=128, show_default=True, help="generate: at most so many tokens.")
@click.option("--temperature", default=0.0, show_default=True, help="generate: 0 is greedy.")
@click.option("--top-p", default=1.0, show_default=True, help="generate: nucleus sampling.")
@click.option("--repetition-penalty", default=1.0, show_default=True, help="generate: above 1 repeats less.")
@click.option("--seed", type=int, help="generate: the same seed, the same text.")
@click.option("--stop", multiple=True, help="generate: stop at this string; may be given again.")
@device_option
@dialect_option
@threads_option
@json_option
def run(
    bundle: Path,
    texts: tuple[str, ...],
    device: str,
    dialect: str | None,
    threads: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Answer TEXTS with BUNDLE; `-` or no text reads one text a line from stdin."""
    from planish import runtime
    from planish.answers import answers, answers_as_lines, cut_texts, refuse_unused

    if not texts or texts == ("-",):
        texts = read_lines()
    if not texts:
        raise InputError("at least one text", "none", f'type: planish run {bundle} "some text"')
    with runtime.load(bundle, device=device, dialect=dialect, threads=threads) as model:
        task = model.manifest.task
        refuse_unused(task, options)
        for line in () if model.engine_id else model.passed_over:
            print(f"planish: runs in ONNX Runtime; the engine {line}", file=sys.stderr)
        if task == "text-generation" and len(texts) == 1 and not as_json:
            stream_out(model, texts[0], options)
            return
        results = answers(model, list(texts), options)
        for line in cut_texts(model, list(texts)):
            print(f"planish: {line}", file=sys.stderr)
    say.answer({"task": task, "results": results}, as_json=as_json, lines=answers_as_lines(task, list(texts), results))


def read_lines() -> tuple[str, ...]:
    """The lines of stdin that are not blank."""
    try:
        return tuple(line.rstrip("\n") for line in sys.stdin if line.strip())
    except UnicodeDecodeError as error:
        raise InputError(
            f"{error.encoding} text on stdin", f"byte 0x{error.object[error.start]:02x}", "convert it"
        ) from None


def stream_out(model: Any, prompt: str, options: dict[str, Any]) -> None:
    """Write a generation to stdout as it grows."""
    from planish.answers import generation_options

    for piece in model.generate(prompt, stream=True, **generation_options(options)):
        sys.stdout.write(piece.text)
        sys.stdout.flush()
    sys.stdout.write("\n")


@click.command(
    cls=with_subcommand("loadgen", "planish.commands_loadgen"),
    epilog="planish bench loadgen BUNDLE has MLPerf's LoadGen ask it, in one of its scenarios.",
)
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--shape", "shapes", multiple=True, help="BATCHxLENGTH, e.g. 1x128; may be given again.")
@data_option("Also find each bundle's accuracy here: JSONL as for planish gate.")
@seconds_option(20.0, "Time to spend.")
@device_option
@threads_option
@bench_report_options
@json_option
def bench(
    bundles: tuple[Path, ...],
    shapes: tuple[str, ...],
    data: Path | None,
    seconds: float,
    device: str,
    threads: int | None,
    as_json: bool,
    **files: Path | None,
) -> None:
    """Measure BUNDLES: latency and throughput; several are interleaved and given as ratios to the first."""
    from planish import gate as half

    check_reports(files)
    parsed = [shape_of(shape) for shape in shapes] or None
    with say.progress_bar(quiet=as_json) as progress:
        report = half.bench(
            list(bundles), data=data, shapes=parsed, seconds=seconds, threads=threads, device=device, progress=progress
        )
    say.answer({"bench": report.to_json()}, as_json=as_json, lines=[report.to_markdown()])
    write_reports(report, files)


@click.command(
    cls=with_subcommand("selftest", "planish.commands_selftest"),
    epilog="planish gate selftest BUNDLE proves that the gate can fail, here.",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--baseline",
    "-b",
    required=True,
    type=click.Path(path_type=Path),
    help="The bundle to compare with; or a file of `planish baseline`, or a directory of them.",
)
@click.option("--across-devices", is_flag=True, help="Take a baseline file of another device, too, and say so.")
@data_option("JSONL with labels, scored pairs or references, or .txt; default: built-in text, without labels.")
@click.option(
    "--reference-metric",
    type=click.Choice(["chrF", "BLEU", "ROUGE-L"], case_sensitive=False),
    default="chrF",
    show_default=True,
    help="What decides where the data has prompts and references.",
)
@click.option(
    "--max-loss", type=float, default=0.5, show_default=True, help="Largest loss of the task metric, in points."
)
@click.option("--max-slice-loss", type=float, help="The same on a slice of the data; default: four times --max-loss.")
@budget_options
@click.option(
    "--max-wall", type=float, metavar="RATIO", help="Also judge the wall clock: at most so many times the baseline's."
)
@click.option("--no-latency", is_flag=True, help="Judge accuracy alone.")
@seconds_option(60.0, "Time the latency comparison may take.")
@device_option
@threads_option
@report_options
@json_option
def gate(
    bundle: Path,
    baseline: Path,
    data: Path | None,
    reference_metric: Literal["chrF", "BLEU", "ROUGE-L"],
    max_loss: float,
    max_slice_loss: float | None,
    max_bytes: int | None,
    max_memory: int | None,
    max_energy: float | None,
    max_wall: float | None,
    no_latency: bool,
    across_devices: bool,
    seconds: float,
    device: str,
    threads: int | None,
    as_json: bool,
    **files: Path | None,
) -> int:
    """Compare BUNDLE with a baseline: exit 0 pass, 1 regress, 3 inconclusive."""
    from planish import gate as half

    check_reports(files)
    with say.progress_bar(quiet=as_json) as progress:
        report = half.gate(
            bundle,
            baseline,
            data=data,
            limits=half.Limits(
                max_loss_points=max_loss,
                max_slice_loss_points=max_slice_loss,
                reference_metric=reference_metric,
                max_bytes=max_bytes,
                max_peak_rss_bytes=max_memory,
                max_energy_joules=max_energy,
                max_wall_ratio=max_wall,
            ),
            latency=not no_latency,
            seconds=seconds,
            device=device,
            threads=threads,
            across_devices=across_devices,
            progress=progress,
        )
    say.answer({"gate": report.to_json(), "exit_code": report.exit_code}, as_json=as_json, lines=[report.to_markdown()])
    write_reports(report, files)
    return report.exit_code
