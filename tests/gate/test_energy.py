"""Energy and memory budgets: counters that wrap, meters that are not here, and what a limit makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.errors import InconclusiveError, InputError
from planish.gate import Limits, budgets, gate
from planish.gate.budgets import judge_energy, whole_answer
from planish.gate.energy import JtopMeter, NvmlMeter, RaplMeter, joules_per_inference, open_meter
from planish.gate.junit import junit
from planish.gate.statistics import Interval
from planish.gate.workloads import Shape
from planish.runtime import load
from tests.gate.fake_nvml import FakeNvml

MakeBundle = Callable[..., Path]
TEXTS = ["a good film", "the whale is bad", "not very fine", "the sea the ship"] * 30


def domain(root: Path, name: str, kind: str, energy: int, limit: int = 1000) -> Path:
    path = root / "sys/class/powercap" / name
    path.mkdir(parents=True)
    for file, value in (("name", kind), ("energy_uj", energy), ("max_energy_range_uj", limit)):
        (path / file).write_text(f"{value}\n", encoding="ascii")
    return path


def test_packages_and_memory_beside_them_are_counted_once(tmp_path: Path) -> None:
    counted = [domain(tmp_path, "intel-rapl:0", "package-0", 100), domain(tmp_path, "intel-rapl:1", "package-1", 100)]
    counted.append(domain(tmp_path, "intel-rapl:0:1", "dram", 100))
    others = [domain(tmp_path, "intel-rapl:0:0", "core", 100), domain(tmp_path, "intel-rapl:2", "psys", 100)]
    others.append(domain(tmp_path, "intel-rapl-mmio:0", "package-0", 100))
    meter = RaplMeter(tmp_path)
    for number, path in enumerate([*counted, *others]):
        (path / "energy_uj").write_text(str(100 + 10**number), encoding="ascii")
    assert meter.joules() == pytest.approx(111e-6)
    assert meter.joules() == pytest.approx(111e-6), "it grows no more"


@given(st.lists(st.integers(0, 999), min_size=1, max_size=20))
def test_a_counter_that_starts_over_loses_nothing(steps: list[int]) -> None:
    """Against a counter that never wraps: at most one turn between two looks."""

    class Wrapping(RaplMeter):
        def __init__(self) -> None:
            self.domains, self.last, self.total = [Path("a")], {Path("a"): 0}, 0

        def read(self, domain: Path) -> int:
            return true % 1000

        def limit(self, domain: Path) -> int:
            return 1000

    true, meter = 0, Wrapping()
    for step in steps:
        true += step
        assert meter.joules() == pytest.approx(true / 1e6)


def test_a_machine_without_a_counter_cannot_measure(tmp_path: Path) -> None:
    with pytest.raises(InconclusiveError, match="RAPL"):
        RaplMeter(tmp_path)
    domain(tmp_path, "intel-rapl:0", "psys", 100)
    with pytest.raises(InconclusiveError, match="RAPL"):
        RaplMeter(tmp_path)


def test_a_counter_that_may_not_be_read_cannot_measure(tmp_path: Path) -> None:
    """A folder refuses everybody; a file's mode would not stop root."""
    path = domain(tmp_path, "intel-rapl:0", "package-0", 100)
    (path / "energy_uj").unlink()
    (path / "energy_uj").mkdir()
    with pytest.raises(InconclusiveError, match=r"permission denied.*chmod a\+r"):
        RaplMeter(tmp_path)


def test_a_card_counts_millijoules() -> None:
    nvml = FakeNvml(("NVIDIA L4",) * 2, energy=[5_000, 7_500, 9_000])
    nvml.nvmlInit()
    meter = NvmlMeter(nvml, 1)
    assert (meter.joules(), meter.joules()) == (7.5, 9.0)
    assert set(nvml.asked) == {1}


def test_a_card_without_a_counter_cannot_measure() -> None:
    with pytest.raises(InconclusiveError, match="Not Supported"), open_meter(0, nvml=FakeNvml()):
        pass


class Board:
    """jtop's service on a board that draws what it is told to, milliwatts; None = it has no sensor."""

    def __init__(self, *milliwatts: float | None, starts: bool = True) -> None:
        self.milliwatts, self.starts, self.closed = list(milliwatts), starts, False

    def jtop(self, interval: float) -> Board:
        assert interval == 0.5
        return self

    def __enter__(self) -> Board:
        if not self.starts:
            raise OSError("the service is not running")
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    @property
    def power(self) -> dict[str, Any]:
        value = self.milliwatts.pop(0) if len(self.milliwatts) > 1 else self.milliwatts[0]
        return {"rail": {}} if value is None else {"tot": {"power": value, "avg": 1}}


def test_power_is_integrated_by_trapezoids() -> None:
    times = [0.0, 1.0, 3.0, 3.5]
    milliwatts = [4000.0, 6000.0, 10000.0, 2000.0]
    clock = iter(times)
    meter = JtopMeter(Board(*milliwatts), clock=lambda: next(clock))
    found = [meter.joules() for _ in times[1:]]
    watts = np.array(milliwatts) / 1000
    assert found == pytest.approx(np.cumsum((watts[1:] + watts[:-1]) / 2 * np.diff(times)))


def test_a_board_is_looked_at_while_the_model_runs() -> None:
    """Its own thread looks: the joules are there before anybody asks."""
    board = Board(5000.0)
    with open_meter(0, nvml=FakeNvml(), jtop=board) as meter:
        assert isinstance(meter, JtopMeter)
        begun = meter.at
        while meter.at == begun:
            pass
        assert meter.total == pytest.approx(5.0 * (meter.at - begun), rel=0.2)
    assert board.closed


@pytest.mark.parametrize(("board", "words"), [(Board(1.0, starts=False), "not running"), (Board(None), "tot")])
def test_a_board_that_does_not_tell_cannot_measure(tmp_path: Path, board: Board, words: str) -> None:
    with pytest.raises(InconclusiveError, match=words), open_meter(None, root=tmp_path, jtop=board):
        pass


def test_the_processors_counter_goes_before_the_board(tmp_path: Path) -> None:
    domain(tmp_path, "intel-rapl:0", "package-0", 100)
    with open_meter(None, root=tmp_path, jtop=Board(1.0, starts=False)) as meter:
        assert isinstance(meter, RaplMeter)


class Steady:
    """A meter and a clock that work moves: so many joules a second, and a machine that draws more now and then."""

    name = "a steady machine"
    least_seconds = 0.5

    def __init__(self, watts: float = 10.0, seconds: float = 0.01, extra: tuple[float, ...] = ()) -> None:
        self.watts, self.seconds, self.extra = watts, seconds, list(extra)
        self.now = self.drawn = 0.0
        self.runs = 0

    def run(self) -> None:
        self.now += self.seconds
        self.drawn += self.watts * self.seconds
        self.runs += 1

    def clock(self) -> float:
        return self.now

    def joules(self) -> float:
        self.drawn += self.extra.pop(0) if self.extra else 0.0
        return self.drawn


def test_joules_an_inference() -> None:
    machine = Steady(extra=(0, 0.5, 0, 5.0))
    found = joules_per_inference(machine.run, machine, machine.clock)
    assert machine.runs == 2 + 6 * 50, "blocks of half a second"
    assert (found.estimate, found.low) == pytest.approx((0.1, 0.1))
    assert found.high == pytest.approx(0.2), "two of six blocks saw others at work"


@pytest.mark.parametrize("watts", [0.0, -1.0])
def test_a_meter_that_stands_still_or_runs_back_measures_nothing(watts: float) -> None:
    machine = Steady(watts)
    with pytest.raises(InconclusiveError, match="meter that moves"):
        joules_per_inference(machine.run, machine, machine.clock)


def test_six_blocks_hold_the_median_in_97_of_100_cases() -> None:
    """However skewed: the range of six misses it when all lie on one side, 2 in 64."""
    rng = np.random.default_rng(0)
    draws = rng.exponential(1.0, (20_000, 6))
    held = (draws.min(axis=1) <= np.log(2)) & (draws.max(axis=1) >= np.log(2))
    assert held.mean() == pytest.approx(1 - 2 / 64, abs=0.005)


@pytest.mark.parametrize(
    ("limit", "verdict", "required"),
    [(0.3, "pass", True), (0.1, "regress", True), (0.2, "inconclusive", True), (None, "pass", False)],
)
def test_a_limit_is_kept_by_every_block_or_by_none(limit: float | None, verdict: str, required: bool) -> None:
    check = judge_energy(Interval(0.2, 0.15, 0.25, 0.97, "range"), limit, "1x8, RAPL")
    assert (check.verdict, check.required, check.unit) == (verdict, required, "J")
    assert "0.2 J an inference (0.15 to 0.25; 1x8, RAPL)" in check.reason


@contextmanager
def steady_meter(card: int | None) -> Iterator[Any]:
    """Draws a joule whenever it is asked."""
    assert card is None, "the toy runs on the CPU"
    drawn = iter(range(1, 100))
    yield SimpleNamespace(name="a steady machine", least_seconds=0.001, joules=lambda: float(next(drawn)))


@pytest.mark.parametrize(("limit", "verdict"), [(2.0, "pass"), (1e-9, "regress")])
def test_energy_is_judged_in_the_gate(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, limit: float, verdict: str
) -> None:
    monkeypatch.setattr(budgets, "open_meter", steady_meter)
    limits = Limits(max_energy_joules=limit)
    report = gate(make_bundle("new"), make_bundle("old"), texts=TEXTS, latency=False, limits=limits)
    assert report.verdict == verdict
    (check,) = (check for check in report.checks if check.name == "energy")
    assert "1x32, a steady machine" in check.reason
    assert "| energy | " + verdict in report.to_markdown()


def test_energy_that_cannot_be_measured_is_inconclusive_if_limited(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(budgets, "open_meter", lambda card: open_meter(card, root=tmp_path))
    new, old = make_bundle("new"), make_bundle("old")
    report = gate(new, old, texts=TEXTS, latency=False, limits=Limits(max_energy_joules=1.0))
    assert (report.verdict, report.exit_code) == ("inconclusive", 3)
    assert "energy could not be measured" in report.reasons[0]
    json.dumps(report.to_json(), allow_nan=False)
    assert "not available" in report.to_markdown()
    assert 'errors="1"' in junit(report)
    asked = gate(new, old, texts=TEXTS, latency=False, energy=True)
    assert asked.verdict == "pass", "asked for without a limit: told, not judged"
    assert any("could not be measured" in check.reason for check in asked.checks)


def test_peak_memory_is_measured_only_if_asked_for(make_bundle: MakeBundle) -> None:
    new, old = make_bundle("new"), make_bundle("old")
    names = [check.name for check in gate(new, old, texts=TEXTS, latency=False).checks]
    assert not {"peak memory", "energy"} & set(names)
    report = gate(new, old, texts=TEXTS, latency=False, limits=Limits(max_peak_rss_bytes=1_000_000))
    assert report.verdict == "regress", "no interpreter fits into a megabyte"
    (check,) = (check for check in report.checks if check.name == "peak memory")
    assert 10_000_000 < check.value < 1_000_000_000
    assert "at most 1,000,000" in check.reason


def test_memory_that_cannot_be_measured_is_inconclusive(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> dict[str, Any]:
        raise InconclusiveError("a process to measure memory in", "none", "try again")

    monkeypatch.setattr(budgets, "peak_memory", fails)
    limits = Limits(max_peak_rss_bytes=10**12)
    report = gate(make_bundle("new"), make_bundle("old"), texts=TEXTS, latency=False, limits=limits)
    assert report.verdict == "inconclusive"
    assert "peak memory could not be measured" in report.reasons[0]


def test_an_inference_of_a_decoder_is_a_prompt_and_its_steps(make_bundle: MakeBundle) -> None:
    calls: list[str] = []
    with load(make_bundle("b", "text-generation")) as model:

        def counted(*arguments: Any, **how: Any) -> Any:
            run = model.decoder.start(*arguments, **how)
            for name in ("prefill", "step", "close"):
                method = getattr(run, name)
                setattr(run, name, lambda *a, method=method, name=name: (calls.append(name), method(*a))[1])
            return run

        stand_in: Any = SimpleNamespace(manifest=model.manifest, decoder=SimpleNamespace(start=counted))
        whole_answer(stand_in, Shape(2, 8))()
    assert calls == ["prefill", *["step"] * 16, "close"]


@pytest.mark.parametrize("name", ["max_peak_rss_bytes", "max_energy_joules"])
@pytest.mark.parametrize("value", [-1, 0, float("nan"), float("inf"), "a lot"])
def test_limits_nothing_could_keep_are_refused(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        Limits(**{name: value})  # type: ignore[arg-type]
