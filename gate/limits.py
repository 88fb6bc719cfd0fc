"""What a candidate must keep to: one frozen set of limits, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from planish.errors import InputError

__all__ = ["AGREEMENT", "Limits", "ReferenceMetric", "Rule", "check_seconds"]

Rule = Literal["point", "interval"]
ReferenceMetric = Literal["chrF", "BLEU", "ROUGE-L"]

AGREEMENT = {
    "text-classification": 0.98,
    "token-classification": 0.98,
    "question-answering": 0.95,
    "fill-mask": 0.95,
    "text-generation": 0.80,
}
"""Least agreement with the parent, by task. INT8 MiniLM: 0.987 per channel, 0.968 per tensor; INT4 SmolLM2, next token:
0.85 with GPTQ, 0.71 with plain rounding (measured; the limits lie between what should pass and what should not)."""


@dataclass(frozen=True)
class Limits:
    """Limits of the gate; ``None`` switches a check off, except where it says what it stands for.

    Attributes:
        max_loss_points: largest loss of the task metric, in points (hundredths). 0.5.
        max_slice_loss_points: largest loss on a slice of the labelled data (`planish.gate.slices`), in points. None:
            four times ``max_loss_points``.
        rule: what a pass takes, ``"point"`` (default) or ``"interval"``; see `planish.gate.checks`.
        min_agreement: least share of answers equal to the parent's. None: the task's default without labels; with
            labels agreement is reported only, for the labels are the better judge.
        min_cosine_mean, min_cosine_min: embeddings against the parent's, over the texts. None reports only; so do pairs
            with scores, which are the better judge.
        min_overlap: least mean share of the ten nearest neighbours in common with the parent's embeddings. Off.
        reference_metric: what decides for text-generation with references (`planish.gate.references`): ``"chrF"``
            (default), ``"BLEU"`` or ``"ROUGE-L"``.
        max_perplexity_ratio: perplexity over the parent's.
        max_kl: mean Kullback-Leibler divergence from the parent's next token, in nats. Off.
        max_latency_ratio: judged time over the baseline's; 1.05 allows 5 % more.
        require_speedup: the candidate must be so many times faster; replaces ``max_latency_ratio``. Off.
        max_wall_ratio: the wall clock's time over the baseline's, where CPU time is judged; else the smaller of both
            limits counts. The clock's own noise is measured beside it (`planish.gate.slowdown`). Off: reported only.
        latency_floor_seconds: a difference per inference below this is never a regression.
        max_bytes: the bundle's size. Off.
        max_peak_rss_bytes: peak memory of a process that runs it once (`planish.gate.memory`). Off.
        max_energy_joules: of one inference of the first shape (`planish.gate.energy`). Off.

    Raises:
        InputError: for a limit that no value, or every value, could keep.
    """

    max_loss_points: float = 0.5
    max_slice_loss_points: float | None = None
    rule: Rule = "point"
    min_agreement: float | None = None
    min_cosine_mean: float | None = 0.995
    min_cosine_min: float | None = 0.985
    min_overlap: float | None = None
    reference_metric: ReferenceMetric = "chrF"
    max_perplexity_ratio: float | None = 1.06
    max_kl: float | None = None
    max_latency_ratio: float | None = 1.05
    require_speedup: float | None = None
    max_wall_ratio: float | None = None
    latency_floor_seconds: float = 20e-6
    max_bytes: int | None = None
    max_peak_rss_bytes: int | None = None
    max_energy_joules: float | None = None

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise InputError("rule point or interval", repr(self.rule), 'write rule="point"')
        if self.reference_metric not in get_args(ReferenceMetric):
            expected = f"reference_metric {' or '.join(get_args(ReferenceMetric))}"
            raise InputError(expected, repr(self.reference_metric), 'write reference_metric="chrF"')
        for name, low, high in (
            ("max_loss_points", 0.0, 100.0),
            ("max_slice_loss_points", 0.0, 100.0),
            ("min_agreement", 0.0, 1.0),
            ("min_cosine_mean", -1.0, 1.0),
            ("min_cosine_min", -1.0, 1.0),
            ("min_overlap", 0.0, 1.0),
            ("max_perplexity_ratio", 1.0, math.inf),
            ("max_kl", 0.0, math.inf),
            ("max_latency_ratio", 1e-3, 1e3),
            ("require_speedup", 1e-3, 1e3),
            ("max_wall_ratio", 1e-3, 1e3),
            ("latency_floor_seconds", 0.0, 10.0),
            ("max_bytes", 1, math.inf),
            ("max_peak_rss_bytes", 1, 1e18),
            ("max_energy_joules", 1e-9, 1e9),
        ):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and low <= value <= high):
                raise InputError(f"{name} from {low:g} to {high:g}", repr(value), f"change {name}")

    @property
    def slice_margin(self) -> float:
        """The loss a slice may have, in points."""
        return 4 * self.max_loss_points if self.max_slice_loss_points is None else self.max_slice_loss_points

    @property
    def latency_limit(self) -> float | None:
        """The ratio that is judged: one over the required speed-up, else ``max_latency_ratio``."""
        return 1 / self.require_speedup if self.require_speedup is not None else self.max_latency_ratio

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Limits:
        """The limits of a report; keys of later versions are ignored."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def check_seconds(seconds: float, most: float = math.inf) -> float:
    """``seconds`` if it is a time to measure for; a clock never passes NaN, nor the end of an infinity.

    Raises:
        InputError: it is no finite number above 0 and up to ``most``.
    """
    if not is_number(seconds) or not (0 < seconds < math.inf and seconds <= most):
        bound = "" if most == math.inf else f", at most {most:.0f}"
        raise InputError(f"seconds as a finite number above 0{bound}", repr(seconds), "leave it out for the default")
    return seconds
