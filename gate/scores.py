"""The task's metrics of what a model said, and the same for several bundles on one set of data.

The first metric of a task is the one that decides: accuracy, entity span F1, answer F1; decoders have perplexity, or
chrF where there are references; embeddings of pairs have a rank correlation (`planish.gate.similarity`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish.errors import InputError
from planish.gate.data import Dataset, load_data
from planish.gate.likelihood import compare_likelihood
from planish.gate.limits import ReferenceMetric
from planish.gate.metrics import Measured, accuracy, answer_token_f1, exact_match, macro_f1, span_f1
from planish.gate.outputs import Outputs, collect, label_list
from planish.gate.paired import estimate
from planish.gate.references import reference_scores, scorers
from planish.gate.similarity import METRIC, ranking_of
from planish.gate.statistics import Interval
from planish.runtime.loader import load

if TYPE_CHECKING:
    from planish.runtime.manifest import Manifest
    from planish.runtime.model import Model

__all__ = ["Score", "data_for", "score_bundles", "scores"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Score:
    """A metric of one bundle on ``n`` samples (decoders: windows), with its interval; a failed sample counts as wrong
    (a failed window is left out).
    """

    bundle: str
    metric: str
    interval: Interval
    n: int
    failures: int
    higher_is_better: bool = True

    def to_json(self) -> dict[str, Any]:
        return {
            "bundle": self.bundle,
            "metric": self.metric,
            "value": self.interval.to_json(),
            "n": self.n,
            "failures": self.failures,
            "higher_is_better": self.higher_is_better,
        }


def scores(
    task: str, labels: Sequence[str], data: Dataset, said: Outputs, reference_metric: ReferenceMetric = "chrF"
) -> list[Measured]:
    """The metrics of a task with labels, the one that decides first; not of pairs, whose metric is no function of sums.

    Args:
        labels: the model's, in its order; taken for text-classification alone.
        said: one entry a sample of ``data``.
        reference_metric: which one decides for text-generation.

    Raises:
        HostError: a library that scores texts against references is not installed.
    """
    samples = data.samples
    if task == "text-classification":
        predicted, truth = label_list(said), [sample.label for sample in samples]
        return [accuracy(predicted, truth), macro_f1(predicted, truth, len(labels))]
    if task == "token-classification":
        found = [None if item is None else item.spans for item in said.items]
        return [span_f1(found, [sample.spans for sample in samples])]
    if task == "text-generation":
        return reference_scores(data, said, reference_metric)
    answers = [None if item is None else item.answer for item in said.items]
    true = [sample.answers for sample in samples]
    return [answer_token_f1(answers, true), exact_match(answers, true)]


def data_for(manifests: Sequence[Manifest], data: str | Path | Dataset) -> Dataset:
    """The data all bundles are scored on.

    Raises:
        InputError: they are not of one task with the same labels, or the data has no labels for it.
        DataError: a bad line.
    """
    first = manifests[0]
    for other in manifests[1:]:
        for name in ("task", "problem_type", "labels"):
            wanted, got = getattr(first, name), getattr(other, name)
            if wanted != got:
                fix = "leave --data out, or bench them apart"
                raise InputError(f"bundles of one {name} to be scored on one data set, {wanted!r}", repr(got), fix)
    found = data if isinstance(data, Dataset) else load_data(data, first.task, first.labels, first.problem_type)
    if first.task != "text-generation" and not found.labelled:
        raise InputError(f"data with labels for {first.task}", f"{found.name}, without", "leave --data out")
    if first.task == "text-generation" and found.labelled:
        scorers("chrF")  # a missing library shows before minutes are spent
    return found


def score_bundles(
    names: Sequence[str],
    paths: Sequence[str | Path],
    data: Dataset,
    *,
    device: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Score, ...]:
    """Every metric of every bundle, one bundle after the other; a decoder is run beside the first one, unless there are
    references.
    """
    found: list[Score] = []
    for name, path in zip(names, paths, strict=True):
        with ExitStack() as stack:
            model = stack.enter_context(load(path, device, threads=threads))
            if model.manifest.generation is not None and not data.labelled:
                first = model if path == paths[0] else stack.enter_context(load(paths[0], device, threads=threads))
                found += perplexities(name, model, first, data, seed, progress)
                continue
            said = collect(model, data, name, progress)
            if model.manifest.task == "feature-extraction":
                pairs = ranking_of(data, said)
                interval = pairs.interval(pairs.resampled(seed))
                found.append(Score(name, METRIC, interval, pairs.n, len(said.failures)))
                continue
            for one in scores(model.manifest.task, model.manifest.labels or (), data, said):
                found.append(Score(name, one.name, estimate(one, seed=seed), one.n, len(said.failures)))
    return tuple(found)


def perplexities(
    name: str, model: Model, first: Model, data: Dataset, seed: int, progress: Progress | None
) -> list[Score]:
    """Perplexity of a decoder on the texts; none if it fails on every window."""
    texts = [sample.text for sample in data.samples]
    found = compare_likelihood(model, first, texts, progress=progress)
    failed = sum(failure.side == "candidate" for failure in found.failures)
    one = found.candidate
    return [Score(name, one.name, estimate(one, seed=seed), one.n, failed, one.higher_is_better)] if one.n else []
