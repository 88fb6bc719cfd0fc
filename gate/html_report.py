"""A gate's report as one HTML page that needs nothing else: no script, no font, no request.

Top to bottom: the verdict and what decided it, every check against its limit, latency sitting by sitting, slices, what
each pass of the recipe took away and cost, failed samples, and where and on what it was measured. Charts carry units
and 95 % intervals; a dashed line is a limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from planish.gate.html_marks import Scale, axis, scale_of, shown, track
from planish.gate.html_style import STYLE

if TYPE_CHECKING:
    from planish.gate.checks import Check
    from planish.gate.report import GateReport
    from planish.gate.slowdown import Comparison
    from planish.gate.statistics import Interval

__all__ = ["html_report"]

_QUALITIES = ("accuracy", "span_f1", "answer_f1", "perplexity", "cosine_mean", "similarity_correlation", "loss")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def html_report(report: GateReport) -> str:
    """The whole page."""
    parts = [
        _head(report),
        _section(
            "Checks", [_check(check) for check in report.checks], "Dot: found. Bar: 95 % interval. Dashed: limit."
        ),
        *(_latency(found) for found in report.latency),
        _slices(report),
        _passes(report.receipts),
        _failures(report),
        _facts(report),
    ]
    title = escape(f"planish gate: {report.verdict}, {report.candidate.name}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main></body></html>\n"
    )


def _head(report: GateReport) -> str:
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in report.reasons)
    words = f"{escape(report.candidate.name)} against {escape(report.baseline.name)}, {escape(report.task)}"
    return (
        f'<header class="{report.verdict}"><h1><span class="word">{report.verdict}</span></h1>'
        f'<p class="soft">{words}</p><ul>{reasons}</ul></header>'
    )


def _section(title: str, rows: Iterable[str], note: str = "") -> str:
    body = "\n".join(rows)
    about = f'<p class="soft">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{about}\n{body}\n</section>" if body else ""


def _row(name: str, chart: str, figure: str, *, tight: bool = False) -> str:
    kind = "row tight" if tight else "row"
    return f'<div class="{kind}"><div class="name">{name}</div>{chart}<div class="figure">{figure}</div></div>'


def _check(check: Check) -> str:
    tone = str(check.verdict) if check.required else "reported"
    ends = [check.value, *([check.limit] if check.limit is not None else [])]
    if check.interval is not None:
        ends += [check.interval.low, check.interval.high]
    unit = "" if check.unit == "share" else f" {escape(check.unit)}"
    figure = f"{shown(check.value)}{unit} <small>{_bounds(check.interval, check.limit)}</small>"
    if check.interval is None and check.limit is None:
        return _row(f'{escape(check.name)} <small class="word {tone}">{tone}</small>', "<div></div>", figure)
    chart = track(
        scale_of(ends),
        interval=None if check.interval is None else (check.interval.low, check.interval.high),
        estimate=check.value,
        limit=check.limit,
        tone=tone,
        says=check.reason,
    )
    return _row(f'{escape(check.name)} <small class="word {tone}">{tone}</small>', chart, figure)


def _latency(found: Comparison) -> str:
    """Both sides' times, then the ratio of each sitting."""
    clock = "CPU time" if found.judged == "cpu" else "wall time"
    times = {side: [1e3 * getattr(one, found.judged) for one in getattr(found.timings, side)]
             for side in ("baseline", "candidate")}  # fmt: skip
    ratios = [new / old for old, new in zip(times["baseline"], times["candidate"], strict=True) if old > 0]
    if not ratios:
        return ""
    scale, spread = scale_of([*times["baseline"], *times["candidate"]]), []
    for side, values in times.items():
        middle = 1e3 * found.median_seconds[f"{side}_{found.judged}"]
        says = f"{side}: median {shown(middle)} ms of {len(values)} sittings"
        chart = track(scale, values=values, estimate=middle, tone="new" if side == "candidate" else "old", says=says)
        spread.append(_row(side, chart, f"{shown(middle)} ms <small>median of {len(values)}</small>", tight=True))
    limit = None if found.limit is None else found.allowed
    near = scale_of([*ratios, found.ratio.low, found.ratio.high, *([limit] if limit else []), 1.0])
    words = f"ratio {shown(found.ratio.estimate)}, {_between(found.ratio)}"
    tone = str(found.verdict) if found.limit is not None else "reported"
    chart = _estimated(near, found.ratio, limit, tone, words, ratios)
    figure = f"{shown(found.ratio.estimate)} <small>{_bounds(found.ratio, limit)}</small>"
    rows = [
        *spread,
        _axis(scale, f"milliseconds, {clock}"),
        _row("candidate / baseline", chart, figure),
        _axis(near, "ratio, one dot a sitting"),
    ]
    note = f"{clock} of {found.pairs} sittings; a slowdown of {100 * (found.detectable - 1):.1f} % would be found"
    note += f" in 80 % of cases. Wall time ratio {shown(found.wall_ratio.estimate)}, {_between(found.wall_ratio)}."
    return _section(f"Latency {found.name}", rows, note)


def _estimated(
    scale: Scale, found: Interval, limit: float | None, tone: str, says: str, values: Sequence[float] = ()
) -> str:
    """An estimate with its interval on a scale that several rows or dots share."""
    interval = (found.low, found.high)
    return track(scale, interval=interval, estimate=found.estimate, limit=limit, values=values, tone=tone, says=says)


def _axis(scale: Scale, unit: str) -> str:
    return f'<div class="row tight"><div></div>{axis(scale, unit)}</div>'


def _slices(report: GateReport) -> str:
    if not report.slices:
        return ""
    margin = report.limits.slice_margin
    ends = [end for one in report.slices for end in (one.loss.low, one.loss.high)]
    scale, rows = scale_of([*ends, margin, 0.0]), []
    for one in report.slices:
        says = f"{one.name}: {shown(one.candidate)} for {shown(one.baseline)}, n = {one.n}"
        chart = _estimated(scale, one.loss, margin, "regress" if one.hurts(margin) else "pass", says)
        figure = f"{shown(one.loss.estimate)} points <small>{_between(one.loss)}, n = {one.n}</small>"
        rows.append(_row(escape(one.name), chart, figure))
    note = (
        f"Points lost of {report.metrics[0].name}, the largest first; right of the dashed line and proved is a regress."
    )
    return _section("Slices", [*rows, _axis(scale, "points lost, 95 % interval")], note)


def _passes(receipts: Sequence[Mapping[str, Any]]) -> str:
    """What each pass of the candidate's recipe left of the bytes, and of the quality."""
    steps = [("parent", receipts[0].get("before"))] if receipts else []
    steps += [(str(receipt.get("pass")), receipt.get("after")) for receipt in receipts]
    sizes = [float(state["bytes"]) for _, state in steps if isinstance(state, Mapping) and state.get("bytes")]
    if len(sizes) != len(steps) or not sizes:
        return ""
    rows = []
    for (name, state), size in zip(steps, sizes, strict=True):
        assert isinstance(state, Mapping)
        share = 100 * size / max(sizes)
        bar = f'<div class="track" role="img" aria-label="{shown(size / 1e6)} MB">'
        bar += f'<div class="bar" style="width:{share:.2f}%;margin-top:4px"></div></div>'
        rows.append(_row(escape(name), bar, f"{shown(size / 1e6)} MB <small>{escape(_quality(state))}</small>"))
    note = "Bytes of the checkpoint after each pass, and its quality on the validation data where there is any."
    return _section("What each pass took", rows, note)


def _quality(state: Mapping[str, Any]) -> str:
    found = state.get("quality")
    if not isinstance(found, Mapping):
        return ""
    words = [f"{name.replace('_', ' ')} {shown(float(found[name]))}" for name in _QUALITIES if name in found][:1]
    if "agreement" in found:
        words.append(f"agreement {shown(float(found['agreement']))}")
    return ", ".join(words)


def _failures(report: GateReport) -> str:
    items = "".join(f"<li>{escape(one.side)}, sample {one.line}: {escape(one.message)}</li>" for one in report.failures)
    return _section("Failed samples", [f"<ul>{items}</ul>"]) if items else ""


def _facts(report: GateReport) -> str:
    before = report.environment.get("before", {})
    after = report.environment.get("after", {})
    told = {
        "candidate": f"{report.candidate.name}, {report.candidate.bytes:,} bytes, {report.candidate.digest}",
        "baseline": f"{report.baseline.name}, {report.baseline.bytes:,} bytes, {report.baseline.digest}",
        "data": ", ".join(f"{key} {value}" for key, value in report.data.items()),
        **{key: value for key, value in before.items() if value is not None},
        "load afterwards": after.get("load"),
        "seed": report.seed,
        "seconds": round(report.seconds, 1),
    }
    rows = "".join(
        f"<tr><th>{escape(str(key))}</th><td>{escape(str(value))}</td></tr>"
        for key, value in told.items()
        if value is not None
    )
    return _section("Measured on", [f'<div class="scroll"><table>{rows}</table></div>'])


def _bounds(interval: Interval | None, limit: float | None) -> str:
    words = [_between(interval), "" if limit is None else f"limit {shown(limit)}"]
    return ", ".join(word for word in words if word)


def _between(interval: Interval | None) -> str:
    if interval is None or math.isnan(interval.low) or math.isnan(interval.high):
        return ""
    return f"{shown(interval.low)} to {shown(interval.high)}"
