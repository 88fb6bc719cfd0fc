"""The latency rule on simulated time: few false alarms, true slowdowns found, and mutations of the rule noticed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from planish.gate import slowdown
from planish.gate.checks import Verdict
from planish.gate.clock import Timing
from planish.gate.latency import Probe, Sides, Sitting, block, block_length, compare
from planish.gate.slowdown import Comparison, Pairs, Plan, bounds, decide, judge_latency


class Machine:
    """Simulated work on a busy machine: a few percent of noise, now and then a disturbance, and heat that slows all."""

    def __init__(self, seed: int, noise: float = 0.03, drift: float = 0.0) -> None:
        self.rng = np.random.default_rng(seed)
        self.noise, self.drift = noise, drift
        self.now = self.used = 0.0

    def cpu(self) -> float:
        return self.used

    def wall(self) -> float:
        return self.now

    def device(self) -> float:
        return 0.0

    def work(self, seconds: float) -> Callable[[], None]:
        def run() -> None:
            took = seconds * math.exp(self.rng.normal(0, self.noise)) * (1 + self.drift * self.now)
            took *= 1 + (self.rng.exponential(0.2) if self.rng.random() < 0.1 else 0)
            self.used += took
            self.now += took * (1 + self.rng.exponential(0.5))  # neighbours steal the wall clock

        return run


def sitting_of(candidate: Probe, baseline: Probe) -> Sitting:
    @contextmanager
    def sit(order: tuple[int, ...]) -> Iterator[Sides]:
        yield {"1x8": (candidate, baseline)}

    return sit


def measure(slower: float, seed: int, noise: float = 0.03, **changes: float) -> Comparison:
    machine = Machine(seed, noise, drift=changes.pop("drift", 0.0))
    luck = changes.pop("luck", 0.0)
    plan = replace(Plan(seconds=20.0, seed=seed), **changes)

    @contextmanager
    def sit(order: tuple[int, ...]) -> Iterator[Sides]:
        """Sessions that are faster or slower for as long as they live, by where their memory came to lie."""
        new, old = 0.01 * np.exp(machine.rng.normal(0, luck, 2))
        yield {"1x8": (block(machine.work(slower * new), 1), block(machine.work(old), 1))}

    return compare(sit, plan, clock=machine)[0]


def verdicts(slower: float, rounds: int = 60, **changes: float) -> Counter[str]:
    return Counter(str(measure(slower, seed, **changes).verdict) for seed in range(rounds))


def test_equal_models_pass_and_never_regress() -> None:
    found = verdicts(1.0, rounds=150)
    assert found["regress"] <= 1
    assert found["pass"] >= 140


def test_a_true_ten_percent_is_found() -> None:
    assert verdicts(1.10)["regress"] >= 58


def test_a_true_five_percent_does_not_pass() -> None:
    found = verdicts(1.05, rounds=100)
    assert found["pass"] <= 5
    assert found["regress"] >= 80


def test_a_faster_model_passes_at_the_first_look() -> None:
    result = measure(0.5, 0)
    assert result.verdict == "pass"
    assert result.pairs == slowdown.FIRST_LOOK
    assert result.ratio.low < 0.5 < result.ratio.high or abs(result.ratio.estimate - 0.5) < 0.02


def test_heat_that_slows_both_does_not_alarm() -> None:
    """The machine slows fivefold while measuring: one block after the other would call it a regress."""
    found = verdicts(1.0, drift=0.2)
    assert found["regress"] <= 1
    assert found["pass"] >= 50


def test_a_required_speedup_is_judged_at_its_limit() -> None:
    assert measure(0.40, 1, limit=0.5).verdict == "pass"
    assert measure(0.60, 1, limit=0.5).verdict == "regress"
    assert verdicts(0.5, limit=0.5, rounds=40)["pass"] <= 4  # at the limit itself nothing is proven


def test_without_a_limit_nothing_is_judged() -> None:
    result = measure(1.5, 0, limit=None)  # type: ignore[arg-type]
    assert result.verdict == "pass"
    assert not judge_latency(result).required


def test_too_little_time_is_inconclusive() -> None:
    result = measure(1.2, 0, seconds=0.08)
    assert result.verdict == "inconclusive"
    assert "give more time" in judge_latency(result).reason


def test_a_very_noisy_machine_is_inconclusive_or_right() -> None:
    found = verdicts(1.0, noise=0.6, seconds=4.0)
    assert found["regress"] <= 2
    assert found["inconclusive"] >= 30


def test_a_difference_below_the_floor_never_regresses() -> None:
    assert measure(1.3, 0, floor_seconds=0.02).verdict == "pass"
    assert measure(1.3, 0, floor_seconds=0.0001).verdict == "regress"


def test_a_clock_that_stands_still_is_inconclusive() -> None:
    pairs = Pairs([Timing(0.0, 1.0)] * 30, [Timing(0.0, 1.0)] * 30)
    result = decide("x", pairs, Plan())
    assert (result.verdict, result.lost, result.pairs) == (Verdict.INCONCLUSIVE, 30, 30)
    assert "stood still" in judge_latency(result).reason
    assert result.to_json()["ratio"]["estimate"] is None


def test_a_clock_that_jumps_back_now_and_then_costs_pairs_only() -> None:
    good = [Timing(1.0 + 0.001 * i, 1.0) for i in range(60)]
    jumped = [Timing(-5.0, 1.0), *good[1:]]
    result = decide("x", Pairs(jumped, good), Plan())
    assert (result.verdict, result.lost) == (Verdict.PASS, 1)


def test_the_wall_clock_is_judged_when_asked() -> None:
    slow_wall = Pairs([Timing(1.0, 1.5 + 0.001 * i) for i in range(40)], [Timing(1.0, 1.0)] * 40)
    assert decide("x", slow_wall, Plan()).verdict == "pass"
    assert decide("x", slow_wall, Plan(judged="wall")).verdict == "regress"
    assert decide("x", slow_wall, Plan()).wall_ratio.estimate > 1.5  # reported all the same


def test_on_the_wall_clock_what_two_sessions_of_one_bundle_differ_by_is_no_slowdown() -> None:
    rng = np.random.default_rng(3)

    def timings(slower: float) -> list[Timing]:
        return [Timing(1.0, slower * math.exp(rng.normal(0, 0.01))) for _ in range(30)]

    new, old = timings(1.06), timings(1.0)
    plan = Plan(judged="wall", limit=1.05)
    quiet = decide("x", Pairs(new, old, timings(1.0)), plan)
    assert quiet.verdict is Verdict.REGRESS
    assert quiet.noise is not None
    assert quiet.noise.low < 1 < quiet.noise.high < 1.01
    assert "the baseline against itself: 0.99" in judge_latency(quiet).reason
    for again in (timings(1.08), timings(1 / 1.08)):  # whichever way: the clock cannot tell 6 % from nothing
        assert decide("x", Pairs(new, old, again), plan).verdict is Verdict.INCONCLUSIVE
    assert decide("x", Pairs(timings(1.2), old, timings(1.08)), plan).verdict is Verdict.REGRESS  # beyond the noise
    assert decide("x", Pairs(timings(1.0), old, timings(1.08)), plan).verdict is Verdict.PASS
    assert decide("x", Pairs(new, old, timings(1.08)), replace(plan, judged="cpu")).noise is None


def test_a_third_session_is_opened_only_where_the_wall_clock_is_judged() -> None:
    assert [plan.sides for plan in (Plan(), Plan(wall_limit=1.1), Plan(judged="wall"))] == [2, 3, 3]
    assert Plan(judged="wall", limit=None).sides == 2
    assert list(Plan(wall_limit=1.1).judgements) == ["", "wall"]
    assert Plan(wall_limit=1.1).judgements["wall"].limit == 1.1


def three_sides(slower: float, seed: int, **changes: float) -> list[Comparison]:
    """Sessions of three, each faster or slower for as long as it lives, on the wall clock, too."""
    machine = Machine(seed)
    orders: set[tuple[int, ...]] = set()

    @contextmanager
    def sit(order: tuple[int, ...]) -> Iterator[Sides]:
        orders.add(order)
        times = 0.01 * np.exp(machine.rng.normal(0, 0.02, 3)) * np.array([slower, 1.0, 1.0])
        yield {"1x8": tuple(block(machine.work(float(time)), 1) for time in times)}

    found = compare(sit, replace(Plan(seconds=20.0, seed=seed), **changes), clock=machine)
    assert len(orders) > 3  # of six
    return found


def test_false_alarms_and_power_on_the_wall_clock() -> None:
    plan = {"wall_limit": 1.05}
    equal = [three_sides(1.0, seed, **plan) for seed in range(40)]
    assert all([found.name for found in pair] == ["1x8 inference", "1x8 wall inference"] for pair in equal)
    assert all([found.judged for found in pair] == ["cpu", "wall"] for pair in equal)
    assert sum(pair[1].verdict == "regress" for pair in equal) <= 1
    slow = [three_sides(1.5, seed, **plan)[1].verdict for seed in range(20)]
    assert slow.count(Verdict.REGRESS) >= 18
    assert Verdict.PASS not in slow


@pytest.mark.parametrize(
    ("limit", "allowed", "suspect"), [(1.05, 1.05, 1.03), (1.5, 1.5, 1.48), (1.0, 1.0, 1.0), (0.5, 0.5, 0.5)]
)
def test_bounds(limit: float, allowed: float, suspect: float) -> None:
    assert bounds(limit, 1.0, 0.0) == pytest.approx((allowed, suspect))


@pytest.mark.parametrize(
    ("name", "value", "slower"),
    [
        ("ALPHA", 0.0, 1.10),  # never significant: nothing is ever found
        ("LEAST_PAIRS", 10**6, 1.0),  # never enough: nothing ever passes
        ("FINAL", 0.02, 1.05),  # an interval of a hair's width: true slowdowns slip through
    ],
)
def test_a_broken_rule_is_noticed(monkeypatch: pytest.MonkeyPatch, name: str, value: float, slower: float) -> None:
    """Each mutation breaks one of the promises tested above."""
    monkeypatch.setattr(slowdown, name, value)
    monkeypatch.setattr(slowdown, "CLEAR", 0.0 if name == "FINAL" else slowdown.CLEAR)
    found = verdicts(slower)
    if slower == 1.0:
        assert found["pass"] < 50
    elif slower == 1.10:
        assert found["regress"] < 58
    else:
        assert found["pass"] > 3


def pairs_slower_by(*percent: float) -> Pairs:
    return Pairs([Timing(1 + each / 100, 1.0) for each in percent], [Timing(1.0, 1.0)] * len(percent))


def test_comparisons_of_one_run_share_the_level() -> None:
    """Seven sittings that all say slower have p = 1/128: enough for one comparison, not for one of two."""
    pairs = pairs_slower_by(8, 9, 10, 11, 12, 13, 14)
    alone, one_of_two = (decide("x", pairs, Plan(among=among)) for among in (1, 2))
    assert (alone.verdict, alone.level) == ("regress", 0.01)
    assert (one_of_two.verdict, one_of_two.level) == ("inconclusive", 0.005)
    assert alone.p_slower == one_of_two.p_slower == pytest.approx(1 / 128)
    assert one_of_two.to_json()["level"] == 0.005


def test_measuring_goes_on_until_the_shared_level_is_reached() -> None:
    clear = pairs_slower_by(*np.linspace(9, 11, slowdown.FIRST_LOOK))
    assert slowdown.is_clear(clear, Plan(among=2))
    assert not slowdown.is_clear(clear, Plan(among=6)), "p = 1/512 is no regress yet"
    assert decide("x", pairs_slower_by(*np.linspace(9, 11, 10)), Plan(among=6)).verdict == "regress"


def test_all_that_is_judged_shares_and_nothing_else() -> None:
    machine = Machine(0)

    @contextmanager
    def sit(order: tuple[int, ...]) -> Iterator[Sides]:
        sides = tuple(block(machine.work(0.01), 1) for _ in order)
        yield {"1x8": sides, "1x16": sides}

    for changes, level in (({}, 0.005), ({"wall_limit": 1.1}, 0.0025), ({"limit": None}, 0.01), ({"among": 5}, 0.002)):
        plan = replace(Plan(seconds=1.0), **changes)  # type: ignore[arg-type]
        assert {found.level for found in compare(sit, plan, clock=machine)} == {level}


def test_runs_of_equal_bundles_alarm_in_one_percent_however_many_shapes_they_have() -> None:
    """Without a limit to hide behind; each comparison at 1 % would alarm in 3.9 % of runs of four."""
    rng = np.random.default_rng(0)
    least = [min(slowdown.p_of(rng.normal(0, 0.03, 12), Plan()) for _ in range(4)) for _ in range(3000)]
    assert 0.005 <= np.mean([p < Plan(among=4).level for p in least]) <= 0.013
    assert np.mean([p < Plan().level for p in least]) > 0.03


def test_the_order_inside_pairs_is_random_and_seeded() -> None:
    def orders(seed: int) -> str:
        machine, seen = Machine(0), []

        def side(name: str) -> Callable[[], None]:
            run = machine.work(0.01)
            return lambda: (seen.append(name), run())[1]  # type: ignore[func-returns-value]

        sit = sitting_of(block(side("c"), 1), block(side("b"), 1))
        compare(sit, Plan(seconds=2.0, seed=seed), clock=machine)
        return "".join(seen)

    assert orders(1) == orders(1) != orders(2)
    assert "ccbb" in orders(1)
    assert "bbcc" in orders(1)


def test_the_luck_of_sessions_is_averaged_over_sittings() -> None:
    """Sessions of one bundle differ by 2 %: pairs inside one sitting would swear to that difference."""
    found = verdicts(1.0, luck=0.02, noise=0.01, rounds=100)
    assert found["regress"] <= 2
    assert found["pass"] >= 90
    assert verdicts(1.10, luck=0.02, noise=0.01)["regress"] >= 57


def test_without_fresh_sessions_luck_would_raise_false_alarms() -> None:
    """The mutation the test above has to notice: one pair of sessions for the whole comparison."""
    alarms = 0
    for seed in range(60):
        machine = Machine(seed, noise=0.01)
        new, old = 0.01 * np.exp(machine.rng.normal(0, 0.03, 2))
        sit = sitting_of(block(machine.work(new), 1), block(machine.work(old), 1))
        alarms += compare(sit, Plan(seconds=20.0, seed=seed), clock=machine)[0].verdict == "regress"
    assert alarms > 4


def test_who_is_opened_first_is_random() -> None:
    orders = []

    @contextmanager
    def sit(order: tuple[int, ...]) -> Iterator[Sides]:
        orders.append(order[0] == 0)
        yield {"x": (block(machine.work(0.01), 1), block(machine.work(0.01), 1))}

    machine = Machine(0, noise=0.5)
    compare(sit, Plan(seconds=3.0, limit=1.0), clock=machine)
    assert 0.2 < np.mean(orders) < 0.8


def test_a_busy_machine_gets_more_time_but_not_without_end() -> None:
    assert measure(1.0, 0, seconds=0.0).pairs == 1  # one sitting is held, however short the time
    assert measure(1.0, 0, seconds=0.7, limit=None).pairs == slowdown.LEAST_PAIRS  # type: ignore[arg-type]


@pytest.mark.parametrize(("among", "pairs"), [(1, 7), (2, 8), (4, 9)])
def test_a_busy_machine_measures_until_a_slowdown_could_be_proved(among: int, pairs: int) -> None:
    """Six sittings of time are given: p is 1/64 at best with those, and even a twofold slowdown stayed open."""
    found = measure(2.0, 0, seconds=1.2, among=among)
    assert (found.verdict, found.pairs) == ("regress", pairs)
    assert measure(1.0, 0, seconds=1.2, among=among).pairs == pairs


def test_too_few_pairs_for_a_proof_are_named() -> None:
    found = decide("1x8 inference", pairs_slower_by(*range(97, 104)), Plan(among=2))
    assert found.verdict == "inconclusive"
    assert "so few pairs cannot prove a slowdown: give more time" in judge_latency(found).reason


def test_blocks_are_long_enough_for_the_clock() -> None:
    machine = Machine(0, noise=0.0)
    assert 10 <= block_length(machine.work(0.001), machine) <= 20
    assert block_length(machine.work(1.0), machine) == 1
    assert block_length(lambda: None, machine) == 1


def test_a_process_that_is_held_up_now_and_then_changes_no_verdict() -> None:
    """In a tenth of the pairs one side's wall clock shows fifty times its work, as when a machine sleeps."""
    rng = np.random.default_rng(7)
    new, old = (list(np.exp(rng.normal(0, 0.01, 60))) for _ in range(2))
    held = [Timing(took, took * (50 if i % 10 == 3 else 1)) for i, took in enumerate(new)]
    again = Pairs(held, [Timing(took, took) for took in old])
    for judged in ("cpu", "wall"):
        found = decide("x", again, Plan(judged=judged))  # type: ignore[arg-type]
        assert (found.verdict, found.lost) == (Verdict.PASS, 0)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_times_that_cannot_be_are_lost_and_many_of_them_decide_nothing(bad: float) -> None:
    good = [Timing(1.0 + 0.001 * i, 1.0) for i in range(40)]
    few, many = ([Timing(bad, 1.0)] * lost + good[lost:] for lost in (2, 3))
    assert decide("x", Pairs(few, good), Plan()).verdict is Verdict.PASS
    found = decide("x", Pairs(good, many), Plan())
    assert (found.verdict, found.lost) == (Verdict.INCONCLUSIVE, 3)
    assert "stood still or ran back in 3 pairs" in judge_latency(found).reason


def test_too_few_pairs_have_no_smallest_slowdown() -> None:
    pairs = Pairs([Timing(1.0, 1.0)] * 3, [Timing(1.0, 1.0)] * 3)
    found = decide("x", pairs, Plan())
    assert (found.detectable_words, found.to_json()["minimum_detectable_ratio"]) == ("unknown", None)
    assert decide("x", Pairs(pairs.candidate * 4, pairs.baseline * 4), Plan()).detectable_words == "+0.0 %"
