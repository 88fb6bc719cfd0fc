"""Trials of a judge: how often each verdict came, what was promised, and whether the promise can still be believed.

A promise is a share: "of two equal sides at most 2.5 % regress". It is broken when what was counted would come from a
judge that just keeps it in less than :data:`ALPHA` of cases, by the exact binomial test. So a healthy judge is called
broken in less than one self-test in a hundred, with all its promises together, and a few trials suffice against one
that errs most of the time: at 2.5 %, two errors of two, three of eight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from planish.gate.checks import Verdict
from planish.gate.statistics import Interval, binomial_tail, clopper_pearson, finite_or_none

__all__ = ["ALPHA", "Promise", "Trials"]

ALPHA = 0.001


@dataclass(frozen=True)
class Promise:
    """``verdict`` comes in at most, or at least, ``share`` of the trials."""

    verdict: Verdict
    kind: Literal["at most", "at least"]
    share: float

    def p(self, count: int, trials: int) -> float:
        """How likely a judge that just keeps the promise errs as often as this one did, or more often."""
        if self.kind == "at most":
            return binomial_tail(count, trials, self.share)
        return binomial_tail(trials - count, trials, 1 - self.share)

    def __str__(self) -> str:
        return f"{self.verdict} {self.kind} {100 * self.share:g} %"


@dataclass(frozen=True)
class Trials:
    """What a judge said in the trials of one kind.

    Attributes:
        planted: something is there to be found, so that a regress is right.
        promise: None: only told.
        measured: every trial was measured on this machine, so that noise may leave it undecided.
        detectable: the slowdown a trial would have found in 80 % of cases, as a ratio (median).
    """

    name: str
    planted: bool
    verdicts: Sequence[Verdict] = field(repr=False)
    promise: Promise | None = None
    measured: bool = False
    detectable: float | None = None

    def count(self, verdict: Verdict) -> int:
        return sum(one is verdict for one in self.verdicts)

    @property
    def regress(self) -> Interval:
        """Share of regress with its exact 95 % interval: power where something is planted, else false alarms."""
        return clopper_pearson(self.count(Verdict.REGRESS), len(self.verdicts))

    @property
    def p(self) -> float | None:
        promise = self.promise
        return None if promise is None else promise.p(self.count(promise.verdict), len(self.verdicts))

    @property
    def broken(self) -> bool:
        return self.p is not None and self.p < ALPHA

    @property
    def undecided(self) -> bool:
        """Less than half of the rounds came out right: the machine is too noisy, if nothing is broken."""
        right = Verdict.REGRESS if self.planted else Verdict.PASS
        return self.measured and 2 * self.count(right) < len(self.verdicts)

    @property
    def reason(self) -> str:
        """What was counted, against what was promised."""
        counts = ", ".join(f"{self.count(verdict)} {verdict}" for verdict in Verdict)
        return f"{self.name}: {counts} of {len(self.verdicts)}" + (
            f"; promised: {self.promise}" if self.promise else ""
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "planted": self.planted,
            "measured": self.measured,
            "trials": len(self.verdicts),
            **{str(verdict): self.count(verdict) for verdict in Verdict},
            "regress_share": self.regress.to_json(),
            "promise": None if self.promise is None else str(self.promise),
            "p": self.p,
            "broken": self.broken,
            "minimum_detectable_ratio": None if self.detectable is None else finite_or_none(self.detectable),
        }
