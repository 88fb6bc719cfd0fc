"""bench: one bundle and several, encoders and decoders, and memory in a process of its own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planish.errors import InconclusiveError, InputError
from planish.gate import bench
from planish.gate.benchmark import SITTINGS, unique_names
from planish.gate.memory import high_water_mark, peak_memory

MakeBundle = Callable[..., Path]


def test_one_encoder(make_bundle: MakeBundle, step_clock: Any) -> None:
    report = bench(make_bundle("one"), memory=False, shapes=[(1, 8), (4, 16)], seconds=1, clock=step_clock)
    assert [(m.shape, m.phase) for m in report.measurements] == [("1x8", "inference"), ("4x16", "inference")]
    small, large = report.measurements
    assert small.p50 == pytest.approx(small.p95) == pytest.approx(2e-3)  # the clock's step, twice in a block
    assert large.rows_per_second == pytest.approx(4 / large.p50)
    assert large.tokens_per_second == pytest.approx(64 / large.p50)
    assert report.ratios == ()
    assert report.bundles[0]["bytes"] > 1000


def test_several_decoders_take_turns(make_bundle: MakeBundle, step_clock: Any) -> None:
    paths = [make_bundle(name, "text-generation") for name in ("first", "second", "third")]
    report = bench(paths, memory=False, seconds=0.5, clock=step_clock)
    assert [(m.bundle, m.phase) for m in report.measurements] == [
        (name, phase) for name in ("first", "second", "third") for phase in ("prefill", "decode")
    ]
    assert len({m.rounds for m in report.measurements}) == 1
    assert {ratio.pairs for ratio in report.ratios} == {SITTINGS}
    assert [ratio.name for ratio in report.ratios] == [
        f"{name} / first 1x128 {phase}" for name in ("second", "third") for phase in ("prefill", "decode")
    ]
    assert all(ratio.ratio.estimate == pytest.approx(1) for ratio in report.ratios)
    prefill, decode = report.measurements[:2]
    assert prefill.tokens_per_second == pytest.approx(128 / prefill.p50)
    assert decode.tokens_per_second == pytest.approx(1 / decode.p50)


def test_the_report_is_json_and_markdown(make_bundle: MakeBundle, step_clock: Any) -> None:
    bundle = make_bundle("one")
    report = bench([bundle, bundle], memory=False, seconds=0.2, clock=step_clock)
    back = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert [one["name"] for one in back["bundles"]] == ["one", "one (2)"]
    text = report.to_markdown()
    assert "one (2) / one" in text
    assert back["environment"]["before"]["onnxruntime"]


def test_real_time_stops_and_reports_progress(make_bundle: MakeBundle) -> None:
    seen: list[tuple[str, int, int]] = []
    bundle = make_bundle("one")
    report = bench(bundle, memory=False, shapes=[(1, 8)], seconds=0.05, progress=lambda *args: seen.append(args))
    assert seen == [("bench", 1, 1)]
    assert 0 < report.measurements[0].p50 <= report.measurements[0].p95


def test_peak_memory_is_that_of_a_fresh_process(make_bundle: MakeBundle) -> None:
    ballast = b"x" * 300_000_000  # in this process, so it must not count
    peak = peak_memory(make_bundle("one"), threads=1)["peak_rss_bytes"]
    assert 20_000_000 < peak < 300_000_000 < high_water_mark()
    del ballast


def test_a_process_that_dies_is_inconclusive(tmp_path: Path) -> None:
    with pytest.raises(InconclusiveError, match="BundleError"):
        peak_memory(tmp_path)
    with pytest.raises(InconclusiveError):
        peak_memory(tmp_path / "none")


def test_bad_requests_are_refused(make_bundle: MakeBundle) -> None:
    encoder, decoder = make_bundle("encoder"), make_bundle("decoder", "text-generation")
    with pytest.raises(InputError, match="at least one bundle"):
        bench([])
    with pytest.raises(InputError, match="side by side"):
        bench([encoder, decoder])
    for shape in ((0, 8), (1, 0), (1, 33)):
        with pytest.raises(InputError, match="at most 32 tokens"):
            bench(encoder, shapes=[shape])


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1, 0, None, "3", True])
def test_seconds_are_a_number_above_0(make_bundle: MakeBundle, seconds: Any) -> None:
    with pytest.raises(InputError, match="seconds as a finite number above 0"):
        bench(make_bundle("one"), memory=False, seconds=seconds)


def test_names_stay_apart() -> None:
    assert unique_names(["a/x", "x", "b/x"]) == ["x", "x (2)", "x (3)"]
