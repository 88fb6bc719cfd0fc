"""Figures of a gate or a bench for the GitHub action *github-action-benchmark* (its tool ``customSmallerIsBetter``).

A JSON array of ``{"name", "unit", "value", "range", "extra"}`` that the action keeps from commit to commit and draws.
Only figures that are better when smaller: times, the ratio to the baseline, points lost, bytes.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planish.gate.benchmark import BenchReport
    from planish.gate.report import GateReport
    from planish.gate.statistics import Interval

__all__ = ["action_benchmark", "bench_benchmark"]


def action_benchmark(report: GateReport) -> str:
    """The array as JSON text; figures that are not finite are left out."""
    entries: list[dict[str, Any]] = []
    for found in report.latency:
        about = f"{found.judged} time, {found.pairs} sittings against {report.baseline.name}"
        milliseconds = 1e3 * found.median_seconds[f"candidate_{found.judged}"]
        entries.append(_entry(f"{found.name} time", "ms", milliseconds, None, about))
        entries.append(_entry(f"{found.name} ratio to the baseline", "ratio", found.ratio.estimate, found.ratio, about))
    for pair in report.metrics:
        if pair.unit == "points lost":
            about = f"{pair.candidate:.4f} for the baseline's {pair.baseline:.4f}, n = {pair.n}"
            entries.append(_entry(f"{pair.name} lost", "points", pair.change.estimate, pair.change, about))
        else:
            about = f"{pair.candidate:.4f}, n = {pair.n}"
            entries.append(_entry(f"{pair.name} ratio", "ratio", pair.change.estimate, pair.change, about))
    entries.append(_entry("size", "bytes", float(report.candidate.bytes), None, report.candidate.name))
    return _array(entries)


def bench_benchmark(report: BenchReport) -> str:
    """The same of a bench: times, ratios to the first bundle, bytes, peak memory."""
    entries: list[dict[str, Any]] = []
    for one in report.measurements:
        name, interval = f"{one.bundle} {one.shape} {one.phase}", one.interval.map(lambda value: 1e3 * value)
        about = f"wall clock, {one.rounds} times"
        entries.append(_entry(f"{name} p50", "ms", 1e3 * one.p50, interval, about))
        entries.append(_entry(f"{name} p95", "ms", 1e3 * one.p95, None, about))
    for found in report.ratios:
        about = f"{found.judged} time, {found.pairs} sittings"
        entries.append(_entry(f"{found.name} ratio", "ratio", found.ratio.estimate, found.ratio, about))
    for bundle in report.bundles:
        entries.append(_entry(f"{bundle['name']} size", "bytes", float(bundle["bytes"]), None, str(bundle["digest"])))
        if bundle["peak_rss_bytes"] is not None:
            peak = float(bundle["peak_rss_bytes"])
            entries.append(_entry(f"{bundle['name']} peak memory", "bytes", peak, None, "resident set of a process"))
    return _array(entries)


def _array(entries: list[dict[str, Any]]) -> str:
    return json.dumps([entry for entry in entries if math.isfinite(entry["value"])], indent=1) + "\n"


def _entry(name: str, unit: str, value: float, interval: Interval | None, extra: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "unit": unit, "value": value, "extra": extra}
    if interval is not None and math.isfinite(interval.low) and math.isfinite(interval.high):
        entry["range"] = f"{interval.low:.4g} to {interval.high:.4g}"
    return entry
