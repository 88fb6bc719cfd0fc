"""Files a gate or a bench leaves for others: HTML, Markdown, JUnit XML, figures for github-action-benchmark, samples.

Like a test runner's reports they replace those of the run before. Where GitHub names a file for a step's summary
(``GITHUB_STEP_SUMMARY``), the Markdown is added to it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planish.errors import InputError
from planish.outputs import disk_errors, replace_text

if TYPE_CHECKING:
    from planish.gate.benchmark import BenchReport
    from planish.gate.report import GateReport

__all__ = ["bench_report_options", "check_reports", "report_options", "write_reports"]

_SUMMARY = "GITHUB_STEP_SUMMARY"
_HELP = {
    "html": "Write the report here as one HTML page, with charts.",
    "markdown": "Write the report here as Markdown.",
    "junit": "Write the checks here as JUnit XML.",
    "benchmark_json": "Write the figures here for github-action-benchmark (customSmallerIsBetter).",
    "samples": "Write what both bundles said, and every time, here as JSON lines.",
}


_BENCH = ("html", "markdown", "benchmark_json")
_Command = Callable[..., Any]


def report_options(command: _Command) -> _Command:
    """An option for each file of a gate, ``--benchmark-json`` etc."""
    return _options(command, tuple(_HELP))


def bench_report_options(command: _Command) -> _Command:
    """An option for each file of a bench, which judges nothing."""
    return _options(command, _BENCH)


def _options(command: _Command, names: tuple[str, ...]) -> _Command:
    for name in reversed(names):
        spelled = f"--{name.replace('_', '-')}"
        command = click.option(spelled, name, type=click.Path(path_type=Path), help=_HELP[name])(command)
    return command


def check_reports(files: Mapping[str, Path | None]) -> None:
    """Refuse what could not be written, before minutes are spent on measuring.

    Raises:
        InputError: a folder that is not there, a directory where the file is to be, one file for two reports.
    """
    asked = {name: path for name, path in files.items() if path is not None}
    taken: dict[Path, str] = {}
    for name, path in asked.items():
        option, real = f"--{name.replace('_', '-')}", Path(os.path.realpath(path))
        if not path.parent.is_dir():
            raise InputError(f"a folder for {option} at {path.parent}", "none", f"mkdir -p {path.parent}")
        if path.is_dir():
            raise InputError(f"a file for {option}", f"a folder: {path}", "add a name")
        if real in taken:
            raise InputError(f"a file of its own for {option}", f"that of {taken[real]}: {path}", "choose another name")
        taken[real] = option


def write_reports(report: GateReport | BenchReport, files: Mapping[str, Path | None]) -> None:
    """Write those that were asked for, each whole or not at all, and GitHub's summary. Called after the report was
    printed: a disk that refuses must not cost what minutes have measured.

    Raises:
        HostError: the disk refuses.
    """
    makers = _makers(report)
    for name, path in files.items():
        if path is not None:
            replace_text(path, makers[name]())
    summary = os.environ.get(_SUMMARY)
    if summary:
        place = Path(summary)
        with disk_errors(place.parent), place.open("a", encoding="utf-8") as file:
            file.write(report.to_markdown() + "\n")


def _makers(report: GateReport | BenchReport) -> Mapping[str, Callable[[], str]]:
    """What makes the text of each file."""
    from planish.gate.action_benchmark import action_benchmark, bench_benchmark
    from planish.gate.benchmark import BenchReport

    if isinstance(report, BenchReport):
        from planish.gate.html_bench import html_bench

        return {
            "html": lambda: html_bench(report),
            "markdown": report.to_markdown,
            "benchmark_json": lambda: bench_benchmark(report),
        }
    from planish.gate.html_report import html_report
    from planish.gate.junit import junit
    from planish.gate.sample_lines import sample_lines

    return {
        "html": lambda: html_report(report),
        "markdown": report.to_markdown,
        "junit": lambda: junit(report),
        "benchmark_json": lambda: action_benchmark(report),
        "samples": lambda: sample_lines(report),
    }
