"""``--max-bytes``, ``--max-memory``, ``--max-energy``: budgets of `planish gate`, and sizes as people write them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from planish.errors import InputError

__all__ = ["budget_options", "bytes_of"]

_UNITS = {"": 1, **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)}}
_UNITS |= {f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", 1)} | {"B": 1}


def bytes_of(text: str) -> int:
    """A size: plain bytes, decimal (kB, MB, GB, TB) or binary units (KiB, MiB, GiB, TiB), in any case; rounded down.

    Raises:
        InputError: anything else, or nothing.

    >>> bytes_of("12MB"), bytes_of("1.5 GiB"), bytes_of("4096")
    (12000000, 1610612736, 4096)
    """
    found = re.fullmatch(r"\s*([0-9]{1,15})(?:\.([0-9]{1,6}))?\s*([A-Za-z]{0,3})\s*", text)
    unit = _UNITS.get(found[3].upper()) if found else None
    digits = found[2] or "" if found else ""
    size = int(found[1] + digits) * unit // 10 ** len(digits) if found and unit else 0
    if not 1 <= size <= 10**18:
        raise InputError("a size above 0 such as 12000000, 12MB or 1.5GiB", repr(text), "write a number and a unit")
    return size


def budget_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The three options; they arrive as ``max_bytes``, ``max_memory`` (bytes) and ``max_energy`` (joules) or None."""
    energy = click.option(
        "--max-energy", type=float, metavar="JOULES", help="Most energy of an inference; inconclusive without a meter."
    )
    memory = click.option(
        "--max-memory", callback=_size, metavar="SIZE", help="Most memory of a process that answers once, e.g. 300MB."
    )
    size = click.option("--max-bytes", callback=_size, metavar="SIZE", help="Most bytes of the bundle, e.g. 25MB.")
    return size(memory(energy(command)))


def _size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    return None if value is None else bytes_of(value)
