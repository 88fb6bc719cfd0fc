"""Drift: Kendall and Theil-Sen against scipy, how often the rule errs, and what a changed machine does to a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from planish.gate import drift
from planish.gate.checks import Verdict
from planish.gate.clock import Timing
from planish.gate.conditions import Conditions
from planish.gate.drift import Trend, Watch, changes, inversions_cdf, trend_of
from planish.gate.gpu_state import GpuState
from planish.gate.latency import Sides, compare
from planish.gate.slowdown import Comparison, Pairs, Plan, decide, judge_latency, under
from tests.gate.work_clock import WorkClock

CALM = Conditions(0.0, 2, 3_000_000, governors=("performance",), headroom_c=30.0, load=1.0, power_mode="15W")


def pairs_of(ratios: Sequence[float]) -> Pairs:
    return Pairs([Timing(0.01 * ratio, 0.01 * ratio) for ratio in ratios], [Timing(0.01, 0.01)] * len(ratios))


@given(st.lists(st.integers(0, 9), min_size=2, max_size=70), st.booleans())
@settings(deadline=None)
def test_kendall_is_scipys(values: list[int], spread: bool) -> None:
    """Exact without ties up to 50 values, else the normal approximation."""
    numbers = np.array(values, dtype=np.float64)
    if spread:
        numbers += np.random.default_rng(len(values)).random(len(values))
    found = trend_of(numbers)
    tied = len(set(numbers.tolist())) < len(numbers)
    method = "asymptotic" if tied or len(numbers) > drift.EXACT_LIMIT else "exact"
    oracle = stats.kendalltau(np.arange(len(numbers)), numbers, method=method)
    if math.isnan(oracle.statistic):
        assert (found.tau, found.p) == (0.0, 1.0), "all values are one"
    else:
        assert found.tau == pytest.approx(oracle.statistic)
        assert found.p == pytest.approx(oracle.pvalue, rel=1e-9)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=40))
@settings(deadline=None)
def test_the_line_is_scipys_theil_sen(values: list[float]) -> None:
    slope, intercept, _, _ = stats.theilslopes(values)
    found = trend_of(np.array(values))
    assert found.start == pytest.approx(intercept, abs=1e-9)
    assert found.end == pytest.approx(intercept + slope * (len(values) - 1), abs=1e-9)


def test_inversions_by_counting_them() -> None:
    counted = np.zeros(11)
    for order in permutations(range(5)):
        counted[sum(order[i] > order[j] for i in range(5) for j in range(i + 1, 5))] += 1
    assert inversions_cdf(5) == pytest.approx(np.cumsum(counted) / counted.sum())


@pytest.mark.parametrize("values", [[], [0.1], [0.2] * 9])
def test_no_trend_where_there_is_nothing_to_see(values: list[float]) -> None:
    found = trend_of(np.array(values))
    assert found.p == 1.0
    assert not found.real


Noise = Callable[[np.random.Generator, int], Any]


def rate(noise: Noise, n: int, rounds: int, happens: Callable[[Trend], bool]) -> float:
    rng = np.random.default_rng(n)
    return float(np.mean([happens(trend_of(noise(rng, n))) for _ in range(rounds)]))


def independent(rng: np.random.Generator, n: int) -> Any:
    return rng.normal(0, 0.03, n)


def sticky(rng: np.random.Generator, n: int) -> Any:
    """Noise that remembers: half of each sitting's comes from the one before, as on a machine busy for a while."""
    noise = rng.normal(0, 0.03, n)
    for i in range(1, n):
        noise[i] += 0.5 * noise[i - 1]
    return noise


def overturns(trend: Trend) -> bool:
    return trend.crosses(math.log(1.05))


@pytest.mark.parametrize("n", [9, 19, 60])
def test_a_trend_is_rarely_seen_where_there_is_none(n: int) -> None:
    """One run of independent noise in a thousand, at 0.1 %, and then it has to lead across the limit."""
    assert rate(independent, n, 500, lambda trend: trend.p < drift.TREND_ALPHA) <= 0.004
    assert rate(independent, n, 500, overturns) <= 0.002


@pytest.mark.parametrize(("n", "most"), [(9, 0.015), (19, 0.03), (60, 0.01)])
def test_noise_that_remembers_costs_few_verdicts(n: int, most: float) -> None:
    """In 1500 rounds 0.6, 1.5 and 0.1 % of the verdicts; without the scatter in the rule, of 60 sittings 2.4 %."""
    assert rate(sticky, n, 400, overturns) <= most


@pytest.mark.parametrize("shape", ["line", "step"])
def test_a_change_of_ten_percent_is_seen(shape: str) -> None:
    def moving(rng: np.random.Generator, n: int) -> Any:
        change = np.linspace(-0.05, 0.05, n) if shape == "line" else np.where(np.arange(n) < n // 2, -0.05, 0.05)
        return math.log(1.03) + change + rng.normal(0, 0.015, n)

    assert rate(moving, 27, 150, overturns) >= 0.8


def test_a_trend_that_leads_across_the_limit_is_inconclusive() -> None:
    rng = np.random.default_rng(0)
    slower = np.linspace(0.98, 1.04, 30) * np.exp(rng.normal(0, 0.003, 30))
    found = decide("x", pairs_of(slower), Plan())
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.ratio.high < 1.05, "it would have passed"
    reason = judge_latency(found).reason
    assert "the ratio moved from 0.978 to 1.038 while it was measured" in reason
    assert "let the machine settle" in reason
    assert found.to_json()["trend"]["p"] < 1e-6


@pytest.mark.parametrize(
    ("start", "end", "verdict"), [(0.45, 0.50, "pass"), (1.2, 1.3, "regress"), (1.0, 1.003, "pass")]
)
def test_a_trend_far_from_the_limit_changes_nothing(start: float, end: float, verdict: str) -> None:
    noise = np.exp(np.random.default_rng(1).normal(0, 0.001, 30))
    assert decide("x", pairs_of(np.linspace(start, end, 30) * noise), Plan()).verdict == verdict


def test_heat_that_slows_both_sides_alike_is_no_trend() -> None:
    rng = np.random.default_rng(2)
    heat = np.linspace(1, 5, 40)
    new, old = (0.01 * heat * np.exp(rng.normal(0, 0.01, 40)) for _ in range(2))
    pairs = Pairs([Timing(t, t) for t in new], [Timing(t, t) for t in old])
    assert decide("x", pairs, Plan()).verdict is Verdict.PASS


def test_without_a_limit_a_trend_is_told_and_judges_nothing() -> None:
    found = decide("x", pairs_of(np.linspace(0.9, 1.2, 30)), Plan(limit=None))
    assert (found.verdict, found.doubt) == (Verdict.PASS, "")
    assert found.trend.real


def looks(count: int = 12, **last: Any) -> list[Conditions]:
    """Looks a second apart, the last third of them with other figures."""
    return [replace(CALM, at=float(i), **(last if i >= count - count // 3 else {})) for i in range(count)]


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"fastest_khz": 2_300_000}, "the processors' clock fell from 3 to 2.3 GHz"),
        ({"power_mode": "MAXN"}, "the power mode changed from 15W to MAXN"),
        ({"governors": ("powersave",)}, "the governor changed from performance to powersave"),
        ({"headroom_c": 1.4}, "a thermal zone came within 1 °C of its trip point"),
        ({"headroom_c": -3.0}, "a thermal zone came within 0 °C of its trip point"),
    ],
)
def test_what_counts_as_another_machine(figures: dict[str, Any], words: str) -> None:
    assert changes(looks(**figures)) == [words]


@pytest.mark.parametrize(
    "figures",
    [
        {},
        {"fastest_khz": 2_500_000},
        {"fastest_khz": 4_500_000},
        {"fastest_khz": None},
        {"power_mode": None},
        {"governors": ()},
        {"headroom_c": 2.5},
        {"load": 40.0},
        {"waited_us": 10**9, "stolen": 10**6, "ticks": 10**7},
    ],
)
def test_what_does_not(figures: dict[str, Any]) -> None:
    """A faster clock, a busier machine, a figure that cannot be read any more."""
    assert changes(looks(**figures)) == []


def test_a_clock_that_jumps_about_is_not_one_that_falls() -> None:
    rng = np.random.default_rng(3)
    for count in (9, 30):
        fell = [
            bool(changes([replace(CALM, at=float(i), fastest_khz=int(rng.choice([2_000_000, 3_000_000])))
                          for i in range(count)]))
            for _ in range(100)
        ]  # fmt: skip
        assert np.mean(fell) <= 0.03


def test_throttling_is_counted_in_time_where_the_kernel_does() -> None:
    first = replace(CALM, throttle_ms={"cpu0 core": 100, "cpu1 core": 7}, throttle_events={"cpu0 core": 5})
    little = replace(first, at=10.0, throttle_ms={"cpu0 core": 200, "cpu1 core": 7}, throttle_events={"cpu0 core": 9})
    much = replace(little, throttle_ms={"cpu0 core": 100, "cpu1 core": 1007})
    assert changes([first, little]) == []
    assert changes([first, much]) == ["heat held a processor down for 10% of the time"]
    events = [replace(look, throttle_ms={}) for look in (first, little)]
    assert changes(events) == ["heat throttled a processor 4 times"]
    assert changes([events[0], events[0]]) == []


def cards(**last: Any) -> list[Conditions]:
    card = GpuState("NVIDIA L4", 1980, 6251, 60, 92, 72.0, 0x4, 0)
    return [replace(CALM, at=float(i), gpu=replace(card, **(last if i >= 8 else {}))) for i in range(12)]


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"sm_mhz": 1200}, "the GPU's clock fell from 1.98e+03 to 1.2e+03 MHz"),
        ({"power_limit_w": 40.0}, "the GPU's power limit changed from 72.0 to 40.0"),
        ({"slowed_ns": 10**9}, "heat held the GPU down for 9% of the time"),
        ({"reasons": 0x44}, "the GPU ran under a hardware thermal slowdown in 4 of 12 looks"),
    ],
)
def test_what_counts_as_another_card(figures: dict[str, Any], words: str) -> None:
    assert changes(cards(**figures)) == [words]


@pytest.mark.parametrize(
    "figures", [{}, {"reasons": 0x7}, {"reasons": None}, {"temperature_c": 85}, {"slowed_ns": 10**6}]
)
def test_a_power_cap_an_idle_card_and_warmth_are_no_fault(figures: dict[str, Any]) -> None:
    assert changes(cards(**figures)) == []


def test_one_look_at_a_slowdown_is_none() -> None:
    several = cards()
    assert several[5].gpu is not None
    several[5] = replace(several[5], gpu=replace(several[5].gpu, reasons=0x8))
    assert changes(several) == []


def judged(ratios: Sequence[float], said: str = "the power mode changed", **plan: Any) -> Comparison:
    return under(decide("x", pairs_of(ratios), Plan(**plan)), said, "")


def test_another_machine_makes_a_close_verdict_inconclusive() -> None:
    noisy = np.exp(np.random.default_rng(4).normal(0, 0.04, 40))
    assert decide("x", pairs_of(noisy), Plan()).verdict is Verdict.PASS
    found = judged(noisy)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "the power mode changed: let the machine settle" in judge_latency(found).reason
    assert judged(noisy, "").verdict is Verdict.PASS


@pytest.mark.parametrize(("ratio", "verdict"), [(0.5, "pass"), (1.5, "regress")])
def test_what_every_sitting_says_stands(ratio: float, verdict: str) -> None:
    found = judged(ratio * np.exp(np.random.default_rng(5).normal(0, 0.02, 12)))
    assert found.verdict == verdict
    assert "the power mode changed, and yet every sitting agrees" in judge_latency(found).reason
    assert found.to_json()["doubt"] == "the power mode changed"


def test_without_a_limit_another_machine_judges_nothing() -> None:
    assert judged([1.0] * 9, limit=None).verdict is Verdict.PASS


def measured(watch: Watch, noise: float, seconds: float = 3.0) -> Comparison:
    """Two equal models on a clock of work, three blocks of 10 ms each a sitting."""
    rng, clock = np.random.default_rng(6), WorkClock()

    def probe(clock: WorkClock) -> dict[str, Timing]:
        took = 0.01 * math.exp(rng.normal(0, noise))
        clock.now += took
        return {"inference": Timing(took, took)}

    @contextmanager
    def sit(order: tuple[int, ...]) -> Iterator[Sides]:
        yield {"1x8": (probe, probe)}  # type: ignore[dict-item]

    return compare(sit, Plan(seconds=seconds), clock=clock, watch=watch)[0]


class Recorded:
    """Conditions that are read one after the other, the last for ever; remembers how it was asked."""

    def __init__(self, *looks: Conditions) -> None:
        self.looks = list(looks)
        self.asked: list[dict[str, Any]] = []

    def __call__(self, **how: Any) -> Conditions:
        self.asked.append(how)
        return self.looks[min(len(self.asked), len(self.looks)) - 1]


def test_there_is_a_look_before_after_and_after_each_sitting() -> None:
    read = Recorded(CALM)
    found = measured(Watch(gpu=1, read=read), noise=0.02)
    assert len(read.asked) == found.pairs + 2
    assert {how["gpu"] for how in read.asked} == {1}
    whole = [how["mode"] for how in read.asked]
    assert (whole[0], whole[-1], any(whole[1:-1])) == (True, True, False), "a command is started twice, no more"
    assert found.verdict is Verdict.PASS
    assert (found.doubt, found.busy) == ("", "")


def test_a_mode_that_is_changed_meanwhile_is_found() -> None:
    read = Recorded(CALM, replace(CALM, at=5.0, power_mode="MAXN"))
    found = measured(Watch(read=read), noise=0.05)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "from 15W to MAXN" in judge_latency(found).reason


@pytest.mark.parametrize(("seconds", "noise"), [(0.05, 0.01), (3.0, 0.9)])
def test_a_machine_too_busy_is_inconclusive_and_named(seconds: float, noise: float) -> None:
    """Too few sittings, and too wide an interval."""
    busy = replace(CALM, at=100.0, load=9.5)
    found = measured(Watch(read=Recorded(CALM, busy)), noise, seconds)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "load 9.5 on 2 processors" in judge_latency(found).reason
    assert found.to_json()["busy"] == "load 9.5 on 2 processors"


def test_a_busy_machine_that_can_be_judged_is_judged() -> None:
    """Load is no reason by itself."""
    busy = replace(CALM, at=100.0, load=9.5, waited_us=10**8, stolen=0, ticks=100)
    assert measured(Watch(read=Recorded(replace(CALM, waited_us=0), busy)), noise=0.02).verdict is Verdict.PASS


def test_looking_at_this_machine_raises_nothing() -> None:
    watch = Watch()
    watch.look()
    watch.look(whole=True)
    assert isinstance(watch.changes + watch.busy, str)
    assert len(watch.looks) == 3
