"""A gate's report as one HTML page that needs nothing else: no script, no font, no request.

Top to bottom: the verdict and what decided it, every check against its limit, metrics of both sides, latency sitting by
sitting, slices, what each pass of the recipe took away and cost, failed samples, and where and on what it was measured.
Charts carry units and intervals; a dashed line is a limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from planish.gate.html_marks import Scale, scale_of, shown, track
from planish.gate.html_page import axis_row, between, bounds, facts, measured_on, page, percent, row, section
from planish.gate.html_passes import passes
from planish.gate.slowdown import CLOCK_WORDS
from planish.gate.statistics import hodges_lehmann
from planish.gate.workloads import spelled

if TYPE_CHECKING:
    from planish.gate.checks import Check
    from planish.gate.report import GateReport, Pair
    from planish.gate.slowdown import Comparison
    from planish.gate.statistics import Interval

__all__ = ["html_report"]


def html_report(report: GateReport) -> str:
    """The whole page."""
    parts = [
        _head(report),
        section("Checks", [_check(check) for check in report.checks], _key(report)),
        *(_metric(pair) for pair in report.metrics),
        *(_latency(found) for found in report.latency),
        _slices(report),
        *passes(report.receipts),
        _failures(report),
        _facts(report),
    ]
    return page(f"planish gate: {report.verdict}, {report.candidate.name}", parts)


def _head(report: GateReport) -> str:
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in report.reasons)
    notes = "".join(f"<p><strong>{escape(note)}</strong></p>" for note in report.notes)
    words = f"{escape(report.candidate.name)} against {escape(report.baseline.name)}, {escape(report.task)}"
    return (
        f'<header class="{report.verdict}"><h1><span class="word">{report.verdict}</span></h1>'
        f'<p class="soft">{words}</p>{notes}<ul>{reasons}</ul></header>'
    )


def _key(report: GateReport) -> str:
    """What the marks mean; intervals of all checks have one confidence."""
    found = next((check.interval for check in report.checks if check.interval is not None), None)
    bar = "" if found is None else f" Bar: {percent(found)}."
    return f"Dot: found.{bar} Dashed: limit. Each check has a scale of its own."


def _check(check: Check) -> str:
    tone = str(check.verdict) if check.required else "reported"
    ends = [check.value, *([check.limit] if check.limit is not None else [])]
    if check.interval is not None:
        ends += [check.interval.low, check.interval.high]
    unit = "" if check.unit == "share" else f" {escape(check.unit)}"
    figure = f"{shown(check.value)}{unit} <small>{bounds(check.interval, check.limit)}</small>"
    if check.interval is None and check.limit in (None, check.value):
        return row(f'{escape(check.name)} <small class="word {tone}">{tone}</small>', "<div></div>", figure)
    scale = scale_of(ends)
    chart = track(
        scale,
        interval=None if check.interval is None else (check.interval.low, check.interval.high),
        estimate=check.value,
        limit=check.limit,
        tone=tone,
        says=check.reason,
    )
    line = row(f'{escape(spelled(check.name))} <small class="word {tone}">{tone}</small>', chart, figure)
    return line + axis_row(scale, "")


def _metric(pair: Pair) -> str:
    """A metric of both sides, each with its own interval, and the paired change, which decides."""
    sides = {
        "baseline": (pair.baseline, pair.baseline_interval),
        "candidate": (pair.candidate, pair.candidate_interval),
    }
    ends = [end for value, interval in sides.values()
            for end in (value, *((interval.low, interval.high) if interval else ()))]  # fmt: skip
    scale, rows = scale_of(ends), []
    for side, (value, interval) in sides.items():
        chart = track(
            scale,
            interval=None if interval is None else (interval.low, interval.high),
            estimate=value,
            tone="new" if side == "candidate" else "old",
            says=f"{side}: {shown(value)}, {between(interval)}",
        )
        rows.append(row(side, chart, f"{shown(value)} <small>{between(interval)}</small>", tight=True))
    lost = pair.unit == "points lost"
    unit = f"{pair.name}, {percent(pair.change)} of each side alone{'' if lost else ', lower is better'}"
    change = (
        f"{shown(pair.change.estimate)} points lost" if lost else f"{shown(pair.change.estimate)} times the baseline's"
    )
    note = f"Paired on the same {pair.n} samples: {change}{_after(between(pair.change))}."
    return section(f"{pair.name[0].upper()}{pair.name[1:]}", [*rows, axis_row(scale, unit)], note)


def _latency(found: Comparison) -> str:
    """Both sides' times, then the ratio of each sitting."""
    clock = CLOCK_WORDS[found.judged]
    times = {side: [1e3 * getattr(one, found.judged) for one in getattr(found.timings, side)]
             for side in ("baseline", "candidate")}  # fmt: skip
    ratios = [new / old for old, new in zip(times["baseline"], times["candidate"], strict=True) if old > 0]
    if not ratios:
        return ""
    scale, spread = scale_of([*times["baseline"], *times["candidate"]]), []
    for side, values in times.items():
        middle = 1e3 * found.median_seconds[f"{side}_{found.judged}"]
        says = f"{side}: median {shown(middle)} ms of {len(values)} sittings"
        around = hodges_lehmann(np.array(values))
        tone = "new" if side == "candidate" else "old"
        chart = track(scale, interval=(around.low, around.high), estimate=middle, values=values, tone=tone, says=says)
        figure = f"{shown(middle)} ms <small>median of {len(values)}{_after(between(around))}</small>"
        spread.append(row(side, chart, figure, tight=True))
    limit = None if found.limit is None else found.allowed
    near = scale_of([*ratios, found.ratio.low, found.ratio.high, *([limit] if limit else []), 1.0])
    words = f"ratio {shown(found.ratio.estimate)}, {between(found.ratio)}"
    tone = str(found.verdict) if found.limit is not None else "reported"
    chart = _estimated(near, found.ratio, limit, tone, words, ratios)
    figure = f"{shown(found.ratio.estimate)} <small>{bounds(found.ratio, limit)}</small>"
    rows = [
        *spread,
        axis_row(scale, f"milliseconds of {clock}, one dot a sitting; bar: {percent(found.ratio)} of the median"),
        row("candidate / baseline", chart, figure),
        axis_row(near, f"ratio, one dot a sitting; bar: {percent(found.ratio)}"),
    ]
    begun = f"{clock[0].upper()}{clock[1:]} of {found.pairs} sittings"
    note = f"{begun}; the smallest slowdown found in 80 % of cases: {found.detectable_words}."
    if found.judged != "wall":
        note += f" Wall time ratio {shown(found.wall_ratio.estimate)}{_after(between(found.wall_ratio))}."
    if found.noise is not None:
        note += f" The baseline against itself, in a session of its own: {between(found.noise)}."
    return section(f"Latency {spelled(found.name)}", rows, note)


def _after(words: str) -> str:
    return f", {words}" if words else ""


def _estimated(
    scale: Scale, found: Interval, limit: float | None, tone: str, says: str, values: Sequence[float] = ()
) -> str:
    """An estimate with its interval on a scale that several rows or dots share."""
    interval = (found.low, found.high)
    return track(scale, interval=interval, estimate=found.estimate, limit=limit, values=values, tone=tone, says=says)


def _slices(report: GateReport) -> str:
    if not report.slices:
        return ""
    margin = report.limits.slice_margin
    ends = [end for one in report.slices for end in (one.loss.low, one.loss.high)]
    scale, rows = scale_of([*ends, margin, 0.0]), []
    for one in report.slices:
        says = f"{one.name}: {shown(one.candidate)} for {shown(one.baseline)}, n = {one.n}"
        chart = _estimated(scale, one.loss, margin, "regress" if one.hurts(margin) else "pass", says)
        figure = f"{shown(one.loss.estimate)} points <small>{between(one.loss)}, n = {one.n}</small>"
        rows.append(row(escape(one.name), chart, figure))
    note = (
        f"Points lost of {report.metrics[0].name}, the largest first; right of the dashed line and proved is a regress."
    )
    return section("Slices", [*rows, axis_row(scale, f"points lost, {percent(report.slices[0].loss)}")], note)


def _failures(report: GateReport) -> str:
    items = "".join(f"<li>{escape(one.side)}, sample {one.line}: {escape(one.message)}</li>" for one in report.failures)
    return section("Failed samples", [f"<ul>{items}</ul>"]) if items else ""


def _facts(report: GateReport) -> str:
    told = {
        "candidate": f"{report.candidate.name}, {report.candidate.bytes:,} bytes, {report.candidate.digest}",
        "baseline": f"{report.baseline.name}, {report.baseline.bytes:,} bytes, {report.baseline.digest}",
        "data": ", ".join(f"{key} {value}" for key, value in report.data.items()),
        **measured_on(report.environment),
        "seed": report.seed,
        "seconds": round(report.seconds, 1),
    }
    return section("Measured on", [facts(told)])
