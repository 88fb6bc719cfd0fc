"""Engines come and go by one rename of the manifest: killed anywhere in between, the bundle is what it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planish.errors import BundleError
from planish.runtime import (
    add_engine,
    engine_id,
    golden_drift,
    load,
    prove_engine,
    read_engine_info,
    read_manifest,
    remove_engine,
    update_manifest,
    verify,
    write_engine_info,
)
from planish.runtime.engine_info import parse_engine_info
from planish.runtime.manifest import canonical
from tests.runtime import fake_tensorrt
from tests.runtime.engine_bundle import add_fake_engine, encoder_bundle
from tests.runtime.fake_cuda import FakeCudart
from tests.runtime.test_loader import sign

ENGINE = "tensorrt-10.3.0-sm89-rtx-4090"


@pytest.fixture(scope="module")
def plain(tiny: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny("feature-extraction", 6, pooling={"mode": "mean", "normalize": True})
    return encoder_bundle(made.path, tmp_path_factory.mktemp("plain") / "bundle")


@pytest.fixture
def bundle(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "bundle"))


def info_text(bundle: Path) -> dict[str, Any]:
    text: dict[str, Any] = json.loads((bundle / "engines" / ENGINE / "engine.json").read_text())
    return text


def test_adding_and_removing(bundle: Path) -> None:
    before = verify(bundle)
    assert add_fake_engine(bundle) == ENGINE
    after = verify(bundle)
    assert after.engines[ENGINE].path == f"engines/{ENGINE}/model.plan"
    assert after.engines[ENGINE].proved is None
    assert set(after.files) - set(before.files) == {
        f"engines/{ENGINE}/{name}" for name in ("engine.json", "model.plan")
    }
    with pytest.raises(BundleError, match=r"which is there; remove_engine\(\) first"):
        add_engine(bundle, ENGINE)
    assert remove_engine(bundle, ENGINE) == before == verify(bundle)
    assert not (bundle / "engines").exists()
    with pytest.raises(BundleError, match="an engine of this bundle"):
        remove_engine(bundle, ENGINE)
    with pytest.raises(BundleError, match="an engine of this bundle"):
        prove_engine(bundle, ENGINE)


def test_a_build_under_way_is_nobodys_business(bundle: Path) -> None:
    """Every state a builder leaves behind, in the order it makes them, killed there."""
    digest = verify(bundle).digest
    (bundle / "engines").mkdir()
    assert verify(bundle).digest == digest
    partial = bundle / "engines" / ".partial"
    partial.mkdir()
    assert verify(bundle).digest == digest
    (partial / "model.plan").write_bytes(b"half")
    (partial / "empty").mkdir()
    (partial / "link").symlink_to("/etc/passwd")
    assert verify(bundle).digest == digest
    with load(bundle) as model:
        assert model.engine_id is None
    partial.rename(bundle / "engines" / ENGINE)
    assert verify(bundle).digest == digest
    with pytest.raises(BundleError, match=r"plain files only|engine\.json and model\.plan"):
        add_engine(bundle, ENGINE)


def test_a_listed_engine_is_as_strict_as_all_else(bundle: Path) -> None:
    add_fake_engine(bundle)
    folder = bundle / "engines" / ENGINE
    extra = folder / "notes.txt"
    extra.write_text("x")
    with pytest.raises(BundleError, match=r"notes\.txt"):
        verify(bundle)
    extra.unlink()
    (folder / "empty").mkdir()
    with pytest.raises(BundleError, match=f"an empty one: engines/{ENGINE}/empty"):
        verify(bundle)
    (folder / "empty").rmdir()
    (bundle / "engines" / "loose").write_text("x")
    with pytest.raises(BundleError, match="engines/loose"):
        verify(bundle)
    (bundle / "engines" / "loose").unlink()
    (folder / "engine.json").unlink()
    with pytest.raises(BundleError, match=r"engine\.json too"):
        verify(bundle)


def test_folders_that_are_no_engine(bundle: Path) -> None:
    with pytest.raises(BundleError, match=f"a folder engines/{ENGINE}, got none"):
        add_engine(bundle, ENGINE)
    for name in ("../..", "", "a/b", ".", "a\n"):
        with pytest.raises(BundleError, match="a folder's name for an engine"):
            add_engine(bundle, name)
    (bundle / "engines" / ENGINE).mkdir(parents=True)
    with pytest.raises(BundleError, match=r"engine\.json and model\.plan in .*, got nothing"):
        add_engine(bundle, ENGINE)


def test_manifests_whose_engines_make_no_sense(bundle: Path) -> None:
    add_fake_engine(bundle)
    entry = read_manifest(bundle).to_json()["engines"][ENGINE]
    for engines, message in (
        ({ENGINE: {**entry, "path": "onnx/ort/model.onnx"}}, "the files of the engine"),
        ({ENGINE: {**entry, "dialect": "other"}}, "the dialect of the engine"),
        ({"../x": entry}, "a folder's name"),
        ({"a/b": entry}, "a folder's name"),
        ({}, "the two files of each engine"),
    ):
        with pytest.raises(BundleError, match=message):
            update_manifest(bundle, engines=engines)
    assert verify(bundle).engines


def test_one_that_was_proved_is_written_so(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCudart()
    fake_tensorrt.install(monkeypatch, cuda)
    add_fake_engine(bundle)
    sign_before = read_manifest(bundle).digest
    assert prove_engine(bundle, ENGINE).digest != sign_before
    assert verify(bundle).engines[ENGINE].proved
    assert not cuda.live


def test_writing_engine_json_touches_its_own_folder_alone(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in engines/ itself would be an extra one, and a kill would leave it there."""
    add_fake_engine(bundle)
    info = read_engine_info(bundle / "engines" / ENGINE / "engine.json")
    partial = bundle / "engines" / ".partial"
    partial.mkdir()

    def killed(source: Path, target: Path) -> None:
        assert Path(source).parent == partial
        verify(bundle)
        raise SystemExit

    monkeypatch.setattr("planish.runtime.files.os.replace", killed)
    with pytest.raises(SystemExit):
        write_engine_info(partial / "engine.json", info)
    verify(bundle)


def test_engine_json_is_written_as_it_is_read(bundle: Path, tmp_path: Path) -> None:
    add_fake_engine(bundle)
    path = bundle / "engines" / ENGINE / "engine.json"
    info = read_engine_info(path)
    copy = tmp_path / "engine.json"
    write_engine_info(copy, info)
    assert copy.read_bytes() == path.read_bytes() == canonical(info.to_json())
    assert engine_id(info.module, info.version, info.targets, info.profile) == ENGINE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "1 at engine.json.schema"),
        ({"module": "onnxruntime"}, "'tensorrt' or 'tensorrt_rtx' at engine.json.module"),
        ({"targets": []}, "targets, profiles"),
        ({"targets": ["89"]}, "compute capabilities such as 8.9"),
        ({"targets": "8.9"}, "a list at engine.json.targets"),
        ({"profiles": []}, "targets, profiles"),
        ({"onnx_sha256": {}}, "onnx_sha256"),
        ({"extra": 1}, "only known keys"),
        ({"profiles": [{"name": "a", "shapes": {"input_ids": {"min": [1], "opt": [1], "max": [1]}}}]}, "every axis"),
        ({"profiles": [{"name": "a", "shapes": {"x": {"min": [], "opt": [], "max": []}}}]}, "every axis of x"),
        (
            {"profiles": [{"name": "a", "shapes": {"input_ids": {"min": [2, 1], "opt": [1, 1], "max": [3, 3]}}}]},
            "min <=",
        ),
    ],
)
def test_engine_json_that_says_something_else(bundle: Path, change: dict[str, Any], message: str) -> None:
    add_fake_engine(bundle)
    raw = {**info_text(bundle), **change}
    with pytest.raises(BundleError, match=message):
        parse_engine_info(canonical(raw))
    (bundle / "engines" / ENGINE / "engine.json").write_bytes(canonical(raw))
    with pytest.raises(BundleError, match=r"engine\.json"):
        verify(bundle)


def test_engine_json_in_another_spelling(bundle: Path) -> None:
    add_fake_engine(bundle)
    raw = info_text(bundle)
    for data in (json.dumps(raw).encode(), b"", b"{", b"\xff", b"[]", b"null", canonical(raw)[:-1], b"[" * 100_000):
        with pytest.raises(BundleError, match=r"engine\.json"):
            parse_engine_info(data)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60), st.integers(0, 4000), st.integers(0, 60))
def test_damaged_engine_json_is_refused_in_words(plain: Path, noise: bytes, at: int, length: int) -> None:
    data = _SAMPLE
    broken = data[: at % len(data)] + noise + data[at % len(data) + length :]
    if broken == data:
        return
    try:
        info = parse_engine_info(broken)
    except BundleError:
        return
    assert canonical(info.to_json()) == broken  # a change that makes sense, such as another digit


_SAMPLE = canonical(
    {
        "schema": 1,
        "planish": "0.1.0",
        "module": "tensorrt",
        "version": "10.3.0",
        "targets": ["8.9"],
        "device": {"name": "x", "sm": "8.9", "driver": None},
        "profile": "p",
        "dialect": "qdq",
        "onnx_sha256": {"model.onnx": "0"},
        "inputs": [{"name": "input_ids", "dtype": "int64", "shape": ["batch", "sequence"]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 2]}],
        "profiles": [{"name": "default", "shapes": {"input_ids": {"min": [1, 1], "opt": [2, 2], "max": [3, 3]}}}],
        "build": {"seconds": 1.5, "flags": []},
        "diagnostic": None,
    }
)


def test_drift_is_the_worst_output_without_padding() -> None:
    wanted = {"a": np.array([[[3.0], [4.0], [100.0]]]), "b": np.array([[1.0, 2.0]])}
    mask = np.array([[1, 1, 0]])
    got = {"a": np.array([[[3.0], [4.4], [0.0]]]), "b": np.array([[1.0, 2.0]])}
    assert golden_drift(got, wanted, mask) == pytest.approx(0.08)
    assert golden_drift(got, wanted) > 0.9
    assert golden_drift({**got, "b": np.array([[1.0, np.nan]])}, wanted, mask) == np.inf
    assert golden_drift({**got, "b": np.array([[1.0]])}, wanted, mask) == np.inf
    assert golden_drift({"a": got["a"]}, wanted, mask) == np.inf
    assert golden_drift({}, {}) == np.inf
    assert golden_drift({"a": np.array([0.0])}, {"a": np.array([0.0])}) == 0


def test_a_golden_pair_that_is_none(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCudart()
    fake_tensorrt.install(monkeypatch, cuda)
    add_fake_engine(bundle)
    (bundle / "golden" / "outputs.npz").write_bytes(b"PK")
    sign(bundle)
    with pytest.raises(BundleError, match=r"arrays in golden/outputs\.npz"):
        load(bundle)
    shutil.rmtree(bundle / "golden")
    sign(bundle)
    with pytest.raises(BundleError, match=r"golden/inputs\.npz in the bundle"):
        load(bundle)
    assert not cuda.live
