"""Task metrics that keep what each sample adds, so that two models are compared sample by sample.

Every metric here is a function of sums over samples: accuracy = hits / samples, micro span-F1 = 2 tp / (2 tp + fp +
fn), perplexity = exp(nll / tokens). So a metric is a matrix ``[samples, k]`` and an aggregate of its column sums; a
resample, a slice or a jackknife is another sum.

Answers are normalized as SQuAD does (Rajpurkar et al. 2016): lower case, no punctuation, no articles, single spaces.
A prediction of ``None`` is a model that failed on the sample: it counts as wrong, never as absent.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planish.gate.spans import Span

__all__ = [
    "Measured",
    "accuracy",
    "answer_scores",
    "answer_token_f1",
    "exact_match",
    "macro_f1",
    "mean_of",
    "normalize_answer",
    "perplexity",
    "span_counts",
    "span_f1",
]

Floats = NDArray[np.float64]
Labels = Sequence[tuple[int, ...] | None]


@dataclass(frozen=True)
class Measured:
    """A metric on a set of samples.

    Attributes:
        rows: ``[samples, k]``, what each sample adds to the sums.
        aggregate: sums ``[..., k]`` to the metric ``[...]``.
        binary: every sample is a hit or a miss (then exact paired tests apply), and ``rows[:, 0]`` says which.
        higher_is_better: False for perplexity.
    """

    name: str
    rows: Floats
    aggregate: Callable[[Floats], Floats]
    binary: bool = False
    higher_is_better: bool = True

    @property
    def value(self) -> float:
        return float(self.aggregate(self.rows.sum(axis=0)))

    @property
    def n(self) -> int:
        return len(self.rows)


def ratio_of_sums(sums: Floats) -> Floats:
    """First column over second; 0 / 0 is 0."""
    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1e-300))


def mean_of(
    name: str, values: Sequence[float] | Floats, *, binary: bool = False, higher_is_better: bool = True
) -> Measured:
    """The mean of one value a sample."""
    column = np.asarray(values, dtype=np.float64)
    return Measured(name, np.stack([column, np.ones_like(column)], axis=1), ratio_of_sums, binary, higher_is_better)


def accuracy(predicted: Labels, truth: Labels) -> Measured:
    """Share of samples whose labels are all right and none too many (for one label a sample: plain accuracy)."""
    return mean_of(
        "accuracy", [float(p is not None and p == t) for p, t in zip(predicted, truth, strict=True)], binary=True
    )


def macro_f1(predicted: Labels, truth: Labels, labels: int) -> Measured:
    """Mean F1 over labels; a label that occurs on neither side does not count (scikit-learn's ``average="macro"``)."""
    rows = np.zeros((len(truth), 3, labels))
    for row, p, t in zip(rows, predicted, truth, strict=True):
        said, true = set(p or ()), set(t or ())
        row[0, list(said & true)] = 1
        row[1, list(said - true)] = 1
        row[2, list(true - said)] = 1
    return Measured("macro F1", rows.reshape(len(truth), -1), lambda sums: macro_of(sums, labels))


def macro_of(sums: Floats, labels: int) -> Floats:
    """Sums ``[..., 3 * labels]`` of true positives, false positives and misses to the macro F1 ``[...]``."""
    hits, extra, missed = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, labels), -2, 0)
    total = 2 * hits + extra + missed
    each = 2 * hits / np.maximum(total, 1e-300)
    present = np.sum(total > 0, axis=-1)
    return np.asarray(np.sum(np.where(total > 0, each, 0.0), axis=-1) / np.maximum(present, 1))


def span_counts(predicted: Sequence[Span] | None, truth: Sequence[Span]) -> tuple[int, int, int]:
    """Entities found exactly (start, end and label), found but not there, and missed."""
    said, true = set(predicted or ()), set(truth)
    return len(said & true), len(said - true), len(true - said)


def span_f1(predicted: Sequence[Sequence[Span] | None], truth: Sequence[Sequence[Span]]) -> Measured:
    """Micro F1 over entities; 1 where neither side has any."""
    rows = np.array([span_counts(p, t) for p, t in zip(predicted, truth, strict=True)], dtype=np.float64).reshape(-1, 3)
    return Measured("entity span F1", rows, micro_f1)


def micro_f1(sums: Floats) -> Floats:
    total = 2 * sums[..., 0] + sums[..., 1] + sums[..., 2]
    return np.asarray(np.where(total > 0, 2 * sums[..., 0] / np.maximum(total, 1e-300), 1.0))


PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """SQuAD's normal form.

    >>> normalize_answer(" The  Eiffel-Tower!")
    'eiffeltower'
    """
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(PUNCTUATION)).split())


def answer_scores(predicted: str, answers: Sequence[str]) -> tuple[float, float]:
    """Exact match and token F1 with the best of the true answers; no true answer means that the empty text is right.

    >>> answer_scores("Eiffel tower", ["the Eiffel Tower", "the tower"])
    (1.0, 1.0)
    >>> answer_scores("the big tower", ["Eiffel tower"])
    (0.0, 0.5)
    """
    said = normalize_answer(predicted)
    wanted = [normalize_answer(answer) for answer in answers] or [""]
    return float(said in wanted), max(token_f1(said.split(), answer.split()) for answer in wanted)


def token_f1(said: Sequence[str], wanted: Sequence[str]) -> float:
    if not said or not wanted:
        return float(list(said) == list(wanted))
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))


def exact_match(predicted: Sequence[str | None], answers: Sequence[Sequence[str]]) -> Measured:
    """Share of samples whose answer is one of the true ones."""
    values = [0.0 if p is None else answer_scores(p, true)[0] for p, true in zip(predicted, answers, strict=True)]
    return mean_of("exact match", values, binary=True)


def answer_token_f1(predicted: Sequence[str | None], answers: Sequence[Sequence[str]]) -> Measured:
    """Mean token F1 of the answers."""
    values = [0.0 if p is None else answer_scores(p, true)[1] for p, true in zip(predicted, answers, strict=True)]
    return mean_of("answer F1", values)


def perplexity(nll: Sequence[float] | Floats, tokens: Sequence[float] | Floats) -> Measured:
    """exp of the summed negative log likelihood over the tokens.

    Args:
        nll: ``[samples]`` nats summed over each sample's predicted tokens.
        tokens: ``[samples]``, how many were predicted.
    """
    rows = np.stack([np.asarray(nll, dtype=np.float64), np.asarray(tokens, dtype=np.float64)], axis=1)
    return Measured(
        "perplexity",
        rows,
        lambda sums: np.exp(np.minimum(ratio_of_sums(sums), math.log(1e300))),
        higher_is_better=False,
    )
