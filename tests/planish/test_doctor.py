"""The doctor on this host and on recorded ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from planish import doctor
from planish.doctor import diagnose, find_problems
from planish.profiles import detect
from planish.profiles.accelerators import GpuSeen

RECORDED = Path(__file__).resolve().parents[1] / "profiles" / "recorded"


def words(problems: list[tuple[str, str]]) -> str:
    return "\n".join(f"{what} -> {fix}" for what, fix in problems)


def test_this_host_has_a_whole_diagnosis() -> None:
    facts = diagnose()
    json.dumps(facts, allow_nan=False)
    assert facts["onnxruntime"]["new_enough"]
    assert facts["disk"]["free_bytes"] > 0
    assert set(facts["extras"]) >= {"compress", "export", "gate"}
    assert all(problem["what"] and problem["fix"] for problem in facts["problems"])


def test_plugins_of_onnxruntime_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime_ep_some_chip").mkdir()
    (tmp_path / "onnxruntime_ep_some_chip" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert diagnose()["onnxruntime"]["plugins"]["some-chip"] == "onnxruntime_ep_some_chip"


def test_it_prints_nothing_and_imports_no_torch() -> None:
    heavy = {"torch", "transformers", "onnx", "tensorrt"}
    code = f"import sys; from planish.doctor import diagnose; diagnose(); sys.exit(bool({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("machine", "instruction", "word"),
    [
        ("epyc-vnni", "avx512_vnni", "two to three times"),
        ("graviton4", "i8mm", "clearly faster"),
        ("orin-nano", "asimddp", "less so than with i8mm"),
        ("haswell", None, "1.3 times fp32"),
        ("jetson-nano", None, "little or no time"),
    ],
)
def test_what_a_cpu_means_for_int8(machine: str, instruction: str | None, word: str) -> None:
    told = diagnose(RECORDED / machine)["cpu"]["int8"]
    assert told["instruction"] == instruction
    assert word in told["meaning"]


def test_a_host_without_a_profile_or_memory_is_a_problem(tmp_path: Path) -> None:
    assert "no shipped profile fits this host" in words(find_problems(detect(RECORDED / "jetson-nano"), None))
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 4000000 kB\nMemAvailable: 300000 kB\n")
    told = words(find_problems(detect(tmp_path), 1000))
    assert "only 307 MB of memory left" in told
    assert "of disk left here" in told


def test_a_container_with_a_fraction_of_the_cores_is_told_its_threads(tmp_path: Path) -> None:
    shutil.copytree(RECORDED / "haswell", tmp_path / "root")
    group = tmp_path / "root/sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("150000 100000\n")
    assert "may use 1.5 of 4 cores" in words(find_problems(detect(tmp_path / "root"), None))
    assert "pass threads=1 to" in words(find_problems(detect(tmp_path / "root"), None))


def test_a_jetson_whose_python_sees_no_tensorrt() -> None:
    seen = detect(RECORDED / "orin-nano")
    without = replace(seen, software=replace(seen.software, tensorrt=None))
    assert "--system-site-packages" in words(find_problems(without, None))
    with_it = replace(seen, software=replace(seen.software, tensorrt="10.3.0"))
    assert "--system-site-packages" not in words(find_problems(with_it, None))


def test_a_card_no_engine_can_use() -> None:
    seen = replace(detect(RECORDED / "epyc-vnni"), gpus=(GpuSeen("NVIDIA L4", "8.9"),))
    bare = replace(seen.software, providers=("CPUExecutionProvider",), tensorrt=None, tensorrt_rtx=None)
    assert "NVIDIA L4 is there" in words(find_problems(replace(seen, software=bare), None))
    cuda = replace(bare, providers=("CUDAExecutionProvider", "CPUExecutionProvider"))
    assert "NVIDIA L4" not in words(find_problems(replace(seen, software=cuda), None))


@pytest.mark.parametrize(
    ("version", "fix"),
    [
        (None, "pip install 'onnxruntime>=1.23'"),
        ("1.22.1", "pip install --upgrade 'onnxruntime>=1.23'"),
        ("1.23.0", ""),
        ("2.0", ""),
    ],
)
def test_onnxruntime_absent_or_old(version: str | None, fix: str) -> None:
    seen = detect(RECORDED / "epyc-vnni")
    told = words(find_problems(replace(seen, software=replace(seen.software, onnxruntime=version)), None))
    assert fix in told
    assert bool(fix) == ("onnxruntime>=1.23" in told)


def test_two_builds_of_onnxruntime_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda name: name in ("onnxruntime", "onnxruntime-gpu"))
    told = words(find_problems(detect(RECORDED / "epyc-vnni"), None))
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in told
