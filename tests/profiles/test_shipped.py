"""The shipped profiles: they load, say where each figure is from, and agree with published facts and each other."""

from __future__ import annotations

import subprocess
import sys

import pytest

from planish import profiles
from planish.profiles import Profile, load, names
from planish.profiles.parsing import parse

SHELF = {name: load(name) for name in names()}
CARDS = {
    "t4": "7.5",
    "l4": "8.9",
    "a10": "8.6",
    "a100-80gb": "8.0",
    "h100": "9.0",
    "h200": "9.0",
    "rtx-4090": "8.9",
    "rtx-5090": "12.0",
}
JETSONS = {
    "jetson-orin-nano-8gb": "8.7",
    "jetson-orin-nx-16gb": "8.7",
    "jetson-agx-orin-64gb": "8.7",
    "jetson-agx-thor": "11.0",
}
CPUS = ["cpu-arm64", "cpu-x86-avx2", "cpu-x86-avx512-vnni"]


def test_the_shelf_holds_these_and_no_other() -> None:
    assert names() == sorted([*CARDS, *JETSONS, *CPUS])


@pytest.mark.parametrize("name", SHELF)
def test_a_profile_is_named_as_its_file_and_round_trips(name: str) -> None:
    profile = SHELF[name]
    assert profile.name == name
    again = parse(profile.to_json())
    assert again == profile
    assert hash(again) == hash(profile)
    assert again.sources == profile.sources


@pytest.mark.parametrize(("name", "sm"), [*CARDS.items(), *JETSONS.items()])
def test_gpu_profiles_are_whole(name: str, sm: str) -> None:
    profile = SHELF[name]
    assert profile.gpu is not None
    assert profile.gpu.sm == sm
    assert profile.memory is not None
    assert profile.memory.kind == ("shared" if name in JETSONS else "device")
    assert profile.memory.bandwidth is not None
    assert profile.dialects[0] == "qdq"
    assert profile.shapes.past is not None
    assert profile.engines[-1].name == "onnxruntime-cpu"


@pytest.mark.parametrize("name", JETSONS)
def test_jetsons_say_their_software_power_modes_and_how_to_know_them(name: str) -> None:
    profile = SHELF[name]
    assert profile.arch == "aarch64"
    assert profile.boards
    assert profile.threads == profile.cpu.cores
    assert all(release.jetpack and release.tensorrt and release.python for release in profile.software)
    assert any(mode.watts is None for mode in profile.power_modes)
    tensorrt = profile.engine("tensorrt")
    assert tensorrt is not None
    assert tensorrt.build == "device"


def test_only_rtx_cards_have_an_engine_that_can_be_built_elsewhere() -> None:
    elsewhere = {
        name for name, profile in SHELF.items() if any(engine.build == "anywhere" for engine in profile.engines)
    }
    assert elsewhere == {"rtx-4090", "rtx-5090"}


@pytest.mark.parametrize("name", CPUS)
def test_cpu_profiles_have_one_engine_and_need_no_gpu(name: str) -> None:
    profile = SHELF[name]
    assert [engine.name for engine in profile.engines] == ["onnxruntime-cpu"]
    assert profile.gpu is None
    assert profile.dialects == ("ort",)


def test_tensor_rates_follow_the_architecture() -> None:
    """INT8 runs at twice FP16 on every part but GeForce, whose FP16 figures count FP32 accumulation: a quarter."""
    for name in ("t4", "l4", "a10", "a100-80gb", "h100", "h200"):
        assert gpu_rates(SHELF[name]) == pytest.approx(2.0, rel=1e-2)
    for name in ("rtx-4090", "rtx-5090"):
        assert gpu_rates(SHELF[name]) == pytest.approx(4.0, rel=1e-3)


def gpu_rates(profile: Profile) -> float:
    assert profile.gpu is not None
    assert profile.gpu.dense_int8_tops is not None
    assert profile.gpu.dense_fp16_tflops is not None
    return profile.gpu.dense_int8_tops / profile.gpu.dense_fp16_tflops


def test_no_two_profiles_claim_the_same_device() -> None:
    claims = [
        name
        for profile in SHELF.values()
        for name in ((profile.gpu.reported_as if profile.gpu else ()) + profile.boards)
    ]
    assert len(claims) == len(set(claims))


def test_sources_are_documents_not_words() -> None:
    for profile in SHELF.values():
        assert all(len(source) > 15 and " " in source for source in profile.sources.values())


def test_the_package_imports_no_yaml_until_a_profile_is_asked_for() -> None:
    code = "import sys, planish.profiles as p, planish.profiles.host; assert 'yaml' not in sys.modules; p.load('t4')"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_public_name_is_there_and_no_other() -> None:
    assert all(getattr(profiles, name) for name in profiles.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        profiles.lode  # noqa: B018
