"""The gate and bench on engines of the fake TensorRT: their own clock is judged, and beside it the wall clock."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planish.gate import Limits, bench, gate
from planish.gate.clock import judged_on
from planish.runtime import load
from tests.runtime import fake_tensorrt
from tests.runtime.engine_bundle import add_fake_engine, encoder_bundle
from tests.runtime.fake_cuda import FakeCudart

TEXTS = ["the whale", "call me ishmael, some years ago", "never mind how long", "a white whale in the sea"]


@pytest.fixture(scope="module")
def embedder(tiny: Callable[..., Any]) -> Any:
    return tiny("feature-extraction", 6, pooling={"mode": "mean", "normalize": True}, profile="rtx-4090")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCudart:
    made = FakeCudart()
    fake_tensorrt.install(monkeypatch, made)
    return made


@pytest.fixture
def bundles(embedder: Any, tmp_path: Path) -> list[Path]:
    first = encoder_bundle(embedder.path, tmp_path / "old")
    add_fake_engine(first)
    second = tmp_path / "new"
    shutil.copytree(first, second)
    return [second, first]


def test_which_clock_speaks(bundles: list[Path], cuda: FakeCudart) -> None:
    with load(bundles[0]) as engine, load(bundles[0], "cpu") as session:
        assert judged_on([engine, engine]) == "device"
        assert judged_on([session]) == "cpu"
        assert judged_on([engine, session]) == "wall"


def test_engines_are_judged_by_their_own_clock(bundles: list[Path], cuda: FakeCudart) -> None:
    limits = Limits(max_latency_ratio=100.0, max_wall_ratio=100.0)
    report = gate(*bundles, texts=TEXTS, limits=limits, shapes=[(2, 16)], seconds=2)
    assert [(found.name, found.judged) for found in report.latency] == [
        ("2x16 inference", "device"), ("2x16 wall inference", "wall"),
    ]  # fmt: skip
    assert report.environment["before"]["judged"] == "device"
    device, wall = report.latency
    assert 0.02 < device.ratio.estimate < 50
    assert 0 < device.median_seconds["candidate_device"] < device.median_seconds["candidate_wall"]
    assert wall.noise is not None
    assert any("GPU compute time" in check.reason for check in report.checks)
    assert not cuda.live


def test_bench_compares_engines_by_their_own_clock(bundles: list[Path], cuda: FakeCudart) -> None:
    report = bench(bundles, shapes=[(1, 16)], seconds=0.5, memory=False)
    assert [ratio.judged for ratio in report.ratios] == ["device"]
    assert report.ratios[0].pairs == 6
    assert report.ratios[0].lost == 0
    assert not cuda.live
