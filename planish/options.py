"""Options that several commands take, spelled once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from planish.errors import InputError

__all__ = ["check_seconds", "json_option", "seconds_option", "threads_option"]

LONGEST = 86_400.0  # seconds; beyond a day it is a slip of the keyboard

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object, the last line of stdout.")
threads_option = click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="Threads of the engine; default: the physical cores (gate times on one where CPU time is judged).",
)


def check_seconds(seconds: float) -> float:
    """The time to measure for, if it is one; NaN is not.

    Raises:
        InputError: it is not above 0, or above a day.
    """
    if not 0 < seconds <= LONGEST:
        raise InputError(f"--seconds above 0 and at most {LONGEST:.0f}", f"{seconds:g}", "leave it out for the default")
    return seconds


def seconds_option(default: float, says: str) -> Callable[[Any], Any]:
    """``--seconds`` with a command's own default and words."""
    return click.option(
        "--seconds",
        type=float,
        default=default,
        show_default=True,
        callback=lambda context, parameter, value: check_seconds(value),
        help=says,
    )
