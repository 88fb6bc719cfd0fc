"""What LoadGen found, from its detail log: percentiles of latency, throughput, and whether the run is valid.

The log has a line a fact: ``:::MLLOG {"key": ..., "value": ..., ...}``. Nothing is computed here that LoadGen did not
say, but the rate of a MultiStream run: the requests of a query by its mean latency.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from planish.errors import InconclusiveError
from planish.gate.load_plan import LoadPlan
from planish.gate.report import table

__all__ = ["LoadReport", "read_log", "reasons_of", "times_of"]

Times = Mapping[str, float]
"""Seconds by the name of what they are: mean, p50, p90, p95, p97, p99, p99.9, min, max."""

KINDS = {
    "latency": ("", "_percentile_latency_ns", "_latency_ns"),
    "query": ("", "_percentile_per_query_latency_ns", "_query_latency_ns"),
    "first_token": ("first_token_", "_percentile_latency_ns", "_latency_ns"),
    "per_token": ("time_per_output_token_", "_percentile_ns", None),
}
"""What a time is of -> how its keys begin after ``result_``, and how those of percentiles and of the rest end."""
RATES = {
    "SingleStream": "qps_with_loadgen_overhead",
    "Server": "completed_samples_per_sec",
    "Offline": "samples_per_second",
}
TOKEN_RATES = ("tokens_per_second", "completed_tokens_per_second")


@dataclass(frozen=True)
class LoadReport:
    """The result of `loadgen`.

    Attributes:
        valid: LoadGen calls the run valid.
        missed: the Server's promise of latency was not kept; else an invalid run was too short to say.
        reasons: why it is not valid.
        samples_per_second: requests answered (of a MultiStream run: by the mean latency of a query).
        tokens_per_second: written by a decoder, as LoadGen counts them; None for encoders.
        latency: seconds from a request's coming to its answer.
        query: MultiStream: seconds until all of a query's requests are answered.
        first_token, per_token: decoders: seconds to the first token, and for each further one.
        settings: what was asked for (`LoadPlan`), and on what.
    """

    bundle: Mapping[str, Any]
    scenario: str
    valid: bool
    missed: bool
    reasons: tuple[str, ...]
    queries: int
    samples: int
    samples_per_second: float
    tokens_per_second: float | None
    latency: Times
    query: Times
    first_token: Times
    per_token: Times
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]

    @property
    def exit_code(self) -> int:
        """0 valid, 1 the promised latency was not kept, 3 too short a run to say."""
        return 0 if self.valid else 1 if self.missed else 3

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        kept = {name: value for name, value in vars(self).items() if name != "reasons"}
        return {"schema": 1, **kept, "reasons": list(self.reasons), "exit_code": self.exit_code}

    def to_markdown(self) -> str:
        """The finding, a table of the times, and where it was measured."""
        said = "VALID" if self.valid else "INVALID"
        head = f"# LoadGen {self.scenario}: {said}\n\n`{self.bundle['name']}`, {self.bundle['task']}: {self.headline}"
        rows = [(WORDS[kind], getattr(self, kind)) for kind in KINDS]
        cells = [[word, *(milliseconds(times.get(name)) for name in COLUMNS)] for word, times in rows if times]
        before = self.environment["before"]
        words = [f"{key} {before[key]}" for key in ("cpu", "threads", "onnxruntime", "load") if before.get(key)]
        duration = f"{self.settings['seconds']:g} s asked for, {self.queries} queries, {self.samples} requests"
        foot = f"{duration}; LoadGen {self.settings['loadgen']}, {', '.join(words)}. No official MLPerf result."
        parts = [head, "\n".join(f"- {reason}" for reason in self.reasons), table(HEAD, cells), foot]
        return "\n\n".join(part for part in parts if part) + "\n"

    @property
    def headline(self) -> str:
        """The figure that the scenario is about."""
        rate = f"{self.samples_per_second:.4g} requests/s"
        if self.tokens_per_second is not None:
            rate += f", {self.tokens_per_second:.4g} tokens/s"
        if self.scenario == "SingleStream":
            return f"p90 {milliseconds(self.latency.get('p90'))} ms, {rate}"
        if self.scenario == "MultiStream":
            size = self.settings["samples_per_query"]
            return f"p99 of {size} together {milliseconds(self.query.get('p99'))} ms, {rate}"
        if self.scenario == "Server":
            promise = f"{1000 * self.settings['target_seconds']:g} ms promised"
            kind = self.first_token or self.latency
            return f"p99 {milliseconds(kind.get('p99'))} ms, {promise}, at {self.settings['target_qps']:g} requests/s"
        return rate


WORDS = {
    "latency": "a request",
    "query": "a query of several",
    "first_token": "to the first token",
    "per_token": "each further token",
}
COLUMNS = ("mean", "p50", "p90", "p99", "p99.9", "max")
HEAD = ("ms", *COLUMNS)


def milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.3f}"


def read_log(lines: Iterable[str]) -> dict[str, Any]:
    """Key -> value of a detail log; of a key that comes again the last.

    Raises:
        InconclusiveError: it is no such log, or has no result.
    """
    found: dict[str, Any] = {}
    for line in lines:
        if line.startswith(":::MLLOG "):
            try:
                fact = json.loads(line.split(" ", 1)[1])
                found[fact["key"]] = fact["value"]
            except (json.JSONDecodeError, KeyError, TypeError):
                continue  # LoadGen prints paths and messages unescaped; a result never has any
    if "result_validity" not in found:
        raise InconclusiveError("a result in LoadGen's log", "none", "try again with fewer --seconds, or keep --logs")
    return found


def times_of(log: Mapping[str, Any], kind: str) -> dict[str, float]:
    """The times of one of `KINDS`, in seconds; empty where LoadGen has none."""
    start, percentile, other = KINDS[kind]
    found = {}
    for key, value in log.items():
        match = re.fullmatch(rf"result_{start}(\d+\.\d+){percentile}", key)
        if match:
            found[f"p{float(match[1]):g}"] = value / 1e9
        elif other and (match := re.fullmatch(rf"result_{start}(mean|min|max){other}", key)):
            found[match[1]] = value / 1e9
    if kind == "per_token":  # spelled differently
        names = {name: log.get(f"result_time_to_output_token_{name}") for name in ("mean", "min", "max")}
        found |= {name: value / 1e9 for name, value in names.items() if value is not None}
    return found


def reasons_of(log: Mapping[str, Any], plan: LoadPlan) -> list[str]:
    """Why the run is not valid, in words that say what to type."""
    found = []
    if log.get("result_perf_constraints_met") is False:
        late = f"{log['result_overlatency_query_count']} of {log['result_query_count']} answers came late"
        found.append(f"the promised latency was not kept ({late}): lower --target-qps, or a faster bundle")
    if log.get("result_min_duration_met") is False:
        found.append(f"all was answered before {plan.seconds:g} s had passed: run it again on a quieter machine")
    if log.get("early_stopping_met") is False and log.get("result_perf_constraints_met") is not False:
        count = log["result_query_count"]
        found.append(f"{count} queries are too few for a percentile at 99 % confidence: give more --seconds")
    if not found and log["result_validity"] != "VALID":
        found.append(str(log.get("result_invalid_reason") or "LoadGen does not say why").strip())
    return found


def rate_of(log: Mapping[str, Any], plan: LoadPlan) -> float:
    """Requests a second."""
    if plan.scenario == "MultiStream":
        return float(plan.samples_per_query * 1e9 / log["result_mean_query_latency_ns"])
    return float(log[f"result_{RATES[plan.scenario]}"])


def token_rate_of(log: Mapping[str, Any]) -> float | None:
    """Tokens a second, where LoadGen counted any."""
    return next((float(log[f"result_{name}"]) for name in TOKEN_RATES if f"result_{name}" in log), None)
