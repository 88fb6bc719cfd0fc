"""The format of baseline files: it gives back what it was given, and anything else is one typed error."""

from __future__ import annotations

import base64
import copy
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from planish.errors import InputError, PlanishError
from planish.gate import GateReport, gate, record_baseline
from planish.gate.baseline_file import (
    BaselineFile,
    RecordedBundle,
    RecordedData,
    RecordedSample,
    RecordedWindows,
    digest_of,
    parse_baseline,
    spelled,
    times_of,
)
from planish.gate.clock import Timing
from planish.gate.fingerprint import Fingerprint
from planish.gate.packed import pack, unpack_floats, unpack_integers

MakeBundle = Callable[..., Path]
HERE = Fingerprint("a cpu", "x86_64", None, None, None, "CPUExecutionProvider", "1.26.0", "2.0.0", 1, None)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8) | st.sampled_from(["float32:", "int32:AAAA", "sha256:" + "0" * 64, "text-generation"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


def file_of(task: str, samples: tuple[RecordedSample, ...]) -> BaselineFile:
    return BaselineFile(
        schema=1,
        planish="0.1.0",
        bundle=RecordedBundle("old.bundle", "sha256:" + "1" * 64, 1000, 70_000_000, {"linear": "int8"}),
        task=task,
        labels=("no", "yes") if task == "text-classification" else None,
        problem_type=None,
        vocab_size=17,
        fingerprint=HERE,
        data=RecordedData("data.jsonl", "sha256:" + "2" * 64, len(samples), False),
        latency=times_of({"1x32 inference": [Timing(0.25, 0.5), Timing(0.125, 0.5)]}, "cpu"),
        windows=RecordedWindows(512, "sha256:" + "3" * 64) if task == "text-generation" else None,
        samples=samples,
    )


FILES = [
    file_of("text-classification", (RecordedSample(1, labels=(1,), values=pack(np.array([0.5, 2.0]))),
                                    RecordedSample(2, failed="out of memory"))),
    file_of("token-classification", (RecordedSample(3, spans=((0, 4, "GOOD"),), tokens=pack(np.array([1, 0]))),)),
    file_of("question-answering",
            (RecordedSample(1, answer="\u00e9t\u00e9", answer_span=(3, 6), values=pack(np.array([0.1]))),)),
    file_of("text-generation", (RecordedSample(1, tokens=pack(np.array([5, 6])), loss=4.25),)),
]  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.task)
def test_what_is_written_is_read(file: BaselineFile) -> None:
    assert parse_baseline(spelled(file).encode()) == file


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_arrays_come_back_to_the_bit(data: st.DataObject) -> None:
    wide, narrow = (
        data.draw(arrays.arrays(kind, st.integers(0, 9), elements={"allow_nan": False, "allow_infinity": False}))
        for kind in (np.float64, np.float32)
    )
    assert unpack_floats(pack(wide)).tobytes() == wide.tobytes()
    assert unpack_floats(pack(narrow)).tobytes() == narrow.astype(np.float64).tobytes()
    assert pack(narrow.astype(np.float64)).startswith("float32:"), "what float32 holds takes no more"
    integers = data.draw(arrays.arrays(np.int64, st.integers(0, 9)))
    assert unpack_integers(pack(integers)).tolist() == integers.tolist()


def test_arrays_are_little_endian_numbers() -> None:
    """Oracle: the struct module."""
    assert pack(np.array([1.5, -2.0])) == "float32:" + base64.b64encode(struct.pack("<2f", 1.5, -2.0)).decode()
    assert pack(np.array([0.1])) == "float64:" + base64.b64encode(struct.pack("<d", 0.1)).decode()
    assert pack(np.array([70_000])) == "int32:" + base64.b64encode(struct.pack("<i", 70_000)).decode()
    assert pack(np.array([1 << 40])) == "int64:" + base64.b64encode(struct.pack("<q", 1 << 40)).decode()
    for text in ("float32", "int32:AAAA", "float32:AA==", "float32:A", "float32:\u00e9"):
        with pytest.raises(ValueError, match=r"no array|base64|buffer"):
            unpack_floats(text)
    with pytest.raises(ValueError, match="not finite"):
        unpack_floats("float32:" + base64.b64encode(struct.pack("<f", float("nan"))).decode())


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=150, deadline=None)
def test_any_bytes_and_any_json_are_one_error(data: bytes) -> None:
    with pytest.raises(InputError):
        parse_baseline(data)


def read_or_refused(data: bytes) -> BaselineFile | None:
    """The file, or None for one error of one line that says what to type."""
    try:
        return parse_baseline(data)
    except InputError as refused:
        error = refused
    assert len(str(error).splitlines()) == 1
    assert "planish baseline BUNDLE" in error.fix
    return None


@given(st.sampled_from(FILES), st.data())
@settings(max_examples=80, deadline=None)
def test_a_changed_or_torn_text_is_one_error(file: BaselineFile, data: st.DataObject) -> None:
    """Or the same file: a space more outside of strings changes no value."""
    text = spelled(file).encode()
    at = data.draw(st.integers(0, len(text) - 1))
    put = data.draw(st.binary(max_size=2))
    for changed in (text[:at], text[:at] + put + text[at + 1 :], text[:at] + put + text[at:]):
        assert read_or_refused(changed) in (file, None)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in inner for found in ((*path, key), *places(item, (*path, key)))]


def edited(raw: dict[str, Any], data: st.DataObject) -> bytes:
    """A value replaced, taken out or put in, under a digest that is right."""
    new = copy.deepcopy(raw)
    *above, last = data.draw(st.sampled_from(places(new)))
    holder: Any = new
    for key in above:
        holder = holder[key]
    deed = data.draw(st.sampled_from(["replace", "remove", "double"]))
    if deed == "replace":
        holder[last] = data.draw(JSON)
    elif deed == "remove":
        del holder[last]
    elif isinstance(holder, list):
        holder.append(holder[last])
    else:
        holder[f"{last}s"] = holder[last]
    return json.dumps({**new, "digest": digest_of(new)}).encode()


@given(st.sampled_from(FILES), st.data())
@settings(max_examples=200, deadline=None)
def test_an_edited_file_is_one_error_or_makes_sense(file: BaselineFile, data: st.DataObject) -> None:
    found = read_or_refused(edited(file.to_json(), data))
    if found is not None:
        assert parse_baseline(spelled(found).encode()) == found
        assert len(found.outputs.items) == len(found.samples)


@pytest.mark.parametrize("task", ["text-classification", "text-generation"])
def test_no_edited_file_trips_the_gate(make_bundle: MakeBundle, tmp_path: Path, task: str) -> None:
    texts = ["a good film", "the whale", "not very fine film"]
    new, path = make_bundle("new", task, seed=1, noise=0.1), record_baseline(
        make_bundle("old", task), tmp_path / "k", texts=texts, latency=False
    )  # fmt: skip
    raw = parse_baseline(path.read_bytes()).to_json()

    @given(st.data())
    @settings(max_examples=30, deadline=None)
    def try_one(data: st.DataObject) -> None:
        path.write_bytes(edited(raw, data))
        try:
            report = gate(new, path, texts=texts, latency=False, across_devices=True)
        except PlanishError:
            return
        assert isinstance(report, GateReport)
        json.dumps(report.to_json(), allow_nan=False)
        assert report.to_markdown()

    try_one()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a baseline file"),
        ("[" * 100_000, "a baseline file"),
        ("{}", "something without a schema"),
        ('{"schema": 2}', "schema 2"),
        ('{"schema": true}', "schema True"),
        ('{"schema": 1, "schema": 1}', "twice"),
        ('{"schema": NaN}', "NaN"),
        ('{"schema": 1, "digest": "sha256:0"}', "digest does not match"),
        ('{"verdict": "pass", "schema": 1}', "digest does not match"),
        ("1" * 5000, "a baseline file"),
    ],
)
def test_what_is_none_is_named(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_baseline(text.encode())
