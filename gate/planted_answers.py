"""Losses planted in real answers: what the accuracy rule must find, and harmless changes it must not call a loss.

The baseline is what the bundle really said. The candidate is the same with answers changed: *harmless* ones, where a
coin says for each whether a right answer becomes wrong or a wrong one right (what quantizing does to close calls), and
*lost* ones, right answers that become wrong. Both are judged as the gate judges two bundles.

Without labels the bundle's own answers stand for the truth, and where fewer than one in ten is wrong, a random part of
the truth is declared to be otherwise: the paired test looks only at samples on which the two sides differ, but there
have to be wrong answers for some to become right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from planish.errors import InconclusiveError
from planish.gate.agreement import agreement
from planish.gate.checks import Verdict, judge_floor, judge_loss, judge_ratio_loss
from planish.gate.data import Dataset
from planish.gate.likelihood import CONTEXT, WindowError, context_for, cut_windows, tokenized
from planish.gate.limits import Limits
from planish.gate.metrics import Measured, accuracy, exact_match, perplexity
from planish.gate.outputs import Output, Outputs
from planish.gate.paired import LEAST_SAMPLES, estimate, exact_p, log_ratio, paired_loss
from planish.gate.parents import window_alone

if TYPE_CHECKING:
    from planish.runtime.model import Model

__all__ = ["Answers", "Plant", "answers_of", "judge_cosines", "judge_flips", "judge_windows", "perplexity_of"]

Ints = NDArray[np.int64]
Progress = Callable[[str, int, int], None]

SAMPLES = 1000
WRONG = 0.1  # at least this share of the truth differs from what was said


@dataclass(frozen=True)
class Plant:
    """What a trial changes: of ``samples`` answers, ``changed`` either way by a coin, and ``lost`` for the worse."""

    changed: int = 0
    lost: int = 0
    samples: int = SAMPLES


@dataclass(frozen=True)
class Answers:
    """``[samples]``: what was said and what is true, each answer by a number of its own."""

    said: Ints
    truth: Ints


def answers_of(said: Outputs, data: Dataset, rng: np.random.Generator) -> Answers:
    """The answers of a task that has right and wrong ones; samples on which the bundle failed are left out.

    Raises:
        InconclusiveError: fewer than 20 samples with an answer.
    """
    kept = [(item, sample) for item, sample in zip(said.items, data.samples, strict=True) if item is not None]
    if len(kept) < LEAST_SAMPLES:
        raise InconclusiveError(f"{LEAST_SAMPLES} samples the bundle answers", str(len(kept)), "give more data")
    numbers: dict[Any, int] = {}
    keys = [key_of(item) for item, _ in kept]
    told = np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
    right = np.ones(len(kept), dtype=bool)
    if data.labelled:
        right = np.array([is_right(item, sample.label, sample.spans, sample.answers) for item, sample in kept])
    short = round(WRONG * len(kept)) - int(np.sum(~right))
    if short > 0:
        right[rng.choice(np.flatnonzero(right), size=short, replace=False)] = False
    return Answers(told, np.where(right, told, told + 1))


def key_of(item: Output) -> tuple[Any, ...]:
    """What makes two answers the same, whatever the task."""
    return (item.labels, item.spans, item.answer, item.answer_span, item.tokens.tobytes())


def is_right(item: Output, label: tuple[int, ...], spans: Sequence[Any], answers: Sequence[str]) -> bool:
    """A whole answer: all labels, all entities, or one of the true answers as SQuAD compares them."""
    if item.answer or answers:
        return bool(exact_match([item.answer], [answers]).value)
    return item.labels == label and tuple(sorted(item.spans)) == tuple(sorted(spans))


def judge_flips(answers: Answers, plant: Plant, limits: Limits, rng: np.random.Generator) -> Verdict:
    """One trial of the rule for hits and misses, on ``plant.samples`` of the answers drawn with replacement.

    Raises:
        InconclusiveError: the answers drawn are too few for what is to be planted.
    """
    drawn = rng.integers(0, len(answers.said), size=plant.samples)
    truth, old = answers.truth[drawn], answers.said[drawn]
    right, wrong = (rng.permutation(np.flatnonzero(mask)) for mask in (old == truth, old != truth))
    worse = int(rng.binomial(plant.changed, 0.5))
    if len(right) < worse + plant.lost or len(wrong) < plant.changed - worse:
        got = f"{len(right)} right and {len(wrong)} wrong"
        raise InconclusiveError("right and wrong answers enough to change", got, "give more data")
    new = old.copy()
    new[right[: worse + plant.lost]] += 1
    new[wrong[: plant.changed - worse]] = truth[wrong[: plant.changed - worse]]
    candidate, baseline = (accuracy(as_labels(side), as_labels(truth)) for side in (new, old))
    loss, p_worse = paired_loss(candidate, baseline), exact_p(candidate, baseline)
    return judge_loss("accuracy", loss, limits.max_loss_points, candidate.n, limits.rule, p_worse=p_worse).verdict


def as_labels(numbers: Ints) -> list[tuple[int, ...]]:
    return [(number,) for number in numbers.tolist()]


def judge_cosines(said: Outputs, gap: float, limits: Limits, rng: np.random.Generator) -> Verdict:
    """One trial of the rule for embeddings: each is turned away by so much that cosines are ``1 - gap`` on average."""
    items = [item for item in said.items if item is not None]
    if len(items) < LEAST_SAMPLES:
        raise InconclusiveError(f"{LEAST_SAMPLES} texts the bundle embeds", str(len(items)), "give more data")
    away = np.clip(1 - gap * rng.gamma(4.0, 0.25, size=len(items)), -1, 1)  # some texts suffer more than others
    turned = tuple(
        Output(values=turn(item.values, cosine, rng)) for item, cosine in zip(items, away.tolist(), strict=True)
    )
    found = agreement("feature-extraction", Outputs(turned, ()), Outputs(tuple(items), ()))[0]
    return judge_floor(found.name, estimate(found), limits.min_cosine_mean, found.n, limits.rule).verdict


def turn(vector: NDArray[np.float64], cosine: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """``vector`` turned in a random direction, to this cosine with itself."""
    length = float(np.linalg.norm(vector)) or 1.0
    along = vector / length
    across = rng.normal(size=vector.shape)
    across -= (across @ along) * along
    across /= float(np.linalg.norm(across)) or 1.0
    return np.asarray(length * (cosine * along + np.sqrt(1 - cosine**2) * across), dtype=np.float64)


SPREAD = 0.02  # nats a token by which windows differ in what compression costs them


def perplexity_of(model: Model, texts: Sequence[str], most: int | None, progress: Progress | None = None) -> Measured:
    """The bundle's perplexity on at most ``most`` tokens of the texts, a row a window; failed windows are left out.

    Raises:
        InconclusiveError: fewer than 20 windows.
    """
    ids = tokenized(model, texts, most)
    generation = model.manifest.generation
    windows = cut_windows(ids, context_for(ids, generation.max_length if generation else CONTEXT))
    rows = []
    for number, window in enumerate(windows, 1):
        with suppress(WindowError):
            rows.append((window_alone("bundle", model, window)[0], window.size - 1))
        if progress:
            progress("perplexity", number, len(windows))
    if len(rows) < LEAST_SAMPLES:
        raise InconclusiveError(f"{LEAST_SAMPLES} windows of text the bundle reads", str(len(rows)), "give more data")
    nll, tokens = np.array(rows, dtype=np.float64).T
    return perplexity(nll, tokens)


def judge_windows(baseline: Measured, ratio: float, limits: Limits, rng: np.random.Generator) -> Verdict:
    """One trial of the rule for perplexity: that of the candidate is ``ratio`` times the bundle's, window by window."""
    nll, tokens = baseline.rows.T
    cost = np.log(ratio) + rng.normal(0, SPREAD, size=len(nll))
    logs = log_ratio(perplexity(nll + tokens * cost, tokens), baseline, seed=int(rng.integers(1 << 31)))
    return judge_ratio_loss("perplexity", logs, limits.max_perplexity_ratio or 1.0, len(nll), limits.rule).verdict
