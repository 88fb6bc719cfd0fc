"""Conditions of recorded machines, of files as the kernel writes them, of cards that are not here, of this machine."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planish.errors import InconclusiveError
from planish.gate import conditions
from planish.gate.clock import environment
from planish.gate.conditions import Conditions, power_mode, read_conditions
from planish.gate.conditions_told import busy_words, conditions_line, share
from planish.gate.gpu_state import GpuState, handle_of, read_gpu
from tests.gate.fake_nvml import FakeNvml

RECORDED = Path(__file__).parents[1] / "profiles" / "recorded"

LAPTOP = {
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "3400123",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "17",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_total_time_ms": "90",
    "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "30",
    "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_total_time_ms": "120",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "800000",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "performance",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1",
    "sys/class/thermal/thermal_zone0/type": "acpitz",
    "sys/class/thermal/thermal_zone0/temp": "27800",
    "sys/class/thermal/thermal_zone0/trip_point_0_type": "critical",
    "sys/class/thermal/thermal_zone0/trip_point_0_temp": "105000",
    "sys/class/thermal/thermal_zone1/type": "x86_pkg_temp",
    "sys/class/thermal/thermal_zone1/temp": "71000",
    "sys/class/thermal/thermal_zone1/trip_point_0_type": "active",
    "sys/class/thermal/thermal_zone1/trip_point_0_temp": "50000",
    "sys/class/thermal/thermal_zone1/trip_point_1_type": "passive",
    "sys/class/thermal/thermal_zone1/trip_point_1_temp": "80000",
    "sys/class/thermal/thermal_zone1/trip_point_2_type": "passive",
    "sys/class/thermal/thermal_zone1/trip_point_2_temp": "0",
    "sys/class/thermal/thermal_zone2/temp": "-274000",
    "sys/firmware/acpi/platform_profile": "balanced",
    "sys/fs/cgroup/cpu.stat": "usage_usec 9\nnr_periods 3\nnr_throttled 1\nthrottled_usec 4500",
    "proc/loadavg": "1.25 0.80 0.40 3/512 4242",
    "proc/pressure/cpu": "some avg10=1.00 avg60=0.50 avg300=0.10 total=123456\nfull avg10=0.00 total=77",
    "proc/stat": "cpu  100 1 50 800 9 0 10 30 5 0\ncpu0 1 2 3 4 5 6 7 8 9 0\nctxt 12",
}


def machine(root: Path, files: dict[str, str | bytes] = LAPTOP) -> Path:  # type: ignore[assignment]
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else f"{text}\n".encode())
    return root


def test_a_laptop_is_read_from_its_files(tmp_path: Path) -> None:
    found = read_conditions(machine(tmp_path))
    assert (found.cpus, found.fastest_khz, found.slowest_khz) == (2, 3400123, 800000)
    assert found.governors == ("performance", "powersave")
    assert found.temperature_c == 71.0
    assert found.headroom_c == 9.0, "neither the fan's trip point nor one that is off"
    assert found.throttle_ms == {"cpu0 core": 90, "cpu0 package": 120}
    assert found.throttle_events == {"cpu0 core": 17, "cpu0 package": 30}
    assert (found.load, found.waited_us, found.quota_us) == (1.25, 123456, 4500)
    assert (found.stolen, found.ticks) == (30, 1000)
    assert found.power_mode == "balanced"
    assert found.gpu is None


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    found = read_conditions(tmp_path)
    told = {key: value for key, value in found.to_json().items() if key not in ("at", "cpus")}
    assert set(map(str, told.values())) == {"None", "[]"}
    assert conditions_line(found.to_json(), found.to_json()) == busy_words(found.to_json(), found.to_json()) == ""


@pytest.mark.parametrize("name", sorted(path.name for path in RECORDED.iterdir() if path.is_dir()))
def test_recorded_machines_are_read(name: str) -> None:
    """They were recorded for detection: of conditions they hold a Jetson's power mode."""
    assert read_conditions(RECORDED / name).power_mode == ("MAXN_SUPER" if name == "orin-nano" else None)


def test_this_machine_is_read_as_it_is() -> None:
    found = read_conditions()
    assert found.cpus == len(os.sched_getaffinity(0))
    assert found.load == pytest.approx(os.getloadavg()[0], abs=3)
    assert found.ticks is not None
    assert found.stolen is not None
    later = read_conditions(mode=False)
    assert later.at > found.at
    assert later.ticks is not None
    assert later.ticks >= found.ticks
    json.dumps(found.to_json(), allow_nan=False)
    assert environment(found)["conditions"] == found.to_json()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_the_files_hold_is_read_or_left(tmp_path: Path, data: st.DataObject) -> None:
    odd = [b"-1", b"9" * 30, b"cpu " + b"1 " * 12, b"total=", b""]
    strange = st.one_of(st.binary(max_size=40), st.sampled_from(odd))
    names = data.draw(st.lists(st.sampled_from(sorted(LAPTOP)), min_size=1, max_size=5))
    found = read_conditions(machine(tmp_path, {**LAPTOP, **{name: data.draw(strange) for name in names}}))
    json.dumps(found.to_json(), allow_nan=False)
    again = replace(found, at=found.at + 1, waited_us=0, stolen=0, ticks=1)
    assert isinstance(conditions_line(found.to_json(), again.to_json()) + busy_words(found.to_json(), {}), str)


def test_a_directory_where_a_file_should_be_is_none(tmp_path: Path) -> None:
    (tmp_path / "proc/loadavg").mkdir(parents=True)
    (tmp_path / "proc/pressure/cpu").mkdir(parents=True)
    found = read_conditions(tmp_path)
    assert (found.load, found.waited_us) == (None, None)


def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    path = tmp_path / "nvpmodel"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


def test_nvpmodel_is_asked_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says = "NVPM WARN: fan mode is not set\\nNV Power Mode: 15W\\n2\\n"
    command(tmp_path, monkeypatch, f'[ "$1" = -q ] && printf "{says}"')
    assert power_mode() == "15W"
    assert power_mode(tmp_path) is None, "the command speaks of this machine"


@pytest.mark.parametrize("script", ["exit 1", "printf '\\377'", "sleep 9"])
def test_an_nvpmodel_that_fails_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr(conditions, "COMMAND_SECONDS", 0.2)
    command(tmp_path, monkeypatch, script)
    assert conditions.nvpmodel_query() is None


class FakeJtop:
    """jtop's service with a power mode, or one that is not running."""

    def __init__(self, mode: object) -> None:
        self.mode = mode

    def jtop(self) -> FakeJtop:
        return self

    def __enter__(self) -> SimpleNamespace:
        if isinstance(self.mode, Exception):
            raise self.mode
        return SimpleNamespace(nvpmodel=self.mode)

    def __exit__(self, *_: object) -> None: ...


@pytest.mark.parametrize(
    ("mode", "told"),
    [(SimpleNamespace(name="MAXN"), "MAXN"), ("30W", "30W"), (None, None), (OSError("no socket"), None)],
)
def test_jtop_is_asked_last(tmp_path: Path, mode: object, told: str | None) -> None:
    assert power_mode(tmp_path, FakeJtop(mode)) == told
    assert power_mode(RECORDED / "orin-nano", FakeJtop(mode)) == "MAXN_SUPER"


CARD: dict[str, Any] = {
    "sm": 1980,
    "memory": 6251,
    "temperature": 61,
    "threshold": 92,
    "power_limit": 72000,
    "reasons": 0x24,
    "violation": 5_000_000,
    "persistence": 1,
    "processes": [[SimpleNamespace(pid=os.getpid()), SimpleNamespace(pid=-1)]],
}


def test_a_card_tells_its_state() -> None:
    nvml = FakeNvml((b"NVIDIA L4",), **CARD)
    assert read_gpu(0, nvml) == GpuState("NVIDIA L4", 1980, 6251, 61, 92, 72.0, 0x24, 5_000_000, True, 1)
    assert nvml.open == 0, "started and shut down"


def test_what_a_card_does_not_know_is_none() -> None:
    assert read_gpu(0, FakeNvml()) == GpuState("NVIDIA L4")
    assert read_gpu(3, FakeNvml()) is None, "there is one card"


def test_a_driver_that_does_not_start_is_no_card() -> None:
    class Broken(FakeNvml):
        def nvmlInit(self) -> None:
            raise OSError("NVML Shared Library Not Found")

    assert read_gpu(0, Broken()) is None


def test_the_newer_name_of_the_reasons_goes_first() -> None:
    nvml = FakeNvml(**CARD)
    nvml.nvmlDeviceGetCurrentClocksEventReasons = lambda handle: 0x40  # type: ignore[attr-defined]
    found = read_gpu(0, nvml)
    assert found is not None
    assert found.reasons == 0x40


@pytest.mark.parametrize(
    ("index", "environ", "handle"),
    [
        (1, {}, 1),
        (0, {"CUDA_VISIBLE_DEVICES": "2,0"}, 2),
        (1, {"CUDA_VISIBLE_DEVICES": "2,0"}, 0),
        (0, {"CUDA_VISIBLE_DEVICES": "GPU-b"}, 1),
    ],
)
def test_cuda_and_nvml_count_differently(index: int, environ: dict[str, str], handle: int) -> None:
    assert handle_of(FakeNvml(("NVIDIA L4",) * 3), index, environ) == handle


def test_cards_of_two_kinds_have_to_be_counted_by_bus() -> None:
    nvml = FakeNvml(("NVIDIA L4", "NVIDIA A10"))
    with pytest.raises(InconclusiveError, match="CUDA_DEVICE_ORDER"):
        handle_of(nvml, 0, {})
    assert handle_of(nvml, 1, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}) == 1
    with pytest.raises(InconclusiveError, match="1 GPUs"):
        handle_of(FakeNvml(), 4, {})


def test_a_line_says_what_moved() -> None:
    before = Conditions(10.0, 2, 3_400_000, load=0.5, waited_us=0, stolen=0, ticks=0, throttle_ms={"a": 5})
    after = Conditions(
        20.0, 2, 3_100_000, governors=("powersave",), temperature_c=71.4, load=0.5, waited_us=2_500_000, stolen=5,
        ticks=200, throttle_ms={"a": 47}, power_mode="15W", gpu=GpuState(sm_mhz=1980),
    )  # fmt: skip
    assert conditions_line(before.to_json(), after.to_json()) == (
        "clock 3.40 to 3.10 GHz, powersave, hottest zone 71 °C, throttled 42 ms, load 0.50, "
        "a task waited for a processor 25% of the time, 2.5% stolen, power mode 15W, GPU clock 1980 MHz"
    )
    assert conditions_line({}, {}) == ""


def test_a_busy_machine_is_named() -> None:
    before = Conditions(0.0, 2, load=1.0, waited_us=0, quota_us=0, stolen=0, ticks=0)
    calm = replace(before, at=10.0, waited_us=1_000_000, stolen=1, ticks=2000, load=1.9)
    assert busy_words(before.to_json(), calm.to_json()) == ""
    busy = replace(calm, load=7.5, waited_us=9_000_000, quota_us=500_000, stolen=300, gpu=GpuState(processes=2))
    assert busy_words(before.to_json(), busy.to_json()) == (
        "load 7.5 on 2 processors, a task waited for a processor 90% of the time, the container's quota was used up "
        "5% of the time, the hypervisor took 15% of the time, 2 other processes on the GPU"
    )


def test_shares() -> None:
    assert share(5, 8, 10.0) == pytest.approx(0.3)
    assert share(5, 80, 10.0) == 1.0
    assert share(8, 5, 10.0) is share(None, 5, 10.0) is share(5, 8, 0.0) is None


@pytest.mark.gpu
def test_nvml_of_this_machine() -> None:
    pytest.importorskip("pynvml", reason="NVML's bindings are not installed: pip install nvidia-ml-py")
    found = read_gpu()
    assert found is not None, "pynvml is there and no card answers"
    assert found.name
    assert found.sm_mhz is not None
    assert 0 < found.sm_mhz < 10_000
    assert found.temperature_c is not None
    assert 0 < found.temperature_c < 120
    assert found.reasons is not None
