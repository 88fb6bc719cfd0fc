"""A bench's report as one HTML page that needs nothing else: no script, no font, no request.

Top to bottom: the bundles, their scores on the data, the latency of every shape and phase as it was distributed, ratios
to the first bundle, Pareto plots of what is bought with what, all figures as a table, and where it was measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from planish.gate.benchmark import TIMES_HEAD, time_cells
from planish.gate.html_marks import histogram, scale_of, shown, track
from planish.gate.html_page import axis_row, between, facts, figures, measured_on, page, percent, row, section
from planish.gate.html_plot import Point, pareto
from planish.gate.workloads import spelled

if TYPE_CHECKING:
    from planish.gate.benchmark import BenchReport, Measurement
    from planish.gate.scores import Score
    from planish.gate.slowdown import Comparison
    from planish.gate.statistics import Interval

__all__ = ["html_bench"]

FAR = 99.0
"""Per cent of the times that a chart of latency has room for; what is slower is in its last bar."""
STRETCH = 6.0
"""... but for no more than so many times the slowest median, or a few hiccups would press all else into one bar."""
TONES = ("old", "new")
"""Of the first bundle, which the others are compared with, and of those."""


def html_bench(report: BenchReport) -> str:
    """The whole page."""
    names = [str(bundle["name"]) for bundle in report.bundles]
    groups = _groups(report.measurements)
    parts = [
        _head(report, names),
        section("Bundles", [figures(("bundle", "task", "MB", "peak RSS, MB"), _bundles(report))]),
        *_scores(report, names),
        *(_latency(name, found, names[0]) for name, found in groups.items()),
        *_ratios(report.ratios, names[0]),
        _pareto(report, groups),
        section("All figures", [figures(TIMES_HEAD, map(time_cells, report.measurements))], _FIGURES),
        section("Measured on", [facts(_facts(report))]),
    ]
    return page(f"planish bench: {', '.join(names)}", parts)


_FIGURES = (
    "Milliseconds for one inference, one prefill (time to first token) or one decode step (inter-token latency)."
    " Percentiles are of the wall clock, CPU is the median over all threads of the process."
)


def _head(report: BenchReport, names: Sequence[str]) -> str:
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    tasks = ", ".join(sorted({str(bundle["task"]) for bundle in report.bundles}))
    return f'<header><h1>bench: {escape(names[0])}{others}</h1><p class="soft">{escape(tasks)}</p></header>'


def _bundles(report: BenchReport) -> Iterator[list[str]]:
    for bundle in report.bundles:
        peak = bundle["peak_rss_bytes"]
        memory = "not measured" if peak is None else shown(peak / 1e6)
        yield [str(bundle["name"]), str(bundle["task"]), shown(bundle["bytes"] / 1e6), memory]


def _groups(measurements: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    """What is compared with each other: by shape and phase, in the order measured."""
    found: dict[str, list[Measurement]] = {}
    for one in measurements:
        found.setdefault(f"{one.shape} {one.phase}", []).append(one)
    return found


def _tone(name: str, first: str) -> str:
    return TONES[name != first]


def _ends(intervals: Sequence[Interval]) -> list[float]:
    return [end for one in intervals for end in (one.low, one.estimate, one.high)]


def _scores(report: BenchReport, names: Sequence[str]) -> Iterator[str]:
    """A section for each metric."""
    for metric in dict.fromkeys(score.metric for score in report.scores):
        found = [score for score in report.scores if score.metric == metric]
        scale = scale_of(_ends([score.interval for score in found]))
        rows = []
        for one in found:
            bounds = between(one.interval)
            says = f"{one.bundle}: {shown(one.interval.estimate)}, {bounds}"
            drawn = (one.interval.low, one.interval.high)
            tone = _tone(one.bundle, names[0])
            chart = track(scale, interval=drawn, estimate=one.interval.estimate, tone=tone, says=says)
            failed = f", {one.failures} failed" if one.failures else ""
            small = f"{bounds}{', ' if bounds else ''}n = {one.n}{failed}"
            rows.append(row(escape(one.bundle), chart, f"{shown(one.interval.estimate)} <small>{small}</small>"))
        better = "higher" if found[0].higher_is_better else "lower"
        unit = f"{metric}, {percent(found[0].interval)}, {better} is better"
        name = f"{metric[0].upper()}{metric[1:]}"
        yield section(name, [*rows, axis_row(scale, unit)], f"Each bundle alone on {_data(report)}.")


def _data(report: BenchReport) -> str:
    return "the data" if report.data is None else f"{report.data['name']}, {report.data['samples']} samples"


def _latency(name: str, found: Sequence[Measurement], first: str) -> str:
    """How the times of each bundle are spread, on one scale."""
    far = max(float(np.percentile(one.times, FAR)) for one in found)
    far = min(far, STRETCH * max(one.p50 for one in found))
    scale = scale_of([1e3 * value for value in (*(min(one.times) for one in found), far)])
    rows = []
    for one in found:
        quantiles = [1e3 * value for value in (one.p50, one.p90, one.p95)]
        words = f"p50 {shown(quantiles[0])}, p90 {shown(quantiles[1])}, p95 {shown(quantiles[2])} ms"
        beyond = sum(1e3 * value > scale.high for value in one.times)
        small = f"p90 {shown(quantiles[1])}, p95 {shown(quantiles[2])}, {one.rounds} times"
        small += f", {beyond} beyond the edge" if beyond else ""
        times = [1e3 * value for value in one.times]
        chart = histogram(scale, times, quantiles, tone=_tone(one.bundle, first), says=f"{one.bundle}: {words}")
        rows.append(row(escape(one.bundle), chart, f"{shown(quantiles[0])} ms <small>{small}</small>"))
    note = "Bars: all times measured, those beyond the edge in the last. Long mark: p50; short marks: p90 and p95."
    return section(f"Latency {spelled(name)}", [*rows, axis_row(scale, "milliseconds, wall clock")], note)


def _ratios(ratios: Sequence[Comparison], first: str) -> Iterator[str]:
    """Every further bundle against the first, all on one scale."""
    if not ratios:
        return
    scale, rows = scale_of([*_ends([one.ratio for one in ratios]), 1.0]), []
    for one in ratios:
        words = f"{shown(one.ratio.estimate)}"
        drawn = (one.ratio.low, one.ratio.high)
        chart = track(scale, interval=drawn, estimate=one.ratio.estimate, limit=1.0, tone="new", says=one.name)
        bounds, wall = between(one.ratio), f"wall clock {shown(one.wall_ratio.estimate)}"
        small = ", ".join(part for part in (bounds, wall) if part)
        rows.append(row(escape(_without(one.name, first)), chart, f"{words} <small>{small}</small>"))
    clock = "CPU time" if ratios[0].judged == "cpu" else "wall clock"
    note = f"{clock} over that of {first}, paired by {ratios[0].pairs} sittings; left of the dashed line is faster."
    yield section(f"Against {first}", [*rows, axis_row(scale, f"ratio, {percent(ratios[0].ratio)}")], note)


def _without(name: str, first: str) -> str:
    """The name of a ratio without the bundle that all are compared with."""
    return spelled(name.replace(f" / {first} ", ", ", 1))


def _pareto(report: BenchReport, groups: dict[str, list[Measurement]]) -> str:
    """Score over latency and over bytes; without scores bytes over latency. One bundle makes no plot."""
    if len(report.bundles) < 2:
        return ""
    sizes = {str(bundle["name"]): float(bundle["bytes"]) / 1e6 for bundle in report.bundles}
    metric = report.scores[0].metric if report.scores else ""
    scored = {score.bundle: score for score in report.scores if score.metric == metric}
    higher = bool(scored) and report.scores[0].higher_is_better
    y_unit = f"{metric or 'megabytes'}, {'higher' if higher else 'lower'} is better"
    heights = {name: _height(name, scored, sizes) for name in (scored or sizes)}
    plots = []
    for name, found in groups.items():
        points = [
            Point(one.bundle, 1e3 * one.p50, heights[one.bundle][0], _bounds(one.interval, 1e3), heights[one.bundle][1])
            for one in found
            if one.bundle in heights
        ]
        unit = "milliseconds, p50 of the wall clock; left is better"
        plots.append(pareto(points, unit, y_unit, higher=higher, title=spelled(name)))
    if scored:
        points = [Point(name, sizes[name], y, None, bounds) for name, (y, bounds) in heights.items()]
        plots.append(pareto(points, "megabytes of the bundle; left is better", y_unit, higher=higher, title="size"))
    note = (
        "Full marks are on the Pareto frontier (dashed): no other bundle is as good on both counts and better on one."
    )
    note += f" {_whiskers(report)}"
    return section("What is bought with what", [f'<div class="plots">{"".join(plots)}</div>'], note)


def _whiskers(report: BenchReport) -> str:
    """What the bars of a mark are."""
    words = f"Bars: {percent(report.measurements[0].interval)} of the median from the sittings"
    return words + (", and of each bundle's score." if report.scores else ".")


def _height(name: str, scored: dict[str, Score], sizes: dict[str, float]) -> tuple[float, tuple[float, float] | None]:
    """Where a bundle stands on the upright axis, with its bounds."""
    if name in scored:
        return scored[name].interval.estimate, _bounds(scored[name].interval, 1.0)
    return sizes[name], None


def _bounds(interval: Interval, unit: float) -> tuple[float, float] | None:
    known = math.isfinite(interval.low) and math.isfinite(interval.high)
    return (unit * interval.low, unit * interval.high) if known else None


def _facts(report: BenchReport) -> dict[str, Any]:
    digests = {f"digest of {bundle['name']}": bundle["digest"] for bundle in report.bundles}
    data = None if report.data is None else _data(report)
    return {**digests, "data": data, **measured_on(report.environment), "seed": report.seed}
