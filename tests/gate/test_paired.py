"""Losses with intervals: what the bootstrap is given beside the samples, and that the intervals hold the truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from planish.gate.metrics import Measured, mean_of
from planish.gate.paired import exact_p, log_ratio, paired_loss
from planish.gate.statistics import Interval, mcnemar, z_of
from tests import interval_cases
from tests.interval_cases import Case, Coverage, coverage


def values(lost: int, gained: int, n: int, *, binary: bool) -> tuple[Measured, Measured]:
    candidate, baseline = np.full(n, 1.0), np.full(n, 1.0)
    candidate[:lost], baseline[n - gained :] = 0.0, 0.0
    new, old = (mean_of("metric", side, binary=binary) for side in (candidate, baseline))
    return new, old


@pytest.mark.parametrize(("lost", "gained"), [(5, 0), (0, 3), (12, 4), (30, 10), (1, 1)])
def test_a_loss_of_whole_samples_is_bonett_and_prices(lost: int, gained: int) -> None:
    """Oracle: their adjusted Wald interval, with one pair added to each discordant cell, for hits and misses that are
    not said to be such. BCa may move it by its own correction for skewness."""
    n, z = 400, z_of(0.95)
    found = paired_loss(*values(lost, gained, n, binary=False))
    p, q = (lost + 1) / (n + 2), (gained + 1) / (n + 2)
    half = 100 * z * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    assert found.estimate == pytest.approx(100 * (lost - gained) / n)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.12)
    assert (found.low, found.high) == pytest.approx((100 * (p - q) - half, 100 * (p - q) + half), abs=0.3 * half)


@pytest.mark.parametrize("lost", range(1, 9))
def test_a_few_losses_prove_a_loss_no_sooner_than_mcnemar(lost: int) -> None:
    """Four of four lost have p = 0.06; the bootstrap alone would swear to them, for it hardly ever draws none of them.
    Five of five (0.031) are the border: 0.025 lies between them and six."""
    new, old = values(lost, 0, 300, binary=False)
    p = mcnemar(new.rows[:, 0], old.rows[:, 0]).p_worse
    assert (paired_loss(new, old).low > 0) == (p < 0.032)
    assert exact_p(new, old) is None


def test_swapping_the_sides_turns_the_interval_round() -> None:
    rng = np.random.default_rng(0)
    old = mean_of("answer F1", rng.choice([0.0, 0.5, 1.0], 300))
    new = mean_of("answer F1", np.where(rng.random(300) < 0.05, rng.random(300), old.rows[:, 0]))
    one, other = paired_loss(new, old), paired_loss(old, new)
    assert one.estimate == pytest.approx(-other.estimate)
    width = one.high - one.low
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=0.06 * width)


def test_the_interval_says_what_was_added() -> None:
    assert "one change added each way" in paired_loss(*values(3, 1, 200, binary=False)).method
    assert paired_loss(*values(3, 1, 200, binary=True)).method == "Tango score"


def test_a_log_ratio_is_of_the_metrics() -> None:
    new, old = (mean_of("perplexity", side, higher_is_better=False) for side in (np.full(30, 2.2), np.full(30, 2.0)))
    assert log_ratio(new, old).estimate == pytest.approx(math.log(1.1))


CASES = {
    "accuracy": (interval_cases.hits(1000, 0.02), 1000),
    "agreement": (interval_cases.agreement(1000), 1000),
    "time ratio": (interval_cases.shift_of_pairs(20), 1000),
    "answer F1": (interval_cases.answers(1000, 0.02), 250),
    "perplexity": (interval_cases.windows(24, skewed=False), 250),
}
"""Each with its rounds: the bootstrap takes 10 ms."""


def is_right(found: Coverage) -> bool:
    """95 % +- 2, and missed on either side now and then."""
    return 0.93 <= found.inside <= 0.97 and min(found.above, found.below) >= 0.005


@pytest.mark.parametrize(("case", "rounds"), CASES.values(), ids=CASES)
def test_intervals_hold_the_truth_in_95_of_100_samples(case: Case, rounds: int) -> None:
    """`benchmarks/interval_coverage.py` does so for all cases, with more rounds."""
    assert is_right(coverage(case, rounds, seed=1))


def one_sided(found: Interval) -> Interval:
    return replace(found, low=-math.inf)


def shifted(found: Interval) -> Interval:
    by = (found.high - found.low) / 4
    return replace(found, low=found.low + by, high=found.high + by)


@pytest.mark.parametrize("name", ["accuracy", "agreement", "time ratio", "perplexity"])
def test_an_interval_of_90_percent_would_be_noticed(name: str) -> None:
    case, rounds = CASES[name]
    assert not is_right(coverage(case, rounds, seed=1, confidence=0.90))


@pytest.mark.parametrize("name", ["accuracy", "agreement", "time ratio"])
@pytest.mark.parametrize("change", [one_sided, shifted])
def test_a_one_sided_or_shifted_interval_would_be_noticed(name: str, change: Callable[[Interval], Interval]) -> None:
    case, rounds = CASES[name]
    assert not is_right(coverage(case, rounds, seed=1, change=change))
