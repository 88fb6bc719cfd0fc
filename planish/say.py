"""How commands speak: progress on stderr, the answer on stdout, one JSON object as its last line if asked."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from planish.interrupts import raise_interrupt

__all__ = ["answer", "megabytes", "progress_bar", "table"]


def console() -> Console:
    """A console on the stderr of this moment (tests and pipes may have replaced it)."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def answer(result: dict[str, Any], *, as_json: bool, lines: Sequence[str] = ()) -> None:
    """The command's answer on stdout: ``lines`` for people, or one JSON object, the last line."""
    if as_json:
        print(json.dumps({"ok": True, **result}, ensure_ascii=False, allow_nan=False), flush=True)
    else:
        for line in lines:
            print(line)
        sys.stdout.flush()


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is left-aligned, figures to the right."""
    drawn = Table(title=title or None, title_justify="left")
    for number, name in enumerate(head):
        drawn.add_column(name, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    target = Console(file=sys.stdout, highlight=False)
    if not target.is_terminal:
        target = Console(file=target.file, highlight=False, width=132)
    target.print(drawn)


@contextmanager
def progress_bar(*, quiet: bool = False) -> Iterator[Any]:
    """A progress callable ``(stage, done, total)`` drawn on stderr, one bar a stage."""
    if quiet or not sys.stderr.isatty():
        yield plain_progress(quiet)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console()) as bars:
        tasks: dict[str, Any] = {}

        def advance(stage: str, done: int, total: int) -> None:
            raise_interrupt()
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total or None)
            bars.update(tasks[stage], completed=done, total=total or None)

        yield advance


def plain_progress(quiet: bool) -> Any:
    """Progress without a terminal: one line when a stage begins, none with ``quiet``."""
    seen: set[str] = set()

    def advance(stage: str, done: int, total: int) -> None:
        raise_interrupt()
        if not quiet and stage not in seen:
            seen.add(stage)
            print(f"planish: {stage}", file=sys.stderr, flush=True)

    return advance


def megabytes(count: float) -> str:
    """Bytes as decimal megabytes.

    >>> megabytes(23_540_000)
    '23.5 MB'
    """
    return f"{count / 1e6:.1f} MB"
