"""What every HTML report is made of: a page that loads nothing, sections, rows of a chart, tables, words for bounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from planish.gate.conditions_told import conditions_line
from planish.gate.html_marks import Scale, axis, shown
from planish.gate.html_style import STYLE

if TYPE_CHECKING:
    from planish.gate.statistics import Interval

__all__ = ["axis_row", "between", "bounds", "facts", "figures", "measured_on", "page", "percent", "row", "section"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(title: str, parts: Iterable[str]) -> str:
    """The document: ``parts`` are markup, ``title`` is text. Nothing is loaded, and a policy forbids it."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main></body></html>\n"
    )


def section(title: str, rows: Iterable[str], note: str = "") -> str:
    """A card; nothing at all without ``rows``. ``title`` and ``note`` are text, rows are markup."""
    body = "\n".join(rows)
    about = f'<p class="soft">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{about}\n{body}\n</section>" if body else ""


def row(name: str, chart: str, figure: str, *, tight: bool = False) -> str:
    """A line of a chart: whose it is, the marks, the figure; all three are markup."""
    kind = "row tight" if tight else "row"
    return f'<div class="{kind}"><div class="name">{name}</div>{chart}<div class="figure">{figure}</div></div>'


def axis_row(scale: Scale, unit: str) -> str:
    """The numbers beneath rows that share ``scale``."""
    return f'<div class="row tight foot"><div></div>{axis(scale, unit)}</div>'


def figures(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of text that scrolls by itself where the screen is narrow."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>" for cells in rows)
    return f'<div class="scroll"><table class="figures"><tr>{top}</tr>{body}</table></div>'


def facts(told: Mapping[str, Any]) -> str:
    """A table of names and values; what is None is left out."""
    rows = "".join(
        f"<tr><th>{escape(str(key))}</th><td>{escape(str(value))}</td></tr>"
        for key, value in told.items()
        if value is not None
    )
    return f'<div class="scroll"><table class="facts">{rows}</table></div>'


def measured_on(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The machine as it was before the measurement, and in one line what changed until after it."""
    before, after = (environment.get(when, {}) for when in ("before", "after"))
    told = {key: value for key, value in before.items() if not isinstance(value, Mapping)}
    line = conditions_line(before.get("conditions", {}), after.get("conditions", {}))
    return {**told, "load afterwards": after.get("load"), "conditions": line or None}


def bounds(interval: Interval | None, limit: float | None) -> str:
    """The interval and the limit in words, as far as there are any."""
    words = [between(interval), "" if limit is None else f"limit {shown(limit)}"]
    return ", ".join(word for word in words if word)


def between(interval: Interval | None) -> str:
    """The bounds of an interval; nothing where it has none."""
    if interval is None or not (math.isfinite(interval.low) or math.isfinite(interval.high)):
        return ""
    return f"{shown(interval.low)} to {shown(interval.high)}"


def percent(interval: Interval) -> str:
    """The confidence of an interval.

    >>> from planish.gate.statistics import wilson_interval
    >>> percent(wilson_interval(9, 10))
    '95 % interval'
    """
    return f"{100 * interval.confidence:.4g} % interval"
