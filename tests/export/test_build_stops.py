"""A build that is killed or interrupted leaves a bundle that verifies and serves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx", reason="NVIDIA publishes it for Linux on x86-64 only")

from planish import export, runtime
from tests.export.engine_bundles import make_bundle, make_profile

LAYERS = 12
"""Enough for a build of seconds."""


@pytest.fixture
def building(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A bundle and a process in the middle of building its engine."""
    bundle, profile = make_bundle(tmp_path / "bundle", layers=LAYERS), make_profile(tmp_path)
    command = [sys.executable, "-m", "planish", "build", str(bundle), "--profile", str(profile)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for _ in range(1200):
        if list(bundle.glob("engines/.*")) or process.poll() is not None:
            break
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()
    time.sleep(0.2)
    yield bundle, process
    process.kill()
    process.communicate()


def serves(bundle: Path) -> bool:
    """Whether every file is as the manifest says, and the bundle still answers as it did when it was exported."""
    runtime.verify(bundle)
    with np.load(bundle / "golden" / "inputs.npz") as inputs, np.load(bundle / "golden" / "outputs.npz") as outputs:
        got = runtime.load(bundle, device="cpu").run(dict(inputs))
        return all(np.allclose(got[name], outputs[name], atol=1e-2) for name in outputs.files)


def test_killed(building: tuple[Path, subprocess.Popen[str]], tmp_path: Path) -> None:
    bundle, process = building
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(bundle.glob("engines/.*")), "it was killed in the middle"
    assert runtime.read_manifest(bundle).engines == {}
    assert serves(bundle)
    made = export.build(bundle, profile=str(tmp_path / "small.yaml"))
    assert [path.name for path in (bundle / "engines").iterdir()] == [made.engine_id], "no remains of the killed one"
    assert serves(bundle)


def test_interrupted(building: tuple[Path, subprocess.Popen[str]]) -> None:
    bundle, process = building
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert time.monotonic() - started < 60
    assert "interrupted" in said
    assert "Traceback" not in said
    assert not (bundle / "engines").exists()
    assert serves(bundle)


IMPATIENT = """
import os, signal, time
from planish.export.build_progress import Phases, watch
phases, ended = Phases(1.0), []
def slow():
    for _ in range(3):
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.3)
    ended.append(phases.stopped)
try:
    watch(slow, phases)
except KeyboardInterrupt:
    print("stopped", ended)
"""


def test_impatience_does_not_leave_a_builder_running() -> None:
    done = subprocess.run([sys.executable, "-c", IMPATIENT], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[0] == "stopped [True]", done.stderr


def test_a_callers_progress_that_raises_stops_the_build(tmp_path: Path) -> None:
    bundle, profile = make_bundle(tmp_path / "bundle", layers=LAYERS), make_profile(tmp_path)

    def enough(stage: str, done: int, total: int) -> None:
        raise OSError("the terminal went away")

    with pytest.raises(Exception, match="the terminal went away"):
        export.build(bundle, profile=str(profile), progress=enough)
    assert not (bundle / "engines").exists()


def test_serving_while_it_builds(building: tuple[Path, subprocess.Popen[str]]) -> None:
    bundle, process = building
    assert serves(bundle)
    process.communicate(timeout=300)
    assert process.returncode == 0
    assert len(runtime.verify(bundle).engines) == 1
    assert os.listdir(bundle / "engines") == list(runtime.read_manifest(bundle).engines)
