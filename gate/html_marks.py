"""Small charts of an HTML report, drawn with positioned elements: text keeps its size on any screen, nothing is loaded.

A :class:`Scale` maps values to per cents of a track; `track` draws an interval, its estimate, a limit and single
values on one, `histogram` very many values and some quantiles, `bar` a size; `axis` draws the numbers beneath.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Scale", "axis", "bar", "histogram", "scale_of", "shown", "track"]

BINS = 60


@dataclass(frozen=True)
class Scale:
    """``low`` and ``high`` are the ends of the track."""

    low: float
    high: float

    def percent(self, value: float) -> float:
        """Where ``value`` lies, 0 to 100; beyond the ends at the ends.

        >>> Scale(10.0, 20.0).percent(12.5), Scale(10.0, 20.0).percent(99.0)
        (25.0, 100.0)
        """
        return min(100.0, max(0.0, 100 * (value - self.low) / (self.high - self.low)))

    def ticks(self, most: int = 5) -> list[float]:
        """Round numbers on the scale, at most ``most + 1`` of them.

        >>> Scale(0.91, 1.12).ticks()
        [0.95, 1.0, 1.05, 1.1]
        """
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def scale_of(values: Iterable[float], pad: float = 0.06) -> Scale:
    """A scale with room for all finite ``values``."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    room = pad * (high - low) or 0.05 * abs(high) or 1.0
    return Scale(low - room, high + room)


def track(
    scale: Scale,
    *,
    interval: tuple[float, float] | None = None,
    estimate: float | None = None,
    limit: float | None = None,
    values: Sequence[float] = (),
    tone: str = "",
    says: str = "",
) -> str:
    """One line of a chart. ``values`` are single measurements, ``tone`` a class that gives the colour, ``says`` what a
    screen reader and a pointer are told.
    """
    parts = []
    if limit is not None and math.isfinite(limit):
        parts.append(f'<i class="limit" style="left:{scale.percent(limit):.2f}%"></i>')
    if interval is not None and not math.isnan(interval[0]) and not math.isnan(interval[1]):
        left, right = scale.percent(interval[0]), scale.percent(interval[1])
        parts.append(f'<i class="span" style="left:{left:.2f}%;width:{max(0.0, right - left):.2f}%"></i>')
    for number, value in enumerate(values):
        if math.isfinite(value):  # spread in three rows, so that equal ones are seen
            rows = 25 + 25 * (number % 3)
            parts.append(f'<i class="one" style="left:{scale.percent(value):.2f}%;top:{rows}%"></i>')
    if estimate is not None and math.isfinite(estimate):
        parts.append(f'<i class="dot" style="left:{scale.percent(estimate):.2f}%"></i>')
    words = escape(says, quote=True)
    return f'<div class="track {tone}" role="img" aria-label="{words}" title="{words}">{"".join(parts)}</div>'


def histogram(
    scale: Scale, values: Sequence[float], quantiles: Sequence[float], *, tone: str = "", says: str = ""
) -> str:
    """How ``values`` are spread, in :data:`BINS` bars, and ``quantiles`` (the first is the longest mark). What lies
    beyond an end of the scale is in the bar at that end.
    """
    counts = [0] * BINS
    for value in values:
        if math.isfinite(value):
            counts[min(BINS - 1, int(BINS * scale.percent(value) / 100))] += 1
    most, width = max(counts) or 1, 100 / BINS
    parts = []
    for number, count in enumerate(counts):
        if count:
            place = f"left:{number * width:.2f}%;width:{width:.2f}%;height:{max(4.0, 100 * count / most):.1f}%"
            parts.append(f'<i class="bin" style="{place}"></i>')
    for number, value in enumerate(quantiles):
        if math.isfinite(value):
            kind = "quantile" if number else "quantile first"
            parts.append(f'<i class="{kind}" style="left:{scale.percent(value):.2f}%"></i>')
    words = escape(says, quote=True)
    return f'<div class="track tall {tone}" role="img" aria-label="{words}" title="{words}">{"".join(parts)}</div>'


def bar(share: float, *, tone: str = "", says: str = "") -> str:
    """A bar as long as ``share``, 0 to 1, of the track."""
    words = escape(says, quote=True)
    length = f"width:{100 * min(1.0, max(0.0, share)):.2f}%"
    inner = f'<div class="bar" style="{length}"></div>'
    return f'<div class="track {tone}" role="img" aria-label="{words}" title="{words}">{inner}</div>'


def axis(scale: Scale, unit: str) -> str:
    """Round numbers beneath a chart, and their unit."""
    ticks = "".join(f'<i style="left:{scale.percent(tick):.2f}%">{shown(tick)}</i>' for tick in scale.ticks())
    return f'<div class="axis">{ticks}</div><div class="unit">{escape(unit)}</div>'


def shown(value: float) -> str:
    """A number for people: four digits at most, thousands apart, a minus that is one.

    >>> shown(-0.12344), shown(12345678.0), shown(float("inf"))
    ('\u22120.1234', '12,345,678', '\u221e')
    """
    if not math.isfinite(value):
        return "unknown" if math.isnan(value) else ("\u2212\u221e" if value < 0 else "\u221e")
    words = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return words.replace("-", "\u2212")
