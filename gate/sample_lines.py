"""Everything the gate has seen, one JSON object a line, for questions the report does not answer.

Encoders, and decoders with references: a line a sample, ``{"sample": LINE, "truth": .., "candidate": .., "baseline":
..}``, each side what the model said, or null where it failed. Decoders without: a line a window, with each side's
summed loss in nats. Then a line a sitting of each latency, ``{"latency": NAME, "sitting": N, "candidate": {"cpu": s,
"wall": s}, "baseline": ..}``. The texts asked are not repeated: they may not be meant for a CI system's store;
``sample`` is their line in the data. Answers, references and what decoders wrote are there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from planish.gate.outputs import Output, Outputs

if TYPE_CHECKING:
    from planish.gate.data import Dataset, Sample
    from planish.gate.likelihood import Likelihood
    from planish.gate.report import GateReport

__all__ = ["said_of_samples", "said_of_windows", "sample_lines"]

_MOST_VALUES = 64  # logits of so many classes are kept, longer vectors are not


def sample_lines(report: GateReport) -> str:
    """All lines of a report, each ending in a newline."""
    lines = [*report.samples, *(line for found in report.latency for line in _sittings(found.name, found.timings))]
    return "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)


def _sittings(name: str, timings: Any) -> Iterable[Mapping[str, Any]]:
    for number, (new, old) in enumerate(zip(timings.candidate, timings.baseline, strict=True), 1):
        yield {"latency": name, "sitting": number, "candidate": new._asdict(), "baseline": old._asdict()}


def said_of_samples(
    data: Dataset, new: Outputs, old: Outputs, labels: Sequence[str], task: str
) -> tuple[dict[str, Any], ...]:
    """A line for each sample of a task with answers."""
    lines = []
    for sample, *sides in zip(data.samples, new.items, old.items, strict=True):
        told = [None if side is None else _said(side, labels, task) for side in sides]
        line: dict[str, Any] = {"sample": sample.line, "candidate": told[0], "baseline": told[1]}
        if task == "feature-extraction":
            line |= _embedded(data, sides[0], sides[1])
        lines.append(line | ({"truth": _truth(sample, labels, task)} if data.labelled else {}))
    return tuple(lines)


def _embedded(data: Dataset, new: Output | None, old: Output | None) -> dict[str, Any]:
    """Of a text the cosine of both sides' embeddings; of a pair each side's cosine of the two texts."""
    if data.labelled:
        told = [None if side is None else {"cosine": _cosine(*side.values.reshape(2, -1))} for side in (new, old)]
        return {"candidate": told[0], "baseline": told[1]}
    if new is None or old is None or new.values.size != old.values.size:
        return {}
    return {"cosine": _cosine(new.values, old.values)}


def said_of_windows(found: Likelihood) -> tuple[dict[str, Any], ...]:
    """A line for each window both sides answered; a divergence and agreement are sums over its tokens."""
    rows = zip(found.candidate.rows, found.baseline.rows, found.top_1.rows, strict=True)
    apart = found.divergence.rows if found.divergence else None
    return tuple(
        {
            "window": number,
            "tokens": int(new[1]),
            "candidate": {"loss": float(new[0])},
            "baseline": {"loss": float(old[0])},
            "same_token": int(same[0]),
            "divergence": None if apart is None else float(apart[number - 1, 0]),
        }
        for number, (new, old, same) in enumerate(rows, 1)
    )


def _said(output: Output, labels: Sequence[str], task: str) -> dict[str, Any]:
    if task == "text-classification":
        return {"labels": [_name(number, labels) for number in output.labels], **_values(output)}
    if task == "token-classification":
        return {"spans": [[span.start, span.end, span.label] for span in output.spans]}
    if task == "question-answering":
        return {"answer": output.answer, "span": list(output.answer_span), **_values(output)}
    if task == "text-generation":
        return {"text": output.answer}
    if task == "fill-mask":
        return {"tokens": [int(token) for token in output.tokens], **_values(output)}
    return {}


def _truth(sample: Sample, labels: Sequence[str], task: str) -> list[Any] | float | None:
    if task == "feature-extraction":
        return sample.score
    if task == "text-generation":
        return list(sample.references)
    if task == "text-classification":
        return [_name(number, labels) for number in sample.label]
    if task == "token-classification":
        return [[span.start, span.end, span.label] for span in sample.spans]
    return list(sample.answers)


def _name(number: int, labels: Sequence[str]) -> str:
    return labels[number] if number < len(labels) else str(number)


def _values(output: Output) -> dict[str, Any]:
    few = 0 < output.values.size <= _MOST_VALUES
    return {"values": [float(f"{value:.6g}") for value in output.values.ravel()]} if few else {}


def _cosine(one: Any, other: Any) -> float:
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / length if length else 0.0
