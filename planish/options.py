"""Options that several commands take, spelled once."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from planish.errors import InputError

__all__ = ["data_option", "json_option", "seconds_option", "shape_of", "threads_option"]

LONGEST = 86_400.0  # seconds; beyond a day it is a slip of the keyboard

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object, the last line of stdout.")
threads_option = click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="Threads of the engine; default: the physical cores (gate times on one where CPU time is judged).",
)


def data_option(says: str) -> Callable[[Any], Any]:
    """``--data``, a file of texts, with a command's own words."""
    return click.option("--data", type=click.Path(path_type=Path), help=says)


def seconds_option(default: float, says: str) -> Callable[[Any], Any]:
    """``--seconds`` with a command's own default and words."""

    def check(context: click.Context, parameter: click.Parameter, value: float) -> float:
        from planish.gate.limits import check_seconds

        return check_seconds(value, LONGEST)

    return click.option(
        "--seconds",
        type=float,
        default=default,
        show_default=True,
        callback=check,
        help=says,
    )


def shape_of(text: str) -> tuple[int, int]:
    """A batch and a length from ``1x128``.

    >>> shape_of("8x64")
    (8, 64)
    """
    found = re.fullmatch(r"([1-9][0-9]{0,6})[xX]([1-9][0-9]{0,6})", text)
    if not found:
        raise InputError("--shape BATCHxLENGTH", repr(text), "type for example: --shape 1x128")
    return int(found[1]), int(found[2])
