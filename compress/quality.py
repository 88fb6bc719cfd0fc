"""How good a torch model is on its examples: the task's metric on labelled ones, agreement with the parent on all.

The metrics are the gate's own (:mod:`planish.gate.metrics`), on texts cut at ``data.max_length``; the gate judges the
served model again, on whole texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from planish.compress.examples import Examples, Part
from planish.compress.quality_read import Progress, Reading, chosen_rows, read_all
from planish.compress.quality_reference import Reference
from planish.compress.quality_spans import entities
from planish.errors import DataError, InputError
from planish.gate.metrics import accuracy, answer_token_f1, exact_match, macro_f1, perplexity, span_f1
from planish.gate.spans import Span

__all__ = ["Reference", "evaluate", "headline"]

_HEADLINES = {
    "text-classification": ("accuracy", "agreement", "kl"),
    "token-classification": ("span_f1", "agreement", "kl"),
    "question-answering": ("answer_f1", "agreement", "kl"),
    "fill-mask": ("accuracy", "agreement", "kl"),
    "feature-extraction": ("cosine_mean", "similarity_correlation"),
    "text-generation": ("perplexity", "agreement", "kl"),
}
_LOWER = frozenset({"perplexity", "loss", "kl"})


def evaluate(
    model: Any,
    examples: Examples,
    *,
    part: Part = "validation",
    limit: int | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """The task's metrics on at most ``limit`` examples of ``part``, evenly spread; empty where nothing is labelled.

    text-classification: accuracy (of several labels: all right), macro_f1. token-classification: span_f1.
    question-answering: exact_match, answer_f1. fill-mask: accuracy and loss (nats) of masked tokens. text-generation:
    perplexity, loss (nats a token; the first of a window is not predicted).

    Raises:
        DataError: the part is empty, or ``limit`` is not positive.
        CheckpointError: the model says numbers that are not finite.
    """
    if examples.count(part) == 0 or (limit is not None and limit < 1):
        got = "none" if limit is None else f"limit {limit}"
        raise DataError(f"examples to judge on ({part})", got, "give data.validation, or more training texts")
    measure = _METRICS.get(examples.task)
    if measure is None or (examples.rows(part)[0].label is None and examples.task not in _SELF):
        return {}
    rows = chosen_rows(examples.count(part), limit)
    return measure(read_all(model, examples, part, rows, progress=progress), examples, part, rows)


def headline(quality: dict[str, float], task: str) -> tuple[str, float, bool]:
    """The one number to quote: its name, its value, and whether higher is better.

    >>> headline({"agreement": 0.97, "accuracy": 0.86, "kl": 0.01}, "text-classification")
    ('accuracy', 0.86, True)
    >>> headline({"loss": 3.0, "perplexity": 20.1}, "text-generation")
    ('perplexity', 20.1, False)

    Raises:
        InputError: none was measured.
    """
    for name in _HEADLINES.get(task, ()):
        if name in quality:
            return name, quality[name], name not in _LOWER
    wanted = ", ".join(_HEADLINES.get(task, ())) or "a metric"
    raise InputError(f"{wanted} of {task}", ", ".join(quality) or "nothing measured", "give data to judge on")


def _class_metrics(said: Sequence[Reading], examples: Examples, part: Part, rows: Sequence[int]) -> dict[str, float]:
    truth = [sample.label for sample in _samples(examples, part, rows)]
    predicted = [tuple(reading.best.tolist()) for reading in said]
    return {
        "accuracy": accuracy(predicted, truth).value,
        "macro_f1": macro_f1(predicted, truth, len(examples.labels)).value,
    }


def _tag_metrics(said: Sequence[Reading], examples: Examples, part: Part, rows: Sequence[int]) -> dict[str, float]:
    truth: list[Sequence[Span]] = []
    for reading, sample in zip(said, _samples(examples, part, rows), strict=True):
        assert reading.places is not None
        kept = int(reading.places[:, 1].max()) if len(reading.places) else 0  # behind it the text was cut off
        truth.append([span for span in sample.spans if span.end <= kept])
    return {"span_f1": span_f1([entities(reading, examples.labels) for reading in said], truth).value}


def _answer_metrics(said: Sequence[Reading], examples: Examples, part: Part, rows: Sequence[int]) -> dict[str, float]:
    samples = _samples(examples, part, rows)
    found = [sample.context[slice(*reading.span)] for reading, sample in zip(said, samples, strict=True)]
    answers = [sample.answers for sample in samples]
    return {
        "exact_match": exact_match(found, answers).value,
        "answer_f1": answer_token_f1(found, answers).value,
    }


def _mask_metrics(said: Sequence[Reading], examples: Examples, part: Part, rows: Sequence[int]) -> dict[str, float]:
    losses = torch.cat([reading.losses for reading in said])
    if not len(losses):
        raise DataError("texts with a token to mask", "none", "give longer texts")
    hits = torch.cat([reading.best == reading.truth for reading in said])
    return {"accuracy": float(hits.double().mean()), "loss": float(losses.double().mean())}


def _token_metrics(said: Sequence[Reading], examples: Examples, part: Part, rows: Sequence[int]) -> dict[str, float]:
    nll = [float(reading.losses.double().sum()) for reading in said]
    tokens = [float(len(reading.losses)) for reading in said]
    value = perplexity(nll, tokens).value
    return {"perplexity": value, "loss": math.log(value)}


def _samples(examples: Examples, part: Part, rows: Sequence[int]) -> list[Any]:
    """The lines the rows come from (:class:`planish.gate.data.Sample`)."""
    return [examples.rows(part)[row].sample for row in rows]


_SELF = ("fill-mask", "text-generation")
_METRICS = {
    "text-classification": _class_metrics,
    "token-classification": _tag_metrics,
    "question-answering": _answer_metrics,
    "fill-mask": _mask_metrics,
    "text-generation": _token_metrics,
}
