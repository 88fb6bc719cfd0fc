"""Options that several commands take, spelled once."""

from __future__ import annotations

import click

__all__ = ["json_option", "threads_option"]

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object, the last line of stdout.")
threads_option = click.option(
    "--threads",
    type=click.IntRange(1),
    help="Threads of the engine; default: the physical cores (gate times on one where CPU time is judged).",
)
