"""The Pareto plot of an HTML report: what is bought with what, and who is beaten on both counts by nobody.

Drawn with positioned elements like the other charts. Every label has a line of its own: lines are moved apart as
little as possible in the sense of least squares, which is an isotonic regression (pool adjacent violators; Barlow et
al. 1972). So labels overlap at no width of the screen, however long they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from planish.gate.html_marks import Scale, axis, scale_of, shown

__all__ = ["Point", "frontier", "pareto", "spread"]

LINE = 18.0
"""Height of a label in CSS pixels."""
LEAST_HEIGHT = 260.0
ABOVE = 11.0
"""Pixels between a mark and the middle of its label, so that the label does not lie on the mark's own interval."""


@dataclass(frozen=True)
class Point:
    """One candidate; bounds of an interval, where there is one, in the units of its axis."""

    name: str
    x: float
    y: float
    x_bounds: tuple[float, float] | None = None
    y_bounds: tuple[float, float] | None = None


def frontier(points: Sequence[Point], *, higher: bool) -> list[bool]:
    """Which points no other beats: none is at least as good on both axes and better on one. Less ``x`` is better.

    >>> frontier([Point("a", 1, 0.8), Point("b", 2, 0.9), Point("c", 3, 0.9)], higher=True)
    [True, True, False]
    """
    sign = 1 if higher else -1
    return [
        not any(
            other.x <= one.x and sign * other.y >= sign * one.y and (other.x, other.y) != (one.x, one.y)
            for other in points
        )
        for one in points
    ]


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places at least ``gap`` apart within ``low`` to ``high``, in the order of ``wanted`` and as near to it as can be
    (least squares). Room for all is taken for granted: ``high - low >= gap * (len(wanted) - 1)``.

    >>> spread([10.0, 12.0, 90.0], 10.0, 0.0, 100.0)
    [6.0, 16.0, 90.0]
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    blocks: list[tuple[float, int]] = []  # mean and size
    for rank, index in enumerate(order):
        mean, size = wanted[index] - gap * rank, 1
        while blocks and blocks[-1][0] > mean:
            before, count = blocks.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        blocks.append((mean, size))
    last = high - gap * (len(wanted) - 1)
    means = [min(last, max(low, mean)) for mean, size in blocks for _ in range(size)]
    places = [0.0] * len(wanted)
    for rank, index in enumerate(order):
        places[index] = means[rank] + gap * rank
    return places


def pareto(points: Sequence[Point], x_unit: str, y_unit: str, *, higher: bool, title: str) -> str:
    """The plot with both axes, intervals as bars, and the frontier as steps; ``higher``: more ``y`` is better."""
    shown_points = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    if not shown_points:
        return ""
    across = scale_of([value for point in shown_points for value in (point.x, *(point.x_bounds or ()))], 0.1)
    up = scale_of([value for point in shown_points for value in (point.y, *(point.y_bounds or ()))], 0.12)
    best = frontier(shown_points, higher=higher)
    height = max(LEAST_HEIGHT, LINE * (len(shown_points) + 2))
    tops = [height * (1 - up.percent(point.y) / 100) for point in shown_points]
    lines = spread([top - ABOVE for top in tops], LINE, LINE / 2, height - LINE / 2)
    parts = [
        *(_grid(across.percent(tick), upright=True) for tick in across.ticks()),
        *(_grid(up.percent(tick), words=shown(tick)) for tick in up.ticks()),
        *_steps([point for point, good in zip(shown_points, best, strict=True) if good], across, up, higher),
    ]
    for point, good, top, line in zip(shown_points, best, tops, lines, strict=True):
        parts.append(_mark(point, good, across, up, top, line))
    says = f"{y_unit} over {x_unit}; on the frontier: "
    says += ", ".join(point.name for point, good in zip(shown_points, best, strict=True) if good)
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><div class="unit up">{escape(y_unit)}</div>'
        f'<div class="plot" role="img" aria-label="{escape(says, quote=True)}" style="height:{height:.0f}px">'
        f"{''.join(parts)}</div>{axis(across, x_unit)}</figure>"
    )


def _grid(percent: float, *, upright: bool = False, words: str = "") -> str:
    if upright:
        return f'<i class="grid up" style="left:{percent:.2f}%"></i>'
    return (
        f'<i class="grid" style="bottom:{percent:.2f}%"></i><i class="tick" style="bottom:{percent:.2f}%">{words}</i>'
    )


def _steps(best: Sequence[Point], across: Scale, up: Scale, higher: bool) -> list[str]:
    """What the frontier gives for each ``x``: level until the next better point, to the right edge from the last."""
    places = sorted({(across.percent(point.x), up.percent(point.y)) for point in best})
    parts = []
    for number, (x, y) in enumerate(places):
        end = places[number + 1][0] if number + 1 < len(places) else 100.0
        parts.append(f'<i class="step" style="left:{x:.2f}%;bottom:{y:.2f}%;width:{end - x:.2f}%"></i>')
        if number + 1 < len(places):
            rise = places[number + 1][1] - y if higher else y - places[number + 1][1]
            foot = y if higher else places[number + 1][1]
            parts.append(f'<i class="step up" style="left:{end:.2f}%;bottom:{foot:.2f}%;height:{rise:.2f}%"></i>')
    return parts


def _mark(point: Point, good: bool, across: Scale, up: Scale, top: float, line: float) -> str:
    """Intervals, the mark, its label on its own line, and a leader where that line was moved away."""
    x, y = across.percent(point.x), up.percent(point.y)
    kind = "best" if good else "beaten"
    parts = []
    if point.x_bounds is not None and all(map(math.isfinite, point.x_bounds)):
        left, right = map(across.percent, point.x_bounds)
        parts.append(f'<i class="error {kind}" style="left:{left:.2f}%;width:{right - left:.2f}%;bottom:{y:.2f}%"></i>')
    if point.y_bounds is not None and all(map(math.isfinite, point.y_bounds)):
        low, high = map(up.percent, point.y_bounds)
        parts.append(
            f'<i class="error up {kind}" style="left:{x:.2f}%;bottom:{low:.2f}%;height:{high - low:.2f}%"></i>'
        )
    side, edge, room = ("left", x, 100 - x) if x <= 50 else ("right", 100 - x, x)
    if abs(line - (top - ABOVE)) > LINE / 3:
        place = f"{side}:{edge:.2f}%;top:{min(top, line):.1f}px;height:{abs(top - line):.1f}px"
        parts.append(f'<i class="lead {side} {"down" if line > top else ""}" style="{place}"></i>')
    name = escape(point.name, quote=True)
    place = f"{side}:calc({edge:.2f}% + 12px);top:{line - LINE / 2:.1f}px;max-width:calc({room:.2f}% - 14px)"
    parts.append(f'<span class="label" style="{place}" title="{name}">{name}</span>')
    parts.append(f'<i class="point {kind}" style="left:{x:.2f}%;bottom:{y:.2f}%" title="{name}"></i>')
    return "".join(parts)
