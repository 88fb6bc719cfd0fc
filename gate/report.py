"""What the gate found: checks, numbers behind them, and where they were measured; as JSON and as one Markdown page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from planish.gate.checks import Check, Verdict
from planish.gate.conditions_told import conditions_line
from planish.gate.limits import Limits
from planish.gate.outputs import Failure
from planish.gate.slices import SliceLoss
from planish.gate.slowdown import Comparison
from planish.gate.statistics import Interval, finite_or_none
from planish.gate.workloads import spelled

__all__ = ["GateReport", "Pair", "Side"]

SHOWN_FAILURES = 10
SHOWN_SLICES = 8


@dataclass(frozen=True)
class Side:
    """One of the two bundles: its directory's name, digest, bytes, and the words for its precision."""

    name: str
    digest: str
    bytes: int
    precision: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """A metric of both sides on the same samples; ``change`` in points (loss) or as a ratio, with its interval.

    ``candidate_interval`` and ``baseline_interval`` are of each side alone: wider than that of the paired change.
    """

    name: str
    candidate: float
    baseline: float
    change: Interval
    unit: str
    n: int
    candidate_interval: Interval | None = None
    baseline_interval: Interval | None = None

    def to_json(self) -> dict[str, Any]:
        alone = {"candidate_interval": self.candidate_interval, "baseline_interval": self.baseline_interval}
        return {
            "name": self.name,
            "candidate": finite_or_none(self.candidate),
            "baseline": finite_or_none(self.baseline),
            "change": self.change.to_json(),
            "unit": self.unit,
            "n": self.n,
            **{key: None if interval is None else interval.to_json() for key, interval in alone.items()},
        }


@dataclass(frozen=True)
class GateReport:
    """The result of `planish.gate.gate`.

    Attributes:
        verdict: pass, regress or inconclusive.
        reasons: the sentences of the checks that decided it.
        metrics: task metrics of both sides (with labels), or their perplexities.
        failures: every sample a side failed on.
        environment: ``{"before": {...}, "after": {...}}`` the latency was measured in.
        slices: the loss on parts of the labelled data, the largest first.
        samples: what both sides said, sample by sample (`planish.gate.sample_lines`); not part of the JSON.
        receipts: of the candidate's passes, from its manifest; not part of the JSON.
        notes: what a reader has to know of how the sides were compared, such as a baseline from another device.
    """

    verdict: Verdict
    task: str
    candidate: Side
    baseline: Side
    checks: tuple[Check, ...]
    metrics: tuple[Pair, ...]
    latency: tuple[Comparison, ...]
    failures: tuple[Failure, ...]
    limits: Limits
    data: Mapping[str, Any]
    environment: Mapping[str, Any]
    seed: int
    seconds: float
    samples: tuple[Mapping[str, Any], ...] = ()
    slices: tuple[SliceLoss, ...] = ()
    receipts: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 pass, 1 regress, 3 inconclusive."""
        return self.verdict.exit_code

    @property
    def reasons(self) -> list[str]:
        return [check.reason for check in self.checks if check.required and check.verdict is self.verdict]

    def to_json(self) -> dict[str, Any]:
        """One JSON object; also what a manifest's ``gates`` holds."""
        return {
            "schema": 1,
            "verdict": str(self.verdict),
            "exit_code": self.exit_code,
            "reasons": self.reasons,
            "notes": list(self.notes),
            "task": self.task,
            "candidate": side_json(self.candidate),
            "baseline": side_json(self.baseline),
            "checks": [check.to_json() for check in self.checks],
            "metrics": [pair.to_json() for pair in self.metrics],
            "slices": [one.to_json() for one in self.slices],
            "latency": [comparison.to_json() for comparison in self.latency],
            "failures": [failure.to_json() for failure in self.failures],
            "limits": self.limits.to_json(),
            "data": dict(self.data),
            "environment": dict(self.environment),
            "seed": self.seed,
            "seconds": round(self.seconds, 3),
        }

    def to_markdown(self) -> str:
        """One page for people: verdict, reasons, the checks as a table, latency, and where it was measured."""
        head = f"# planish gate: {self.verdict}\n\n`{self.candidate.name}` against `{self.baseline.name}`, {self.task}"
        parts = [
            head,
            "\n".join(f"**{escape(note)}**  " for note in self.notes),
            "\n".join(f"- {reason}" for reason in self.reasons),
            table(CHECK_HEAD, map(check_cells, self.checks)),
        ]
        if self.metrics:
            parts.append(table(METRIC_HEAD, map(metric_cells, self.metrics)))
        if self.slices:
            parts.append(table(SLICE_HEAD, map(slice_cells, self.slices[:SHOWN_SLICES])))
        if self.latency:
            parts.append(table(LATENCY_HEAD, map(latency_cells, self.latency)))
        if self.failures:
            parts.append(failure_lines(self.failures))
        parts.append(footnote(self))
        return "\n\n".join(part for part in parts if part) + "\n"


CHECK_HEAD = ("check", "verdict", "found", "95 % interval", "limit", "n")
METRIC_HEAD = ("metric", "candidate", "baseline", "change", "95 % interval", "n")
SLICE_HEAD = ("slice", "candidate", "baseline", "points lost", "95 % interval", "n")
WHENS = ("before", "after")
LATENCY_HEAD = (
    *("latency", "candidate ms", "baseline ms", "ratio", "95 % interval", "wall ratio"),
    *("detectable", "sittings"),
)


def side_json(side: Side) -> dict[str, Any]:
    return {"name": side.name, "digest": side.digest, "bytes": side.bytes, "precision": dict(side.precision)}


def table(head: Sequence[str], rows: Any) -> str:
    """A Markdown table; cells are text."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(escape(cell) for cell in row) + " |" for row in rows)])


def escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def check_cells(check: Check) -> list[str]:
    limit = "" if check.limit is None else figure(check.limit, check.unit, "g")
    verdict = str(check.verdict) if check.required else "reported"
    value = figure(check.value, check.unit)
    found = "not available" if math.isnan(check.value) else f"{value} {check.unit}"
    return [check.name, verdict, found, between(check.interval), limit, str(check.n or "")]


def figure(value: float, unit: str, spelling: str = ".4g") -> str:
    """Bytes are counted, everything else is measured."""
    return f"{value:,.0f}" if unit == "bytes" else f"{value:{spelling}}"


def between(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.low:.4g} to {interval.high:.4g}"


def metric_cells(pair: Pair) -> list[str]:
    change = f"{pair.change.estimate:+.3g} {pair.unit}" if pair.unit == "points lost" else f"{pair.change.estimate:.4f}"
    return [pair.name, f"{pair.candidate:.4f}", f"{pair.baseline:.4f}", change, between(pair.change), str(pair.n)]


def slice_cells(found: SliceLoss) -> list[str]:
    sides = [f"{found.candidate:.4f}", f"{found.baseline:.4f}"]
    return [found.name, *sides, f"{found.loss.estimate:+.3g}", between(found.loss), str(found.n)]


def latency_cells(found: Comparison) -> list[str]:
    new, old = (found.median_seconds[f"{side}_{found.judged}"] * 1e3 for side in ("candidate", "baseline"))
    ratios = [f"{found.ratio.estimate:.3f}", between(found.ratio), f"{found.wall_ratio.estimate:.3f}"]
    power = [found.detectable_words, str(found.pairs)]
    return [f"{spelled(found.name)}, {found.judged}", f"{new:.3f}", f"{old:.3f}", *ratios, *power]


def failure_lines(failures: Sequence[Failure]) -> str:
    lines = [f"- {f.side}, sample {f.line}: {f.message}" for f in failures[:SHOWN_FAILURES]]
    more = len(failures) - len(lines)
    return "\n".join(["Failed samples:", "", *lines, *([f"- and {more} more"] if more > 0 else [])])


def footnote(report: GateReport) -> str:
    before = report.environment.get("before", {})
    words = [f"{key} {before[key]}" for key in ("cpu", "threads", "onnxruntime") if before.get(key)]
    words.append(conditions_line(*(report.environment.get(when, {}).get("conditions", {}) for when in WHENS)))
    data = f"{report.data.get('name')}, {report.data.get('samples')} samples"
    return f"Data: {data}. Seed {report.seed}, {report.seconds:.0f} s. {', '.join(word for word in words if word)}."
