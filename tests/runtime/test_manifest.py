"""The manifest: canonical, under its own digest, refused when anything is off, never torn."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planish.errors import BundleError, HostError
from planish.runtime import Manifest, read_manifest, update_manifest, write_manifest
from planish.runtime.manifest import MANIFEST, OPTIONAL, canonical, field_names, is_safe_path, parse_manifest

FIELDS: dict[str, Any] = {
    "task": "text-classification",
    "architecture": "BertForSequenceClassification",
    "model_type": "bert",
    "labels": ["négatif", "positive"],
    "vocab_size": 10,
    "max_length": 8,
    "dialects": {
        "ort": {
            "path": "onnx/model.onnx",
            "opset": 21,
            "inputs": [{"name": "input_ids", "dtype": "int64", "shape": ["batch", "sequence"]}],
            "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 2]}],
        }
    },
    "parity": {"ort": {"atol": 0.01, "default_atol": 0.01, "loosened": False, "max_abs_error": 3e-4, "cases": []}},
    "receipts": [{"pass": "int8-linear", "seconds": 1.5}],
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    root = tmp_path / "bundle"
    (root / "onnx").mkdir(parents=True)
    (root / "onnx" / "model.onnx").write_bytes(b"graph")
    return root


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], Any], digest: bool = True) -> None:
    """Changes the JSON and signs it again, so that only the change itself can be refused."""
    import hashlib

    raw = json.loads((bundle / MANIFEST).read_bytes())
    change(raw)
    if digest:
        raw.pop("digest", None)
        raw["digest"] = "sha256:" + hashlib.sha256(canonical(raw)).hexdigest()
    (bundle / MANIFEST).write_bytes(canonical(raw))


def test_written_is_read(bundle: Path) -> None:
    manifest = write_manifest(bundle, FIELDS)
    assert read_manifest(bundle) == manifest
    assert manifest.labels == ("négatif", "positive")
    assert manifest.dialects["ort"].inputs[0].shape == ("batch", "sequence")
    assert manifest.files["onnx/model.onnx"].size == 5
    assert (bundle / MANIFEST).read_bytes() == canonical(manifest.to_json())
    assert os.listdir(bundle.parent) == ["bundle"]


def test_every_key_is_required_or_filled_in(bundle: Path) -> None:
    assert {*FIELDS, *OPTIONAL, "digest", "files"} == set(field_names())
    for key in set(FIELDS) - set(OPTIONAL):
        with pytest.raises(BundleError, match=key):
            write_manifest(bundle, {name: value for name, value in FIELDS.items() if name != key})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_sise": 3}, "did you mean 'vocab_size'"),
        ({"vocab_size": True}, "an integer at manifest.json.vocab_size"),
        ({"vocab_size": 0}, "vocab_size of at least 1"),
        ({"max_length": 8.5}, "an integer"),
        ({"task": "classify"}, "text-classification"),
        ({"labels": "ab"}, "a list"),
        ({"labels": [1]}, "a string at manifest.json.labels.0."),
        ({"pooling": {"mode": "mean"}}, "normalize"),
        ({"profile": 3}, "a string"),
        ({"parity": {"ort": {**FIELDS["parity"]["ort"], "max_abs_error": float("nan")}}}, "finite number"),
        ({"parity": {"ort": {**FIELDS["parity"]["ort"], "max_abs_error": 10**400}}}, "finite number"),
        ({"dialects": {"ort": {**FIELDS["dialects"]["ort"], "path": "onnx/other.onnx"}}}, "other.onnx"),
        ({"digest": "sha256:0"}, "computed"),
        ({"files": {}}, "computed"),
        ({"receipts": [{"x": object()}]}, "JSON"),
        ({"labels": ["\ud800"]}, "JSON"),
    ],
)
def test_wrong_fields_are_refused_and_nothing_is_written(bundle: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        write_manifest(bundle, {**FIELDS, **change})
    assert not (bundle / MANIFEST).exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "something else"),
        (b"[]\n", "a list"),
        (b'{"schema": 1, "schema": 1}\n', "a key twice"),
        (b'{"schema": 1, "a": NaN}\n', "NaN"),
        (b'{"schema": 1, "a": 1e999}\n', "JSON cannot hold"),
        (b'{"schema": 1, "a": "\xff"}\n', "something else"),
        (b'{"schema": 1, "a": "\\ud800"}\n', "JSON cannot hold"),
        (b'{"schema": 2}\n', "schema 2"),
        (b'{"schema": true}\n', "schema True"),
        (b"{}\n", "schema None"),
        (b"[" * 100_000, "something else"),
        (b'{"a": ' * 100_000, "something else"),
        (b'{"schema": ' + b"9" * 5000 + b"}", "something else"),
    ],
)
def test_other_texts_are_refused(bundle: Path, text: bytes, message: str) -> None:
    (bundle / MANIFEST).write_bytes(text)
    with pytest.raises(BundleError, match=message):
        read_manifest(bundle)


def test_other_spelling_is_refused(bundle: Path) -> None:
    write_manifest(bundle, FIELDS)
    raw = json.loads((bundle / MANIFEST).read_bytes())
    (bundle / MANIFEST).write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(BundleError, match="another spelling"):
        read_manifest(bundle)


def test_wrong_digest_is_refused(bundle: Path) -> None:
    write_manifest(bundle, FIELDS)
    rewrite(bundle, lambda raw: raw.update(max_length=9), digest=False)
    with pytest.raises(BundleError, match="digest"):
        read_manifest(bundle)
    rewrite(bundle, lambda raw: raw.update(max_length=9))
    assert read_manifest(bundle).max_length == 9


@pytest.mark.parametrize("name", ["../x", "/x", "a//b", "a\\b", "C:x", "", ".", "a/./b", "a/\x00", MANIFEST])
def test_paths_out_of_the_bundle_are_refused(bundle: Path, name: str) -> None:
    write_manifest(bundle, FIELDS)
    rewrite(bundle, lambda raw: raw["files"].update({name: {"sha256": "0" * 64, "size": 1}}))
    with pytest.raises(BundleError, match="inside the bundle"):
        read_manifest(bundle)


@given(st.text(max_size=20))
def test_safe_paths_stay_inside(name: str) -> None:
    if is_safe_path(name):
        assert os.path.normpath(os.path.join("/root", name)) == "/root/" + name


def test_missing_bundle_and_manifest(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no directory"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="planish export"):
        read_manifest(bundle)
    with pytest.raises(BundleError, match="no directory"):
        write_manifest(tmp_path / "nowhere", FIELDS)


def test_links_are_not_hashed(bundle: Path) -> None:
    (bundle / "link").symlink_to("/etc/passwd")
    with pytest.raises(BundleError, match="symbolic link: link"):
        write_manifest(bundle, FIELDS)


def test_update_keeps_digests_and_changes_the_rest(bundle: Path) -> None:
    before = write_manifest(bundle, FIELDS)
    after = update_manifest(bundle, gates=[{"verdict": "pass", "ratio": 2.5}])
    assert after.gates == ({"verdict": "pass", "ratio": 2.5},)
    assert after.files == before.files
    assert after.digest != before.digest
    assert read_manifest(bundle) == after


@pytest.mark.parametrize("changes", [{"gatse": []}, {"files": {}}, {"digest": "x"}, {"schema": 1}, {"gates": [3]}])
def test_update_refuses_what_may_not_change(bundle: Path, changes: dict[str, Any]) -> None:
    before = write_manifest(bundle, FIELDS)
    with pytest.raises(BundleError):
        update_manifest(bundle, **changes)
    assert read_manifest(bundle) == before


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_every_bit_of_the_manifest_counts(bundle: Path, place: float, bit: int) -> None:
    data = bytearray(_manifest_bytes(bundle))
    data[int(place * len(data))] ^= 1 << bit
    with pytest.raises(BundleError):
        parse_manifest(bytes(data))


def _manifest_bytes(bundle: Path) -> bytes:
    if not (bundle / MANIFEST).exists():
        write_manifest(bundle, FIELDS)
    return (bundle / MANIFEST).read_bytes()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(key=st.sampled_from(sorted(FIELDS)), value=json_values)
def test_any_value_gives_a_manifest_or_a_typed_error(bundle: Path, key: str, value: Any) -> None:
    try:
        manifest = write_manifest(bundle, {**FIELDS, key: value})
    except BundleError:
        return
    assert isinstance(manifest, Manifest)
    assert parse_manifest((bundle / MANIFEST).read_bytes()) == manifest


def test_a_killed_writer_leaves_a_whole_manifest(bundle: Path) -> None:
    write_manifest(bundle, FIELDS)
    code = (
        "import sys, planish.runtime as r\nwhile True:\n r.update_manifest(sys.argv[1], gates=[{'x': 'y' * 200000}])\n"
    )
    for delay in (0.01, 0.03, 0.07):
        with subprocess.Popen([sys.executable, "-c", code, str(bundle)]) as child:
            before = (bundle / MANIFEST).stat().st_ino
            while (bundle / MANIFEST).stat().st_ino == before:
                time.sleep(0.005)
            time.sleep(delay)
            child.send_signal(signal.SIGKILL)
        assert len(read_manifest(bundle).gates) == 1
        assert sorted(os.listdir(bundle)) == [MANIFEST, "onnx"]


def test_a_full_disk_leaves_the_old_manifest(bundle: Path) -> None:
    before = write_manifest(bundle, FIELDS)
    code = (
        "import resource, signal, sys, planish.runtime as r, planish.errors as e\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n r.update_manifest(sys.argv[1], gates=[{'x': 'y' * 200000}])\n"
        "except e.HostError as error:\n sys.exit(error.exit_code)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(bundle)], check=False).returncode == HostError.exit_code
    assert read_manifest(bundle) == before
    assert os.listdir(bundle.parent) == ["bundle"]
