"""Detection on recorded machines (see recorded/README.md) and on this one."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.profiles import detect, load, names
from planish.profiles.accelerators import GpuSeen, read_board, read_gpus
from planish.profiles.host import read_cpu, read_memory
from planish.profiles.match import match
from planish.profiles.software import package_version

RECORDED = Path(__file__).parent / "recorded"


class Nvml:
    """Answers as NVML did for one card; an entry that is an exception is raised, as integrated GPUs' are."""

    def __init__(self, name: str | bytes, sm: tuple[int, int], memory: int | Exception, driver: str = "580.65") -> None:
        self.name, self.sm, self.memory, self.driver, self.shut = name, sm, memory, driver, False

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None:
        self.shut = True

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        return self.name

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        return self.sm

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        if isinstance(self.memory, Exception):
            raise self.memory
        return SimpleNamespace(total=self.memory)

    def nvmlSystemGetDriverVersion(self) -> str:
        return self.driver


@pytest.mark.parametrize(
    ("machine", "arch", "model", "logical", "physical", "feature"),
    [
        ("epyc-vnni", "x86-64", "AMD EPYC", 2, 2, "avx512_vnni"),
        ("haswell", "x86-64", "Intel(R) Core(TM) i7-4800MQ CPU @ 2.70GHz", 8, 4, "avx2"),
        ("graviton3", "aarch64", "Neoverse V1", 8, 8, "asimddp"),
        ("graviton4", "aarch64", "Neoverse V2", 4, 4, "i8mm"),
        ("orin-nano", "aarch64", "Cortex-A78AE", 6, 6, "asimddp"),
        ("jetson-nano", "aarch64", "Cortex-A57", 4, 4, "asimd"),
    ],
)
def test_cpu_of_recorded_machines(
    machine: str, arch: str, model: str, logical: int, physical: int, feature: str
) -> None:
    cpu = read_cpu(RECORDED / machine)
    assert cpu is not None
    assert (cpu.arch, cpu.model, cpu.logical, cpu.physical) == (arch, model, logical, physical)
    assert feature in cpu.features
    assert cpu.usable == logical


@pytest.mark.parametrize(
    ("machine", "profile", "exact"),
    [
        ("epyc-vnni", "cpu-x86-avx512-vnni", True),
        ("haswell", "cpu-x86-avx2", True),
        ("graviton3", "cpu-arm64", True),
        ("graviton4", "cpu-arm64", True),
        ("orin-nano", "jetson-orin-nano-8gb", True),
        ("orin-nx", "jetson-orin-nx-16gb", True),
        ("agx-orin", "jetson-agx-orin-64gb", True),
        ("agx-thor", "jetson-agx-thor", True),
        ("jetson-nano", None, None),
    ],
)
def test_the_profile_of_recorded_machines(machine: str, profile: str | None, exact: bool | None) -> None:
    seen = detect(RECORDED / machine)
    assert seen.profile == profile
    assert (seen.matches[0].exact if seen.matches else None) is exact
    json.dumps(seen.to_json(), allow_nan=False)


def test_a_jetson_s_release_power_mode_and_cpu_profile() -> None:
    seen = detect(RECORDED / "orin-nano")
    assert seen.board is not None
    assert (seen.board.l4t, seen.board.jetpack, seen.board.power_mode) == ("36.4.7", "6.2.1", "MAXN_SUPER")
    assert seen.board.model.endswith("Developer Kit Super")
    assert [one.profile for one in seen.matches] == ["jetson-orin-nano-8gb", "cpu-arm64"]


def test_thor_s_release() -> None:
    board = read_board(RECORDED / "agx-thor", [])
    assert board is not None
    assert (board.l4t, board.jetpack) == ("38.2.2", "7.0")


def test_what_could_not_be_seen_is_said_with_the_reason(tmp_path: Path) -> None:
    empty = "\n".join(detect(tmp_path).unseen)
    assert "CPU: " in empty
    assert "memory: " in empty
    assert "pip install nvidia-ml-py" in empty
    container = "\n".join(detect(RECORDED / "agx-orin").unseen)
    assert "/etc/nv_tegra_release is missing (a container?)" in container
    assert "power mode: " in container


def test_an_unknown_jetson_linux_release_is_said(tmp_path: Path) -> None:
    shutil.copytree(RECORDED / "agx-thor", tmp_path / "root")
    release = tmp_path / "root/etc/nv_tegra_release"
    release.write_text(release.read_text().replace("R38 (release), REVISION: 2.2", "R99 (release), REVISION: 1.0"))
    seen = detect(tmp_path / "root")
    assert seen.board is not None
    assert seen.board.jetpack is None
    assert any("Jetson Linux 99.1.0" in line or "Jetson Linux 99.1" in line for line in seen.unseen)


def test_a_smaller_module_of_the_same_family_is_near_not_exact(tmp_path: Path) -> None:
    shutil.copytree(RECORDED / "agx-orin", tmp_path / "root")
    (tmp_path / "root/proc/meminfo").write_text("MemTotal:       31433728 kB\n")
    seen = detect(tmp_path / "root")
    assert seen.profile == "jetson-agx-orin-64gb"
    assert not seen.matches[0].exact
    assert "has 64 GB, so its limits are not this one's" in seen.matches[0].reason


@pytest.mark.parametrize(
    ("name", "sm", "mib", "profile", "exact"),
    [
        ("Tesla T4", (7, 5), 15360, "t4", True),
        (b"NVIDIA L4", (8, 9), 23034, "l4", True),
        ("NVIDIA H100 80GB HBM3", (9, 0), 81559, "h100", True),
        ("NVIDIA H200", (9, 0), 143771, "h200", True),
        ("NVIDIA GeForce RTX 4090", (8, 9), 24564, "rtx-4090", True),
        ("NVIDIA A10G", (8, 6), 23028, "a10", False),
        ("NVIDIA GH200 480GB", (9, 0), 97871, "h100", False),
        ("NVIDIA B200", (10, 0), 183359, "cpu-x86-avx512-vnni", True),
    ],
)
def test_cards_by_name_or_nearest(name: str | bytes, sm: tuple[int, int], mib: int, profile: str, exact: bool) -> None:
    nvml = Nvml(name, sm, mib << 20)
    seen = detect(RECORDED / "epyc-vnni", nvml=nvml)
    assert (seen.profile, seen.matches[0].exact) == (profile, exact)
    assert seen.matches[-1].profile == "cpu-x86-avx512-vnni"
    assert seen.gpus[0].memory == mib << 20
    assert nvml.shut


def test_an_integrated_gpu_that_answers_half_the_questions() -> None:
    unseen: list[str] = []
    gpus = read_gpus(
        RECORDED / "orin-nano", Nvml("Orin (nvgpu)", (8, 7), RuntimeError("Not Supported"), "540.4.0"), unseen
    )
    assert gpus == (GpuSeen("Orin (nvgpu)", "8.7", None, "540.4.0"),)
    assert unseen == ["memory of GPU 0 (Orin (nvgpu)): Not Supported"]


def test_a_card_on_the_bus_without_nvml_is_said(tmp_path: Path) -> None:
    for address, vendor, kind in (
        ("0000:01:00.0", "0x10de", "0x030200"),
        ("0000:01:00.1", "0x10de", "0x040300"),
        ("0000:02:00.0", "0x1002", "0x030000"),
    ):
        device = tmp_path / "sys/bus/pci/devices" / address
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")
        (device / "class").write_text(f"{kind}\n")
    unseen: list[str] = []
    assert read_gpus(tmp_path, None, unseen) == ()
    assert unseen == ["1 NVIDIA device(s) on the PCI bus, but not which: pip install nvidia-ml-py"]


def test_nvml_that_does_not_start_or_breaks_is_a_line_not_an_error() -> None:
    class Broken(Nvml):
        def nvmlInit(self) -> None:
            raise OSError("driver/library version mismatch")

    class Lost(Nvml):
        def nvmlDeviceGetCount(self) -> int:
            raise RuntimeError("GPU is lost")

    for kind, word in ((Broken, "version mismatch"), (Lost, "GPU is lost")):
        unseen: list[str] = []
        assert read_gpus(RECORDED / "epyc-vnni", kind("", (0, 0), 0), unseen) == ()
        assert word in unseen[0]


def test_jtop_fills_what_files_leave_open_and_may_fail() -> None:
    class Jetson:
        board = {"hardware": {"Module": "NVIDIA Jetson Orin NX (16GB ram)"}}  # noqa: RUF012
        nvpmodel = SimpleNamespace(name="MAXN")

        def __enter__(self) -> Jetson:
            return self

        def __exit__(self, *_: object) -> None: ...

    seen = detect(RECORDED / "orin-nx", jtop=SimpleNamespace(jtop=Jetson))
    assert seen.board is not None
    assert (seen.board.module, seen.board.power_mode) == ("NVIDIA Jetson Orin NX (16GB ram)", "MAXN")

    def down() -> None:
        raise RuntimeError("The jtop.service is not active. Please run:\nsudo jtop --install-service")

    seen = detect(RECORDED / "orin-nx", jtop=SimpleNamespace(jtop=down))
    assert "jtop: The jtop.service is not active. Please run:" in seen.unseen


def test_a_container_s_limits(tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(RECORDED / "haswell", root)
    group = root / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("150000 100000\n")
    (group / "memory.max").write_text(f"{1 << 30}\n")
    cpu, memory = read_cpu(root), read_memory(root)
    assert cpu is not None
    assert cpu.usable == 1.5
    assert memory is not None
    assert memory.limit == 1 << 30
    (group / "cpu.max").write_text("max 100000\n")
    (group / "memory.max").write_text("max\n")
    cpu, memory = read_cpu(root), read_memory(root)
    assert cpu is not None
    assert cpu.usable == 8
    assert memory is not None
    assert memory.limit is None


@given(st.binary(max_size=400), st.binary(max_size=200), st.binary(max_size=100))
def test_no_file_content_makes_detection_raise(
    tmp_path_factory: pytest.TempPathFactory, cpu: bytes, memory: bytes, release: bytes
) -> None:
    root = tmp_path_factory.mktemp("root")
    for path, content in (
        ("proc/cpuinfo", b"processor: 0\n" + cpu),
        ("proc/meminfo", memory),
        ("etc/nv_tegra_release", release),
    ):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_bytes(content)
    board = read_board(root, [])
    shelf = [load("jetson-orin-nano-8gb"), load("cpu-arm64")]
    match(shelf, read_cpu(root), read_memory(root), [GpuSeen("x")], board)


def test_this_machine() -> None:
    seen = detect()
    json.dumps(seen.to_json(), allow_nan=False)
    assert seen.software.python == platform.python_version()
    assert seen.profile is None or seen.profile in names()
    if seen.software.onnxruntime:
        assert "CPUExecutionProvider" in seen.software.providers
    if sys.platform == "linux":
        assert seen.cpu is not None
        assert seen.cpu.arch == {"x86_64": "x86-64", "aarch64": "aarch64"}[platform.machine()]
        assert seen.cpu.physical <= seen.cpu.logical
        assert seen.memory is not None
        assert seen.memory.total > 1 << 28
    if not seen.gpus:
        assert any(line.startswith(("GPUs: ", "1 NVIDIA")) for line in seen.unseen)


def test_versions_from_metadata_or_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "tensorrt_of_apt"
    package.mkdir()
    (package / "__init__.py").write_text('raise RuntimeError("imported")\n__version__ = "10.3.0"\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    assert package_version("tensorrt_of_apt", ("tensorrt_of_apt",)) == "10.3.0"
    assert package_version("yaml", ("PyYAML",)) not in (None, "unknown")
    assert package_version("no_such_module_here", ()) is None
