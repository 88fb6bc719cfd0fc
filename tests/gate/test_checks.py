"""The accuracy rules: what they promise over many trials, their edges, and how checks add up."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from planish.errors import InputError
from planish.gate import checks
from planish.gate.checks import (
    Check,
    Verdict,
    judge_budget,
    judge_floor,
    judge_loss,
    judge_ratio_loss,
    loss_verdict,
    overall,
)
from planish.gate.limits import Limits, Rule
from planish.gate.metrics import Measured, mean_of, span_f1
from planish.gate.paired import estimate, exact_p, log_ratio, paired_loss
from planish.gate.spans import Span
from planish.gate.statistics import Interval


def hits(rng: np.random.Generator, n: int, flips: int, lost: int) -> tuple[Measured, Measured]:
    """A baseline with 86 % right; ``flips`` answers change, by a coin for better or worse, and ``lost`` for worse."""
    base = rng.random(n) < 0.86
    new = base.copy()
    worse = int(rng.binomial(flips, 0.5))
    new[rng.choice(np.flatnonzero(~base), size=flips - worse, replace=False)] = True
    new[rng.choice(np.flatnonzero(base), size=worse + lost, replace=False)] = False
    return mean_of("accuracy", new, binary=True), mean_of("accuracy", base, binary=True)


def rate(verdict: str, n: int, flips: int, lost: int, trials: int = 200, rule: Rule = "point") -> float:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(trials):
        new, old = hits(rng, n, flips, lost)
        found.append(judge_loss("x", paired_loss(new, old), 0.5, n, rule, p_worse=exact_p(new, old)).verdict)
    return float(np.mean([one == verdict for one in found]))


def test_a_planted_point_is_found_and_a_rearrangement_is_not() -> None:
    """1 point lost of 1,000: at least 90 % found. 20 answers changed either way: at most 2.5 % false alarms."""
    assert rate("regress", 1000, flips=0, lost=10) >= 0.9
    for flips in (8, 12, 20, 40):
        assert rate("regress", 1000, flips, lost=0, trials=600) <= 0.025 + 0.013  # 2 sigma of 600 trials
    assert rate("pass", 1008, flips=20, lost=0) >= 0.6


def test_without_significance_the_rule_would_raise_false_alarms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutation the test above has to notice: judging by the point alone."""
    point_alone = lambda loss, margin, rule, p: Verdict.REGRESS if loss.estimate > margin else Verdict.PASS  # noqa: E731
    monkeypatch.setattr(checks, "loss_verdict", point_alone)
    assert rate("regress", 1000, flips=20, lost=0) > 0.038


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ((0.3, -2.25, 2.87), "accuracy lost 0.30 points (-2.25 to +2.87, n = 346); at most 3 may be lost"),
        ((-0.2, -1.49, 1.08), "accuracy gained 0.20 points (-1.08 to +1.49, n = 346); at most 3 may be lost"),
    ],
)
def test_a_gain_is_told_with_the_gains_interval(loss: tuple[float, float, float], said: str) -> None:
    check = judge_loss("accuracy", Interval(*loss, 0.95, "here"), 3, 346, "interval")
    assert check.reason == said
    assert check.interval is not None
    assert (check.value, check.interval.low, check.interval.high) == loss


def test_the_interval_rule_passes_only_what_is_proven() -> None:
    assert rate("pass", 1000, flips=20, lost=0, rule="interval", trials=100) < 0.2
    assert rate("pass", 20_000, flips=100, lost=0, rule="interval", trials=50) > 0.9
    assert rate("pass", 1000, flips=20, lost=6, rule="interval", trials=100) <= 0.025  # a true loss of 0.6


@pytest.mark.parametrize(
    ("estimate_", "low", "high", "point", "interval"),
    [
        (0.4, 0.1, 0.45, "pass", "pass"),
        (0.4, -0.2, 1.0, "pass", "inconclusive"),
        (0.4, -1.5, 2.1, "inconclusive", "inconclusive"),  # 2 points are not excluded
        (0.6, -0.1, 1.3, "inconclusive", "inconclusive"),  # above the margin, but maybe no loss at all
        (0.6, 0.1, 1.1, "regress", "regress"),
        (-1.0, -2.0, -0.1, "pass", "pass"),
        (math.nan, -math.inf, math.inf, "inconclusive", "inconclusive"),
        (math.inf, math.inf, math.inf, "regress", "regress"),
    ],
)
def test_the_rule_for_a_loss(estimate_: float, low: float, high: float, point: str, interval: str) -> None:
    loss = Interval(estimate_, low, high, 0.95, "x")
    assert loss_verdict(loss, 0.5, "point") == point
    assert loss_verdict(loss, 0.5, "interval") == interval


@pytest.mark.parametrize(
    ("found", "low", "high", "point", "interval"),
    [
        (0.99, 0.985, 0.995, "pass", "pass"),
        (0.985, 0.97, 0.99, "pass", "inconclusive"),
        (0.985, 0.85, 0.99, "inconclusive", "inconclusive"),
        (0.975, 0.96, 0.985, "inconclusive", "inconclusive"),
        (0.95, 0.93, 0.97, "regress", "regress"),
    ],
)
def test_the_rule_for_a_floor(found: float, low: float, high: float, point: str, interval: str) -> None:
    share = Interval(found, low, high, 0.95, "x")
    assert judge_floor("agreement", share, 0.98, 500, "point").verdict == point
    assert judge_floor("agreement", share, 0.98, 500, "interval").verdict == interval
    assert not judge_floor("agreement", share, None, 500, "point").required


def test_perplexity_is_judged_by_its_logarithm_and_said_as_a_ratio() -> None:
    grows = Interval(math.log(1.08), math.log(1.05), math.log(1.11), 0.95, "x")
    check = judge_ratio_loss("perplexity", grows, 1.06, 80, "point")
    assert check.verdict == "regress"
    assert check.value == pytest.approx(1.08)
    assert check.interval is not None
    assert check.interval.high == pytest.approx(1.11)
    assert judge_ratio_loss("perplexity", replace(grows, estimate=math.log(1.055)), 1.06, 80, "point").verdict == "pass"
    assert judge_ratio_loss("perplexity", replace(grows, estimate=1e4), 1.06, 80, "point").to_json()["value"] is None


def test_budgets_are_facts() -> None:
    assert judge_budget("size", 10, 10, "bytes").verdict == "pass"
    assert judge_budget("size", 11, 10, "bytes").verdict == "regress"
    assert judge_budget("cosine min", 0.98, 0.985, "share", at_most=False).verdict == "regress"
    assert not judge_budget("size", 11, None, "bytes").required


def test_checks_add_up() -> None:
    def check(verdict: str, required: bool = True) -> Check:
        return Check("x", Verdict(verdict), 0.0, 0.0, "", "", required=required)

    assert overall([check("pass"), check("inconclusive"), check("regress")]) == "regress"
    assert overall([check("pass"), check("inconclusive")]) == "inconclusive"
    assert overall([check("pass"), check("regress", required=False)]) == "pass"
    assert overall([]) == "inconclusive"
    assert [Verdict(v).exit_code for v in ("pass", "regress", "inconclusive")] == [0, 1, 3]
    assert f"{Verdict.PASS}" == str(Verdict.PASS) == "pass"


def test_metrics_that_did_not_change_do_not_claim_certainty() -> None:
    """A bootstrap of equal samples has no width; 40 sentences cannot exclude a loss of 2 points."""
    same = span_f1([[Span(0, 1, "A")]] * 40, [[Span(0, 1, "A")]] * 40)
    loss = paired_loss(same, same)
    assert loss.estimate == 0
    assert 5 < loss.high < 10


def test_few_samples_have_no_interval() -> None:
    few = mean_of("answer F1", [0.5, 0.7, 0.9])
    assert estimate(few).low == -math.inf
    other = mean_of("answer F1", [0.5, 0.6, 0.9])
    assert paired_loss(other, few).high == math.inf


def test_pairs_beat_two_separate_intervals() -> None:
    """The point of pairing: texts differ far more than two models on one text do."""
    rng = np.random.default_rng(0)
    tokens = np.full(60, 100.0)
    base = rng.normal(350, 60, 60)
    from planish.gate.metrics import perplexity

    old, new = perplexity(base, tokens), perplexity(base + 4 + rng.normal(0, 1, 60), tokens)
    paired = log_ratio(new, old)
    assert paired.low <= 0.04 <= paired.high
    alone = estimate(new)
    assert (paired.high - paired.low) * 20 < math.log(alone.high / alone.low)


@pytest.mark.parametrize(
    "changes",
    [
        {"rule": "mean"},
        {"max_loss_points": -1},
        {"max_loss_points": math.nan},
        {"min_agreement": 1.5},
        {"max_perplexity_ratio": 0.9},
        {"max_latency_ratio": 0},
        {"require_speedup": "2"},
        {"max_wall_ratio": 0.0},
        {"max_bytes": 0},
        {"latency_floor_seconds": True},
    ],
)
def test_impossible_limits_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(changes))):
        Limits(**changes)  # type: ignore[arg-type]


def test_a_required_speedup_replaces_the_latency_limit() -> None:
    assert Limits(require_speedup=2.0).latency_limit == 0.5
    assert Limits(max_latency_ratio=None).latency_limit is None
    assert Limits.from_json({**Limits(max_bytes=9).to_json(), "later": 1}) == Limits(max_bytes=9)
