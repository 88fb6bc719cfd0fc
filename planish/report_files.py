"""The files a gate leaves for others: HTML, Markdown, JUnit XML, figures for github-action-benchmark, all samples.

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
    from planish.gate.report import GateReport

__all__ = ["check_reports", "report_options", "write_reports"]

_SUMMARY = "GITHUB_STEP_SUMMARY"
_HELP = {
    "html": "Write the report here as one HTML page, with charts.",
    "markdown": "Write the report here as Markdown.",
    "junit": "Write the checks here as JUnit XML.",
    "benchmark_json": "Write the figures here for github-action-benchmark (customSmallerIsBetter).",
    "samples": "Write what both bundles said, and every time, here as JSON lines.",
}


def report_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """An option for each file, ``--benchmark-json`` etc."""
    for name, says in reversed(_HELP.items()):
        command = click.option(f"--{name.replace('_', '-')}", name, type=click.Path(path_type=Path), help=says)(command)
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


def write_reports(report: GateReport, files: Mapping[str, Path | None]) -> None:
    """Write those that were asked for, each whole or not at all, and GitHub's summary.

    Raises:
        HostError: the disk refuses.
    """
    from planish.gate.action_benchmark import action_benchmark
    from planish.gate.html_report import html_report
    from planish.gate.junit import junit
    from planish.gate.sample_lines import sample_lines

    makers: dict[str, Callable[[GateReport], str]] = {
        "html": html_report,
        "markdown": lambda found: found.to_markdown(),
        "junit": junit,
        "benchmark_json": action_benchmark,
        "samples": sample_lines,
    }
    for name, path in files.items():
        if path is not None:
            replace_text(path, makers[name](report))
    summary = os.environ.get(_SUMMARY)
    if summary:
        place = Path(summary)
        with disk_errors(place.parent), place.open("a", encoding="utf-8") as file:
            file.write(report.to_markdown() + "\n")
