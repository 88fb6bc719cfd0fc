"""Verification: one changed bit, one file more or less, one link, and neither verify nor load goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planish.errors import BundleError
from planish.runtime import load, read_manifest, verify, write_manifest
from planish.runtime.integrity import check_unchanged, read_verified, verify_files


@pytest.fixture(scope="module")
def whole(tiny: Callable[..., Any]) -> Path:
    path: Path = tiny("text-classification", 3).path
    return path


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def refused(bundle: Path, message: str) -> None:
    for door in (verify, load):
        with pytest.raises(BundleError, match=message):
            door(bundle)


def test_a_whole_bundle_passes(bundle: Path) -> None:
    assert verify(bundle) == read_manifest(bundle)
    assert load(bundle).manifest == verify(str(bundle))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_one_flipped_bit_anywhere_is_refused(bundle: Path, data: st.DataObject) -> None:
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files))
    original = path.read_bytes()
    place, bit = data.draw(st.integers(0, len(original) - 1)), data.draw(st.integers(0, 7))
    changed = bytearray(original)
    changed[place] ^= 1 << bit
    path.write_bytes(changed)
    try:
        refused(bundle, "expected")
    finally:
        path.write_bytes(original)
    verify(bundle)


@pytest.mark.parametrize("name", ["onnx/ort/model.onnx", "tokenizer.json", "config.json", "manifest.json"])
def test_truncated_longer_and_missing_files(bundle: Path, name: str) -> None:
    path = bundle / name
    original = path.read_bytes()
    path.write_bytes(original[:-1])
    refused(bundle, "manifest.json" if name == "manifest.json" else f"{name} of {len(original)} bytes")
    path.write_bytes(original + b"\n")
    refused(bundle, "expected")
    path.unlink()
    refused(bundle, name)


@pytest.mark.parametrize("name", ["extra.bin", "onnx/ort/model.onnx.data", ".hidden", "deep/er/file", ".x.partial"])
def test_extra_files(bundle: Path, name: str) -> None:
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle / name).write_bytes(b"")
    refused(bundle, name)


@pytest.mark.parametrize("name", ["extra", "onnx/ort/more", "deep/er"])
def test_empty_folders(bundle: Path, name: str) -> None:
    (bundle / name).mkdir(parents=True)
    refused(bundle, f"only folders with files in the bundle, got an empty one: {name};")
    with pytest.raises(BundleError, match="an empty one"):
        write_manifest(bundle, {})
    (bundle / name / "file").write_bytes(b"")
    refused(bundle, f"{name}/file")


def test_links(bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "same"
    target.write_bytes((bundle / "config.json").read_bytes())
    (bundle / "config.json").unlink()
    (bundle / "config.json").symlink_to(target)
    refused(bundle, "symbolic link: config.json")
    (bundle / "config.json").unlink()
    os.link(target, bundle / "config.json")
    refused(bundle, "2 hard links: config.json")
    target.unlink()
    verify(bundle)


def test_linked_manifest(bundle: Path, tmp_path: Path) -> None:
    (bundle / "manifest.json").rename(tmp_path / "manifest.json")
    (bundle / "manifest.json").symlink_to(tmp_path / "manifest.json")
    refused(bundle, "manifest.json")


def test_linked_folder_and_special_files(bundle: Path, tmp_path: Path) -> None:
    os.mkfifo(bundle / "pipe")
    refused(bundle, "special file: pipe")
    (bundle / "pipe").unlink()
    (bundle / "config.json").unlink()
    os.mkfifo(bundle / "config.json")
    refused(bundle, "special file: config.json")
    (bundle / "config.json").unlink()
    shutil.move(bundle / "onnx", tmp_path / "onnx")
    (bundle / "onnx").symlink_to(tmp_path / "onnx")
    refused(bundle, "symbolic link: onnx")


def test_a_folder_in_the_place_of_a_file(bundle: Path) -> None:
    (bundle / "config.json").unlink()
    (bundle / "config.json").mkdir()
    refused(bundle, "config.json")


def test_the_bundle_itself_may_be_reached_by_a_link(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(bundle)
    verify(tmp_path / "current")


@pytest.mark.parametrize("how", ["write", "swap", "touch", "remove"])
def test_a_change_after_hashing_is_seen(bundle: Path, tmp_path: Path, how: str) -> None:
    verified = verify_files(bundle)
    check_unchanged(verified)
    path = bundle / "config.json"
    if how == "write":
        path.write_bytes(path.read_bytes().swapcase())
    elif how == "swap":
        shutil.copy(path, tmp_path / "copy")
        os.replace(tmp_path / "copy", path)
    elif how == "touch":
        os.utime(path, ns=(1, 1))
    else:
        path.unlink()
    with pytest.raises(BundleError, match=r"config\.json"):
        check_unchanged(verified)
    with pytest.raises(BundleError, match=r"config\.json"):
        read_verified(verified, "config.json")
    assert read_verified(verified, "nothing.json") is None
