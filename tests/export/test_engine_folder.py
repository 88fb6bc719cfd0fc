"""An engine is switched on, on a device that can prove it, only if the golden set passes.

TensorRT and CUDA are the runtime's fakes, which execute with ONNX Runtime; the bundles and their files are real.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planish import runtime
from planish.errors import BundleError, HostError, ParityError
from planish.export.build_engine import refusal
from planish.export.build_progress import BuildLog, Phases
from planish.export.engine_folder import switch_on
from planish.runtime import prove
from planish.runtime.prove import measure_golden
from tests.export.engine_bundles import make_bundle
from tests.runtime import fake_tensorrt
from tests.runtime.engine_bundle import add_fake_engine
from tests.runtime.fake_cuda import FakeCudart


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose manifest says how near the golden answers an engine has to be."""
    made = make_bundle(tmp_path / "bundle", linear="fp16")
    limit_drift(made)
    return made


def limit_drift(bundle: Path) -> None:
    """Writes the manifest again, with the files as they are now."""
    manifest = runtime.read_manifest(bundle).to_json()
    fields = {key: value for key, value in manifest.items() if key not in ("digest", "files")}
    parity = {"atol": 0.01, "default_atol": 0.01, "loosened": False, "max_abs_error": 0.001, "cases": []}
    fields["parity"] = {"qdq": {**parity, "golden_drift": 0.001, "golden_limit": 0.02}}
    runtime.write_manifest(bundle, fields)


def finished(bundle: Path) -> tuple[Path, str]:
    """A folder with an engine that was built and is not in the manifest."""
    name = add_fake_engine(bundle)
    kept = bundle.parent / "kept"
    shutil.copytree(bundle / "engines" / name, kept)
    runtime.remove_engine(bundle, name)
    folder = bundle / "engines" / f".{name}"
    folder.parent.mkdir(exist_ok=True)
    kept.rename(folder)
    return folder, name


def test_an_engine_that_passes_is_proved(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch, FakeCudart())
    folder, name = finished(bundle)
    seen = []

    def measuring(*arguments: Any) -> float:
        seen.append(dict(runtime.verify(bundle).engines))
        return measure_golden(*arguments)

    monkeypatch.setattr(prove, "measure_golden", measuring)
    manifest = switch_on(bundle, folder, name, prove=True)
    assert seen == [{}], "nobody else can load it before it has passed"
    assert manifest == runtime.verify(bundle)
    proof = manifest.engines[name].proved
    assert proof is not None
    assert proof["drift"] <= proof["limit"] == 0.02


def test_an_engine_that_answers_otherwise_leaves_the_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch, FakeCudart())
    with np.load(bundle / "golden" / "outputs.npz") as outputs:
        wrong = {name: values + 0.5 for name, values in outputs.items()}
    np.savez(bundle / "golden" / "outputs.npz", **wrong)
    limit_drift(bundle)
    before = runtime.read_manifest(bundle)
    folder, name = finished(bundle)
    with pytest.raises(ParityError, match="golden answers within"):
        switch_on(bundle, folder, name, prove=True)
    assert runtime.verify(bundle) == before
    assert not (bundle / "engines").exists()


def test_an_engine_the_device_cannot_open_leaves_it_too(bundle: Path) -> None:
    folder, name = finished(bundle)
    with pytest.raises(HostError):  # no driver, or a GPU that a fake plan is nothing for
        switch_on(bundle, folder, name, prove=True)
    assert runtime.verify(bundle).engines == {}


def test_an_engine_of_another_graph_is_not_switched_on(bundle: Path, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", linear="int8")
    limit_drift(other)
    folder, name = finished(other)
    (bundle / "engines").mkdir()
    folder = Path(shutil.move(folder, bundle / "engines" / folder.name))
    with pytest.raises(BundleError, match="an engine made from"):
        switch_on(bundle, folder, name, prove=False)
    assert runtime.verify(bundle).engines == {}


def test_a_build_that_was_killed_before_the_manifest_named_it_is_replaced(bundle: Path) -> None:
    folder, name = finished(bundle)
    shutil.copytree(folder, bundle / "engines" / name)
    (bundle / "engines" / name / "model.plan").write_bytes(b"half")
    runtime.verify(bundle)
    manifest = switch_on(bundle, folder, name, prove=False)
    assert manifest == runtime.verify(bundle)
    assert [path.name for path in (bundle / "engines").iterdir()] == [name]


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("[defaultAllocator.cpp::allocate::42] Error Code 1: Cuda Runtime (out of memory)", HostError, "memory enough"),
        ("IBuilder::build: Error Code 4: Internal Error (axes must match In f at /_src/x.cpp:1)", BundleError, "axes"),
        ("", BundleError, "no plan and no reason"),
    ],
)
def test_what_the_builder_says_decides_whose_fault_it_is(said: str, kind: type[Exception], words: str) -> None:
    log = BuildLog()
    if said:
        log.add("ERROR", said)
    error = refusal(log, Phases(1.0))
    assert type(error) is kind
    assert words in str(error)
    assert "/_src" not in str(error)
    assert isinstance(refusal(log, Phases(1.0, stopped=True)), KeyboardInterrupt)
