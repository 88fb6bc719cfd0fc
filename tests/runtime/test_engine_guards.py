"""An engine that does not fit: one clear error each, before TensorRT sees a byte, and the bundle still serves."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planish.errors import BundleError, HostError, ParityError, PlanishError, RequestError
from planish.runtime import BuiltOn, Range, ShapeProfile, device_facts, load, prove_engine, read_manifest, verify
from planish.runtime.engines import record_proof
from tests.runtime import fake_tensorrt
from tests.runtime.engine_bundle import add_fake_engine, encoder_bundle
from tests.runtime.fake_cuda import NO_DEVICE, NO_DRIVER, FakeCudart
from tests.runtime.test_loader import sign

ENGINE = "tensorrt-10.3.0-sm89-rtx-4090"


@pytest.fixture(scope="module")
def plain(tiny: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny("feature-extraction", 6, pooling={"mode": "mean", "normalize": True}, profile="rtx-4090")
    return encoder_bundle(made.path, tmp_path_factory.mktemp("plain") / "bundle")


@pytest.fixture
def bundle(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "bundle"))


@pytest.fixture
def cuda() -> FakeCudart:
    return FakeCudart()


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, cuda: FakeCudart) -> Any:
    made = fake_tensorrt.install(monkeypatch, cuda)
    made.seen_plans = []
    return made


def refused(bundle: Path, module: Any, kind: type[PlanishError], message: str) -> None:
    """`tensorrt` says why, TensorRT saw nothing, and `auto` and `cpu` still answer."""
    with pytest.raises(kind, match=message) as caught:
        load(bundle, "tensorrt")
    assert len(str(caught.value).splitlines()) == 1
    assert not module.seen_plans
    with load(bundle) as model, load(bundle, "cpu") as other:
        assert (model.device, other.device) == ("CPUExecutionProvider",) * 2
        assert model.embed("the sea").tolist() == other.embed("the sea").tolist()
        engines = sorted(read_manifest(bundle).engines)
        assert [line.split(":")[0] for line in model.passed_over] == engines
        assert all(caught.value.got in line for line in model.passed_over)
        assert not other.passed_over


def test_no_engine(bundle: Path, module: Any) -> None:
    refused(bundle, module, BundleError, "an engine in the bundle's engines/, got none; planish build BUNDLE")


def test_no_cuda_library(bundle: Path, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise HostError("the CUDA runtime library (libcudart)", "no such file", "install CUDA 12 or 13")

    add_fake_engine(bundle)
    monkeypatch.setattr("planish.runtime.cuda.load_cudart", missing)
    refused(bundle, module, HostError, r"libcudart\) \(engine tensorrt-10.3.0-sm89-rtx-4090\), got no such file")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (NO_DRIVER, "an NVIDIA driver .*CUDA driver version is insufficient"),
        (NO_DEVICE, "a CUDA device .*no CUDA-capable device is detected .*--gpus all"),
        (3, "a list of CUDA devices"),
    ],
)
def test_no_driver_no_device(bundle: Path, module: Any, cuda: FakeCudart, code: int, message: str) -> None:
    add_fake_engine(bundle)
    cuda.count_code, cuda.devices = code, 0
    refused(bundle, module, HostError, message)
    with pytest.raises(HostError, match=message):
        prove_engine(bundle, ENGINE)
    with pytest.raises(HostError):
        device_facts()


def test_a_device_that_is_not_there(bundle: Path, module: Any, cuda: FakeCudart) -> None:
    add_fake_engine(bundle)
    with pytest.raises(HostError, match=r"CUDA device 3.* got only 0 to 0"):
        load(bundle, "tensorrt:3")
    assert device_facts() == BuiltOn("Fake 4090", "8.9", "13.0")


def test_the_second_device(bundle: Path, module: Any, cuda: FakeCudart, monkeypatch: pytest.MonkeyPatch) -> None:
    add_fake_engine(bundle)
    cuda.devices = 2
    chosen: list[int] = []
    monkeypatch.setattr(FakeCudart, "cudaSetDevice", lambda self, device: chosen.append(device))
    with load(bundle, "tensorrt:1") as model:
        assert model.device == "tensorrt:1"
        assert model.embed("sea").shape == (1, 6)
    assert set(chosen) == {1}
    assert not cuda.live


def test_another_compute_capability(bundle: Path, module: Any, cuda: FakeCudart) -> None:
    add_fake_engine(bundle)
    cuda.sm = "9.0"
    message = (
        r"a GPU of compute capability 8.9 \(engine .*\), got Fake 4090, compute capability 9.0; "
        r"build it here: planish build BUNDLE --profile rtx-4090"
    )
    refused(bundle, module, HostError, message)


def test_another_version(bundle: Path, monkeypatch: pytest.MonkeyPatch, cuda: FakeCudart) -> None:
    add_fake_engine(bundle)
    module = fake_tensorrt.install(monkeypatch, cuda, version="10.13.3")
    refused(bundle, module, HostError, "tensorrt 10.3.0, with which .*, got tensorrt 10.13.3; .*planish build BUNDLE")


def test_the_module_is_missing(bundle: Path, module: Any) -> None:
    add_fake_engine(bundle, module="tensorrt_rtx", version="0.0.1")
    refused(bundle, module, HostError, r"tensorrt_rtx 0.0.1.*, got (no such module here|tensorrt_rtx \d)")


def test_an_older_driver(bundle: Path, module: Any, cuda: FakeCudart) -> None:
    add_fake_engine(bundle)
    cuda.driver = 12060
    refused(bundle, module, HostError, "a driver with CUDA 13.0 or newer, .* got 12.6; update the driver")
    cuda.driver = 13020
    with load(bundle, "tensorrt") as model:
        assert model.engine_id == ENGINE


def test_an_engine_from_another_graph(bundle: Path, module: Any) -> None:
    with pytest.raises(BundleError, match=r"engine made from \w{12} \(onnx/qdq/model.onnx\), got one made from 0000"):
        add_fake_engine(bundle, onnx_sha256={"model.onnx": "0" * 64})
    with load(bundle) as model:  # the folder is there and unlisted
        assert model.embed("sea").shape == (1, 6)
    assert (bundle / "engines" / ENGINE / "model.plan").is_file()
    assert not module.seen_plans


@pytest.mark.parametrize("change", ["truncated", "changed", "longer"])
def test_a_plan_that_is_not_as_it_was(bundle: Path, module: Any, change: str) -> None:
    add_fake_engine(bundle)
    plan = bundle / "engines" / ENGINE / "model.plan"
    data = plan.read_bytes()
    changed = {"truncated": data[:-1], "changed": data[:-1] + bytes([data[-1] ^ 1]), "longer": data + b"x"}
    plan.write_bytes(changed[change])
    for device in ("auto", "cpu", "tensorrt"):
        with pytest.raises(BundleError, match=f"engines/{ENGINE}/model.plan"):
            load(bundle, device)
    assert not module.seen_plans


def test_a_plan_tensorrt_cannot_read_says_what_tensorrt_said(bundle: Path, module: Any, cuda: FakeCudart) -> None:
    add_fake_engine(bundle, plan=b"nothing like a plan")
    for device in ("tensorrt", "auto"):
        with pytest.raises(HostError, match=r"a plan that tensorrt 10\.3\.0 can load, got Serialization assert.*build"):
            load(bundle, device)
    assert not cuda.live
    with load(bundle, "cpu") as model:
        assert model.embed("sea").shape == (1, 6)


def test_a_description_that_is_not_the_plans(bundle: Path, module: Any, cuda: FakeCudart) -> None:
    told = (ShapeProfile("0", {"input_ids": Range((1, 1), (2, 16), (4, 64))}),)
    add_fake_engine(bundle, told=told)
    with pytest.raises(BundleError, match=r"input_ids as engine.json says, .*64.*in the plan"):
        load(bundle, "tensorrt")
    assert not cuda.live


def test_more_profiles_told_than_there_are(bundle: Path, module: Any, cuda: FakeCudart) -> None:
    shapes = {"input_ids": Range((1, 1), (2, 16), (4, 32))}
    add_fake_engine(bundle, told=(ShapeProfile("a", shapes), ShapeProfile("b", shapes)))
    with pytest.raises(BundleError, match=r"2 optimization profiles, as engine\.json says, got 1 in"):
        load(bundle, "tensorrt")
    assert not cuda.live


def test_other_inputs_than_the_graphs(bundle: Path, module: Any) -> None:
    inputs = read_manifest(bundle).dialects["qdq"].inputs
    add_fake_engine(bundle, inputs=(dataclasses.replace(inputs[0], dtype="int32"), inputs[1]))
    with pytest.raises(BundleError, match="input_ids among the inputs"):
        load(bundle, "tensorrt")
    assert not module.seen_plans


def test_of_several_the_one_that_fits(bundle: Path, monkeypatch: pytest.MonkeyPatch, cuda: FakeCudart) -> None:
    module = fake_tensorrt.install(monkeypatch, cuda)
    fake_tensorrt.install(monkeypatch, None, name="tensorrt_rtx", version="1.7.1.116")
    orin = add_fake_engine(bundle, targets=("8.7",), profile="jetson-orin-nano-8gb")
    other = add_fake_engine(bundle, profile="l4")
    mine = add_fake_engine(bundle)
    with load(bundle) as model:
        assert model.engine_id == mine  # made for the bundle's profile
        assert len(model.passed_over) == 1
        assert model.passed_over[0].startswith(f"{orin}: expected a GPU of compute capability 8.7")
    prove_engine(bundle, other)
    with load(bundle) as model:
        assert model.engine_id == other  # proved on this GPU
    assert module.seen_plans


def test_an_engine_has_to_give_the_golden_answers(bundle: Path, module: Any, cuda: FakeCudart) -> None:
    add_fake_engine(bundle)
    wrong = bundle / "golden" / "outputs.npz"
    arrays = dict(np.load(wrong))
    np.savez(wrong, **{name: array * 1.02 for name, array in arrays.items()})
    sign(bundle)
    for door in (lambda: load(bundle), lambda: load(bundle, "tensorrt"), lambda: prove_engine(bundle, ENGINE)):
        with pytest.raises(ParityError, match=rf"golden answers within 0.01 .* from the engine {ENGINE}, got 0.0196"):
            door()
    assert read_manifest(bundle).engines[ENGINE].proved is None
    assert not cuda.live
    with load(bundle, "cpu") as model:
        assert model.embed("sea").shape == (1, 6)
    verify(bundle)


def test_a_proof_holds_for_its_device_and_driver(bundle: Path, module: Any, cuda: FakeCudart) -> None:
    add_fake_engine(bundle)
    manifest = prove_engine(bundle, ENGINE)
    proof = manifest.engines[ENGINE].proved
    assert proof == {
        "device": {"name": "Fake 4090", "sm": "8.9", "driver": "13.0"},
        "drift": 0.0,
        "limit": 0.01,
    }
    assert read_manifest(bundle) == manifest == verify(bundle)
    before = module.executions
    load(bundle).close()
    assert module.executions == before  # not proved again
    cuda.driver = 13020
    load(bundle).close()
    assert module.executions == before + 1
    record_proof(bundle, ENGINE, None)
    load(bundle).close()
    assert module.executions == before + 2
    assert not cuda.live


def test_no_limit_no_proof(bundle: Path, module: Any, cuda: FakeCudart) -> None:
    add_fake_engine(bundle)
    sign(bundle, parity={})
    with pytest.raises(BundleError, match=r"golden_limit in the manifest's parity\.qdq, got none"):
        load(bundle)
    assert not cuda.live


def test_devices_and_dialects_that_do_not_go_together(bundle: Path, module: Any) -> None:
    add_fake_engine(bundle)
    with pytest.raises(RequestError, match="dialect 'qdq', which the engine was made from, got 'ort'"):
        load(bundle, "tensorrt", dialect="ort")
    with pytest.raises(RequestError, match="device='tensorrt' or providers, got both"):
        load(bundle, "tensorrt", provider_options=[{}])
    for options in ({"dialect": "qdq"}, {"dialect": "ort"}, {"providers": ["CPUExecutionProvider"]}):
        with load(bundle, **options) as model:  # type: ignore[arg-type]
            assert model.engine_id is None
            assert model.dialect == options.get("dialect", "ort")
    assert not module.seen_plans


def test_the_real_library_where_there_is_one() -> None:
    """Without a driver the guards speak, and nothing crashes; with one, `pytest -m gpu` has more."""
    code = "from planish.runtime import device_facts; print(device_facts())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    words = ("libcudart", "an NVIDIA driver", "a CUDA device", "BuiltOn")
    assert any(word in done.stdout + done.stderr for word in words), done.stderr
    assert done.returncode in (0, 1)  # an exception, not a signal
