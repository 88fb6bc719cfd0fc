"""Our sources against TensorRT's real Python interface: the bindings of five releases, and TensorRT-RTX.

The bindings are published without the libraries they need. Libraries without code take their place, so each wheel is
imported in a process of its own and only looked at.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import zipfile

import pytest

from tests.conftest import CACHE
from tests.export.empty_library import MACHINES, write_empty_library
from tests.export.tensorrt_names import builder_names, optional_names, runtime_names, spelled

VERSIONS = ("10.3.0", "10.7.0", "10.13.3.9", "10.16.1.11", "11.4.0.106")
WHEELS = CACHE / "data" / "tensorrt-bindings"
LIBRARY = re.compile(rb"lib(?:nvinfer|nvonnxparser|nvinfer_plugin)\.so\.\d+")
FUNCTION = re.compile(rb"\0((?:createInfer|createNvOnnx|getBuilderPlugin|getPlugin|getNvOnnx|initLibNv)\w+)\0")
INTERFACE = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
names = []
for name in dir(module):
    thing = getattr(module, name)
    names.append(name)
    if isinstance(thing, type):
        names += [f"{name}.{member}" for member in dir(thing)]
print(json.dumps({"version": module.__version__, "names": names}))
"""
REMOVED = {
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
    "BuilderFlag.FP16",
    "BuilderFlag.INT8",
    "IInt8EntropyCalibrator2",
    "ITensor.dynamic_range",
    "ILayer.precision",
    "ICudaEngine.device_memory_size",
    "OnnxParser.supports_model",
}
"""Some of what 11 took away; the test finds the rest."""


def interface(module: str, environment: dict[str, str]) -> tuple[str, frozenset[str]]:
    """A module's version, and every name in it and in its classes."""
    done = subprocess.run(
        [sys.executable, "-c", INTERFACE, module],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    return told["version"], frozenset(told["names"])


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The environment in which each release can be imported, by its version."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in MACHINES:
        published = f"the bindings are published for Linux on {', '.join(MACHINES)}"
        pytest.skip(f"no TensorRT bindings for {sys.platform} on {machine}: {published}")
    found = {}
    for version in VERSIONS:
        tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
        files = list(WHEELS.glob(f"tensorrt_cu1*_bindings-{version}-{tag}-*_{machine}.whl"))
        if not files:
            pytest.fail(f"the bindings {version} for {tag} are missing in {WHEELS}; run `make data`")
        folder = tmp_path_factory.mktemp("bindings")
        with zipfile.ZipFile(files[0]) as wheel:
            wheel.extractall(folder)
        binary = (folder / "tensorrt_bindings" / "tensorrt.so").read_bytes()
        functions = sorted({name.decode() for name in FUNCTION.findall(binary.replace(b"\0", b"\0\0"))})
        for library in {name.decode() for name in LIBRARY.findall(binary)}:
            write_empty_library(folder / library, machine, functions)
        found[version] = {"PYTHONPATH": str(folder), "LD_LIBRARY_PATH": str(folder)}
    return found


@pytest.fixture(scope="session")
def releases(wheels: dict[str, dict[str, str]]) -> dict[str, frozenset[str]]:
    """The interface of each release, by its version."""
    found = {}
    for version, environment in wheels.items():
        told, found[version] = interface("tensorrt_bindings", environment)
        assert told == version
    return found


@pytest.fixture(scope="session")
def rtx() -> frozenset[str]:
    """The interface of the installed TensorRT-RTX."""
    pytest.importorskip("tensorrt_rtx", reason="NVIDIA publishes it for Linux on x86-64 only")
    return interface("tensorrt_rtx", {})[1]


def test_the_sources_are_read() -> None:
    """If variables are renamed, the names below would go missing from the lists, and nothing would be checked."""
    assert {"Builder.build_serialized_network", "OnnxParser.parse_from_file", "MemoryPoolType.WORKSPACE"} <= (
        builder_names()
    )
    assert {"Runtime.deserialize_cuda_engine", "IExecutionContext.execute_async_v3", "ICudaEngine.num_io_tensors"} <= (
        runtime_names()
    )
    assert {"IBuilderConfig.set_compute_capability", "create_runtime_config"} <= optional_names()
    assert "STRONGLY_TYPED" in spelled()["export/build_engine.py"]
    assert {"export/timing_cache.py", "export/build_progress.py", "runtime/plan.py"} <= set(spelled())
    assert len(builder_names()) > 35
    assert len(runtime_names()) > 20


@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_is_in_every_release(version: str, releases: dict[str, frozenset[str]]) -> None:
    optional = optional_names()
    behind = {"IRuntimeConfig", "IRuntimeCache", *optional}  # only reached through what hasattr asked for
    wanted = {
        name
        for name in builder_names() | runtime_names()
        if name not in optional and name.split(".")[0] not in behind and name.split(".")[-1] not in behind
    }
    assert sorted(wanted - releases[version]) == []


def test_every_name_is_in_tensorrt_rtx(rtx: frozenset[str]) -> None:
    assert sorted((builder_names() | runtime_names()) - rtx) == []


def test_what_hasattr_asks_for_tells_the_two_modules_apart(
    releases: dict[str, frozenset[str]], rtx: frozenset[str]
) -> None:
    assert "IBuilderConfig.set_compute_capability" in rtx
    for names in releases.values():
        assert "IBuilderConfig.set_compute_capability" not in names
        assert "ComputeCapability" not in names


def test_nothing_that_was_removed_is_used(releases: dict[str, frozenset[str]]) -> None:
    before = frozenset.union(*(names for version, names in releases.items() if version.startswith("10.")))
    now = releases["11.4.0.106"]
    assert before - now >= REMOVED, "these are the releases we think they are"
    kept = {name.split(".")[-1] for name in now}
    gone = {name.split(".")[-1] for name in before - now if not name.endswith("__")} - kept
    assert {"EXPLICIT_BATCH", "FP16", "dynamic_range", "device_memory_size"} <= gone
    used = {f"{file}: {name}" for file, names in spelled().items() for name in names & gone}
    assert used == set()


CHOICES = """
import sys, tensorrt_bindings
sys.modules["tensorrt"] = tensorrt_bindings
from planish.errors import HostError
from planish.export.tensorrt_module import choose, explicit_targets
from planish.profiles import load
from planish.runtime import BuiltOn
assert not explicit_targets(tensorrt_bindings)
orin = load("jetson-orin-nano-8gb")
for device in (None, BuiltOn("NVIDIA GeForce RTX 4090", "8.9"), BuiltOn("Orin", "8.7")):
    try:
        found = choose(orin, device, "tensorrt")
        print(found.engine_id(orin), found.device == device)
    except HostError as error:
        print(error)
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_full_tensorrt_builds_on_the_profiles_device_only(version: str, wheels: dict[str, dict[str, str]]) -> None:
    environment = {**os.environ, **wheels[version]}
    done = subprocess.run([sys.executable, "-c", CHOICES], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    nothing, another, right = done.stdout.splitlines()
    assert "got no NVIDIA GPU on this host; copy the bundle to the device" in nothing
    assert "planish build BUNDLE --profile jetson-orin-nano-8gb --module tensorrt" in nothing
    assert "got NVIDIA GeForce RTX 4090 with 8.9" in another
    assert right == f"tensorrt-{version}-sm87-jetson-orin-nano-8gb True"
