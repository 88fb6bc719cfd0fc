"""How close a candidate's embeddings are to its parent's, without labels: cosines, and neighbours in common.

Beside labels all of it is reported only: a smaller model may place texts elsewhere and rank pairs as well.
"""

from __future__ import annotations

import math
from dataclasses import replace

from planish.gate.agreement import agreement, cosines
from planish.gate.checks import Check, Verdict, judge_budget, judge_floor
from planish.gate.data import Dataset
from planish.gate.limits import Limits
from planish.gate.neighbours import NEIGHBOURS, neighbour_overlap
from planish.gate.outputs import Output, Outputs
from planish.gate.paired import estimate

__all__ = ["each_text", "embedding_checks"]

TASK = "feature-extraction"


def embedding_checks(data: Dataset, said: Outputs, before: Outputs, limits: Limits, seed: int) -> list[Check]:
    """Mean and smallest cosine, and overlap@10 where there are texts enough.

    Raises:
        InputError: the two sides' embeddings have different widths.
    """
    new, old = (each_text(data, side) for side in (said, before))
    if data.labelled:
        said, before = new, old
        limits = replace(limits, min_cosine_mean=None, min_cosine_min=None)
    (mean,) = agreement(TASK, said, before)
    smallest = float(cosines(said, before).min())
    checks = [
        judge_floor(mean.name, estimate(mean, seed=seed), limits.min_cosine_mean, mean.n, limits.rule),
        judge_budget("cosine min", smallest, limits.min_cosine_min, "share", at_most=False, n=mean.n),
    ]
    overlap = neighbour_overlap(new, old)
    if overlap is not None:
        found = estimate(overlap, seed=seed)
        checks.append(judge_floor(overlap.name, found, limits.min_overlap, overlap.n, limits.rule))
    elif limits.min_overlap is not None:
        checks.append(too_few(len(new.items), limits.min_overlap))
    return checks


def too_few(texts: int, floor: float) -> Check:
    """A limit on neighbours that cannot be kept or broken."""
    name, least = f"overlap@{NEIGHBOURS}", 2 * NEIGHBOURS + 1
    reason = f"{name} takes {least} different texts, and there are {texts}: give more texts, or leave min_overlap out"
    return Check(name, Verdict.INCONCLUSIVE, math.nan, floor, "share", reason, n=texts)


def each_text(data: Dataset, said: Outputs) -> Outputs:
    """The embedding of every distinct text, in the order they first occur; of a pair each text by itself."""
    found: dict[str, Output | None] = {}
    for sample, output in zip(data.samples, said.items, strict=True):
        texts = [sample.text, sample.pair] if sample.pair else [sample.text]
        for number, text in enumerate(texts):
            if output is None:
                found.setdefault(text, None)
            elif found.get(text) is None:
                found[text] = Output(values=output.values.reshape(len(texts), -1)[number])
    return Outputs(tuple(found.values()), said.failures)
