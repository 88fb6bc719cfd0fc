"""Slices of the labelled data: a loss that hurts one kind of sample hides in the mean over all.

Slices are taken by length (short, middle and long third, counted in words), by true label, and by every other column of
the data that has few values (a language, a source, a demographic term). Slices of fewer than 30 samples are left out.

The worst slice regresses where its loss is above the slices' margin *and* proved: the exact McNemar p (hits and misses)
or the bootstrap's interval, at 1 % divided by the number of slices (Bonferroni), so that looking at many slices raises
no false alarm. A slice never makes a gate inconclusive: it is too small to prove that nothing is lost on it, and does
not claim so; the losses of all slices are in the report.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from planish.gate.checks import Check, Verdict, describe_loss
from planish.gate.paired import exact_p, paired_loss
from planish.gate.statistics import Interval

if TYPE_CHECKING:
    from planish.gate.data import Dataset, Sample
    from planish.gate.metrics import Measured

__all__ = ["SliceLoss", "judge_slices", "slice_losses", "slices_of"]

LEAST = 30
"""Samples a slice must have."""
MOST_VALUES = 20
"""Distinct values of a column that is taken for one to slice by."""
ALPHA = 0.01


@dataclass(frozen=True)
class SliceLoss:
    """The loss of the task's first metric on one slice.

    Attributes:
        loss: in points, with its own 95 % interval.
        proved: worse by the test at 1 % over the number of slices.
    """

    name: str
    n: int
    candidate: float
    baseline: float
    loss: Interval
    proved: bool

    def hurts(self, margin: float) -> bool:
        """More than ``margin`` points are lost here, and not by chance."""
        return self.proved and self.loss.estimate > margin

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "n": self.n,
            "candidate": self.candidate,
            "baseline": self.baseline,
            "loss": self.loss.to_json(),
            "proved": self.proved,
        }


def slices_of(data: Dataset, labels: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Which samples belong to each slice, bool ``[samples]``, by name (``length 1 to 9 words``, ``label positive``,
    ``language de``); slices that are too small, or everything, are left out.
    """
    samples = data.samples
    found = _thirds(np.array([len(_words(sample)) for sample in samples]))
    kinds = [_kinds(sample, labels) for sample in samples]
    for kind in sorted({kind for own in kinds for kind in own}):
        found[f"label {kind}"] = np.array([kind in own for own in kinds])
    for column in sorted({name for sample in samples for name in sample.columns}):
        values = [_value(sample.columns.get(column)) for sample in samples]
        distinct = sorted({value for value in values if value is not None})
        for value in distinct if len(distinct) <= MOST_VALUES else ():
            found[f"{column} {value}"] = np.array([one == value for one in values])
    return {name: mask for name, mask in found.items() if LEAST <= mask.sum() < len(mask)}


def slice_losses(
    candidate: Measured, baseline: Measured, slices: dict[str, NDArray[np.bool_]], *, seed: int = 0
) -> tuple[SliceLoss, ...]:
    """The loss on each slice, the largest first. The metric is one in which higher is better and 1 is perfect."""
    found = []
    for name, mask in slices.items():
        new, old = (replace(side, rows=side.rows[mask]) for side in (candidate, baseline))
        p_worse, level = exact_p(new, old), ALPHA / len(slices)
        if p_worse is None:
            proved = paired_loss(new, old, seed=seed, confidence=1 - 2 * level).low > 0
        else:
            proved = p_worse <= level
        found.append(SliceLoss(name, new.n, new.value, old.value, paired_loss(new, old, seed=seed), proved))
    return tuple(sorted(found, key=lambda one: -one.loss.estimate))


def judge_slices(metric: str, losses: Sequence[SliceLoss], margin: float) -> Check | None:
    """The worst slice as a check; None where there are no slices."""
    if not losses:
        return None
    hurt = [one for one in losses if one.hurts(margin)]
    worst = (hurt or losses)[0]
    reason = f"{metric} on slice '{worst.name}' {describe_loss(worst.loss, worst.n)}"
    reason += f"; at most {margin:g} may be lost on a slice"
    if len(hurt) > 1:
        reason += f"; {len(hurt)} of {len(losses)} slices lose more"
    elif not hurt and worst.loss.estimate > margin:
        reason += f", and among {len(losses)} slices so much may be chance"
    verdict = Verdict.REGRESS if hurt else Verdict.PASS
    return Check("worst slice loss", verdict, worst.loss.estimate, margin, "points", reason, worst.loss, worst.n)


def _words(sample: Sample) -> list[str]:
    return f"{sample.text} {sample.question} {sample.context}".split()


def _thirds(lengths: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """Three slices of about as many samples; fewer where lengths do not differ so much."""
    if not len(lengths):
        return {}
    edges = sorted({math.floor(np.quantile(lengths, share)) for share in (1 / 3, 2 / 3)} - {int(lengths.max())})
    found, low = {}, int(lengths.min())
    for high in [*edges, int(lengths.max())]:
        found[f"length {low} to {high} words"] = (lengths >= low) & (lengths <= high)
        low = high + 1
    return found


def _kinds(sample: Sample, labels: Sequence[str]) -> set[str]:
    """The true labels of a sample: classes, kinds of entities, or whether a question has an answer."""
    if sample.question:
        return {"answer" if sample.answers else "no answer"}
    return {labels[number] if number < len(labels) else str(number) for number in sample.label} | {
        span.label for span in sample.spans
    }


def _value(value: Any) -> str | None:
    """A column's value as a name, if it is one to slice by: a word, a whole number, true or false."""
    return str(value) if isinstance(value, (str, int, bool)) and len(str(value)) <= 40 else None
