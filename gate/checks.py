"""The rules: from a measured quantity and its limit to pass, regress or inconclusive.

**A loss against a margin** (accuracy, F1, the logarithm of a perplexity ratio; positive is worse), with the 95 %
interval of the paired difference:

- regress: the loss found is above the margin, *and* there is a loss: McNemar's exact one-sided p is at most 2.5 %
  (hits and misses), or the interval lies above zero (everything else);
- pass, rule ``interval``: the whole interval is at or below the margin. This proves non-inferiority, and it takes
  samples: where 2 % of the answers changed, a margin of 0.5 point takes about 3,000;
- pass, rule ``point`` (default, also of ``planish ship``): the loss found is at or below the margin, and the interval
  excludes a loss of four margins (2 points by default). It reads the limit as "loses at most so much on this set": the
  set is the specification, and the second half keeps 50 lucky sentences from passing. 1,008 samples decide 0.5 point
  this way; they could not prove it for the population;
- else inconclusive: more samples are needed.

So two equally good models regress in at most 2.5 % of trials under either rule.

**A share or a mean against a floor** (agreement with the parent, cosine): regress when the interval lies below the
floor; pass when the value (rule ``interval``: the whole interval) is at or above it, and the lower bound misses the
floor by no more than three times the gap from the floor to perfect; else inconclusive. The *smallest* cosine is a
fact about these texts: judged as it stands.

**A time ratio against a limit**: see `planish.gate.slowdown`. **A size against a budget**: as it stands.

Together: any regress is a regress; else any required check that is inconclusive makes the whole inconclusive; else
pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from planish.gate.limits import Rule
from planish.gate.statistics import Interval, finite_or_none

__all__ = ["Check", "Verdict", "judge_budget", "judge_floor", "judge_loss", "judge_ratio_loss", "overall", "safe_exp"]

ALPHA = 0.025  # one-sided, as a 95 % interval has it
SLACK = 4.0  # rule "point": the interval must exclude a loss of so many margins


class Verdict(str, Enum):
    """The gate's three answers; equal to the words themselves."""

    PASS = "pass"
    REGRESS = "regress"
    INCONCLUSIVE = "inconclusive"

    def __str__(self) -> str:
        return self.value

    @property
    def exit_code(self) -> int:
        return {"pass": 0, "regress": 1, "inconclusive": 3}[self.value]


@dataclass(frozen=True)
class Check:
    """One judged quantity.

    Attributes:
        value, limit: in ``unit``; ``interval`` too, where there is one.
        n: samples, texts or pairs behind it.
        required: False = reported, does not decide.
        reason: one sentence: what was found and what was allowed.
    """

    name: str
    verdict: Verdict
    value: float
    limit: float | None
    unit: str
    reason: str
    interval: Interval | None = None
    n: int = 0
    required: bool = True

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "verdict": str(self.verdict),
            "value": finite_or_none(self.value),
            "limit": None if self.limit is None else finite_or_none(self.limit),
            "unit": self.unit,
            "interval": self.interval.to_json() if self.interval else None,
            "n": self.n,
            "required": self.required,
            "reason": self.reason,
        }


def overall(checks: Iterable[Check]) -> Verdict:
    """Any regress decides; else any open question; else pass. Nothing judged at all is an open question."""
    verdicts = [check.verdict for check in checks if check.required]
    for verdict in (Verdict.REGRESS, Verdict.INCONCLUSIVE):
        if verdict in verdicts:
            return verdict
    return Verdict.PASS if verdicts else Verdict.INCONCLUSIVE


def loss_verdict(loss: Interval, margin: float, rule: Rule, p_worse: float | None = None) -> Verdict:
    """The rule for a loss; ``loss`` and ``margin`` in the same unit, positive is worse; ``p_worse`` if it is exact."""
    if not math.isfinite(loss.estimate):
        return Verdict.REGRESS if loss.estimate > 0 else Verdict.INCONCLUSIVE
    worse = loss.low > 0 if p_worse is None else p_worse <= ALPHA
    if loss.estimate > margin and worse:
        return Verdict.REGRESS
    bound = margin if rule == "interval" else max(SLACK * margin, 1e-12)
    return Verdict.PASS if loss.estimate <= margin and loss.high <= bound else Verdict.INCONCLUSIVE


def judge_loss(name: str, loss: Interval, margin: float, n: int, rule: Rule, *, p_worse: float | None = None) -> Check:
    """A loss in points against a margin in points; for hits and misses with the exact McNemar ``p_worse``."""
    verdict = loss_verdict(loss, margin, rule, p_worse)
    found = f"{name} {describe_loss(loss, n)}; at most {margin:g} may be lost"
    reason = f"{found}{more_samples(verdict)}"
    return Check(f"{name} loss", verdict, loss.estimate, margin, "points", reason, loss, n)


def describe_loss(loss: Interval, n: int) -> str:
    """A loss in points; a negative one is a gain, and then the interval is told as the gain's, too."""
    word, found = "lost", (loss.estimate, loss.low, loss.high)
    if loss.estimate < 0:
        word, found = "gained", (-loss.estimate, -loss.high, -loss.low)
    points, low, high = found
    return f"{word} {points:.2f} points ({low:+.2f} to {high:+.2f}, n = {n})"


def more_samples(verdict: Verdict) -> str:
    return ": give more samples to decide" if verdict is Verdict.INCONCLUSIVE else ""


def judge_ratio_loss(name: str, log_ratio: Interval, limit: float, n: int, rule: Rule) -> Check:
    """A ratio to the parent (perplexity) against its limit, judged by its logarithm."""
    verdict = loss_verdict(log_ratio, math.log(limit), rule)
    ratio = log_ratio.map(safe_exp)
    found = f"{name} {ratio.estimate:.4f} times the baseline's ({ratio.low:.4f} to {ratio.high:.4f}, n = {n})"
    reason = f"{found}; at most {limit:g}{more_samples(verdict)}"
    return Check(f"{name} ratio", verdict, ratio.estimate, limit, "ratio", reason, ratio, n)


def safe_exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def judge_floor(
    name: str, found: Interval, floor: float | None, n: int, rule: Rule, *, perfect: float = 1.0, required: bool = True
) -> Check:
    """A share or mean against the least allowed; without a floor it is only reported."""
    text = f"{name} {found.estimate:.4f} ({found.low:.4f} to {found.high:.4f}, n = {n})"
    if floor is None:
        return Check(name, Verdict.PASS, found.estimate, None, "share", text, found, n, required=False)
    least = floor if rule == "interval" else floor - (SLACK - 1) * (perfect - floor)
    if found.high < floor:
        verdict = Verdict.REGRESS
    else:
        verdict = Verdict.PASS if found.estimate >= floor and found.low >= least else Verdict.INCONCLUSIVE
    reason = f"{text}; at least {floor:g}{more_samples(verdict)}"
    return Check(name, verdict, found.estimate, floor, "share", reason, found, n, required=required)


def judge_budget(name: str, value: float, limit: float | None, unit: str, *, at_most: bool = True, n: int = 0) -> Check:
    """A quantity that is known, not estimated, against a budget; without one it is only reported."""
    spelling = ",.0f" if unit == "bytes" else "g"
    text = f"{name} {value:{spelling}} {unit}"
    if limit is None:
        return Check(name, Verdict.PASS, value, None, unit, text, n=n, required=False)
    kept = value <= limit if at_most else value >= limit
    reason = f"{text}; at {'most' if at_most else 'least'} {limit:{spelling}}"
    return Check(name, Verdict.PASS if kept else Verdict.REGRESS, value, limit, unit, reason, n=n)
