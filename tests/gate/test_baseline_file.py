"""A baseline kept in a file: the gate says of it what it says of the open bundle, and refuses what does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from planish.errors import InconclusiveError, InputError
from planish.gate import GateReport, Limits, gate, record_baseline
from planish.gate.baseline_file import BaselineFile, read_baseline, spelled
from planish.gate.checks import Check
from planish.gate.html_report import html_report
from planish.gate.junit import junit
from planish.runtime.manifest import Task

MakeBundle = Callable[..., Path]
TASKS = get_args(Task)
TEXTS = ["a good film", "the whale is bad", "not very fine", "the sea the ship"] * 15
ONLY_OPEN, ONLY_FILE = {"KL divergence"}, {"KL divergence", "size ratio"}


def check_of(report: GateReport, name: str) -> Check:
    return next(check for check in report.checks if check.name == name)


def changed(path: Path, **fields: Any) -> Path:
    """The file with other fields, under a digest that is right."""
    path.write_text(spelled(replace(read_baseline(path), **fields)), encoding="utf-8")
    return path


def elsewhere(path: Path, **fields: Any) -> Path:
    return changed(path, fingerprint=replace(read_baseline(path).fingerprint, **fields))


@pytest.fixture
def kept(make_bundle: MakeBundle, tmp_path: Path) -> Path:
    """A classifier's file, without times."""
    return record_baseline(make_bundle("old"), tmp_path / "kept", texts=TEXTS, latency=False)


def assert_same(live: GateReport, filed: GateReport) -> None:
    """Every check, metric, slice, failure and line of the open baseline, to the bit."""
    judged = [check.to_json() for check in live.checks if check.name not in ONLY_OPEN]
    assert judged == [check.to_json() for check in filed.checks if check.name not in ONLY_FILE]
    assert filed.verdict == live.verdict
    for name in ("metrics", "slices", "failures", "data", "candidate", "baseline"):
        assert getattr(filed, name) == getattr(live, name), name
    without = [{key: value for key, value in line.items() if key != "divergence"} for line in live.samples]
    assert without == [{key: value for key, value in line.items() if key != "divergence"} for line in filed.samples]


@pytest.mark.parametrize("task", TASKS)
def test_a_file_is_judged_as_the_open_bundle(make_bundle: MakeBundle, tmp_path: Path, task: str) -> None:
    new, old = make_bundle("new", task, seed=1, noise=0.2), make_bundle("old", task)
    live = gate(new, old, texts=TEXTS, latency=False, seed=3)
    path = record_baseline(old, tmp_path / "kept", texts=TEXTS, latency=False)
    shutil.rmtree(old)
    assert_same(live, gate(new, path, texts=TEXTS, latency=False, seed=3))


LABELLED: dict[str, list[dict[str, Any]]] = {
    "text-classification": [{"text": f"a {word} film", "label": int(word == "good"), "part": part}
                            for word in ("good", "bad", "fine") for part in ("x", "y") for _ in range(25)],
    "token-classification": [{"text": f"the {word} ship", "spans": [[4, 4 + len(word), "GOOD"]]}
                             for word in ("good", "fine") for _ in range(30)],
    "question-answering": [{"question": "the sea" if n else "the sea " * 40, "context": "a ship",
                            "answers": ["ship"] * (n % 2)} for n in range(150)],
    "feature-extraction": [{"sentence1": f"a {one} film", "sentence2": f"the {other} sea", "score": int(one == other)}
                           for one in ("good", "bad", "fine") for other in ("good", "awful", "not") for _ in range(5)],
    "text-generation": [{"prompt": f"a {word}", "reference": ["film", "the sea"]} for word in ("good", "bad")] * 15,
}  # fmt: skip


@pytest.mark.parametrize("task", list(LABELLED))
def test_labels_slices_and_failures_too(make_bundle: MakeBundle, tmp_path: Path, task: str) -> None:
    """Of the questions the first is longer than the model takes: both sides fail on it."""
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, LABELLED[task])), encoding="utf-8")
    new, old = make_bundle("new", task, seed=1, noise=0.3), make_bundle("old", task)
    live = gate(new, old, data=data, latency=False)
    path = record_baseline(old, tmp_path / "k", data=data, latency=False)
    assert_same(live, gate(new, path, data=data, latency=False))
    assert live.metrics
    assert len(live.failures) == (2 if task == "question-answering" else 0)
    assert bool(live.slices) == (task in ("text-classification", "question-answering"))


def test_windows_hold_the_bigram_tables_losses_and_best_tokens(make_bundle: MakeBundle, tmp_path: Path) -> None:
    """Oracle: the toy decoder's next token depends on the last one alone."""
    import onnx
    from onnx import numpy_helper
    from tokenizers import Tokenizer

    old = make_bundle("old", "text-generation")
    file = read_baseline(record_baseline(old, tmp_path / "k", texts=[" ".join(TEXTS)], latency=False))
    graph = onnx.load(str(old / "onnx" / "ort" / "model.onnx")).graph
    table = next(numpy_helper.to_array(t) for t in graph.initializer if t.name == "table").astype(np.float64)
    logs = table - np.log(np.exp(table).sum(axis=1, keepdims=True))
    ids = Tokenizer.from_file(str(old / "tokenizer.json")).encode(" ".join(TEXTS)).ids
    assert file.windows is not None
    cut = [ids[start : start + file.windows.context] for start in range(0, len(ids), file.windows.context)]
    assert len(file.samples) == len(cut) > 5
    for window, said in zip(cut, file.samples, strict=True):
        assert said.loss == pytest.approx(-sum(logs[a, b] for a, b in pairwise(window)), rel=1e-5)
        assert said.top.tolist() == [int(table[token].argmax()) for token in window[:-1]]


def test_what_a_decoders_file_lacks_is_said(make_bundle: MakeBundle, tmp_path: Path) -> None:
    new = make_bundle("new", "text-generation", seed=1, noise=0.01)
    path = record_baseline(make_bundle("old", "text-generation"), tmp_path / "k", texts=TEXTS, latency=False)
    report = gate(new, path, texts=TEXTS, latency=False)
    missing = check_of(report, "KL divergence")
    assert not missing.required
    assert "not available" in missing.reason
    assert "| KL divergence | reported | not available |" in report.to_markdown()
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["verdict"] == report.verdict


def test_a_broken_candidate_is_named_beside_a_file(make_bundle: MakeBundle, tmp_path: Path) -> None:
    for task in ("text-classification", "text-generation"):
        path = record_baseline(make_bundle(f"old {task}", task), tmp_path / "k", texts=TEXTS, latency=False)
        report = gate(make_bundle(f"new {task}", task, seed=1, noise=float("nan")), path, texts=TEXTS, latency=False)
        assert report.verdict == "regress"
        assert {failure.side for failure in report.failures} == {"candidate"}
        assert len(report.failures) == len(TEXTS)


def test_times_are_reported_and_never_judged(make_bundle: MakeBundle, tmp_path: Path, step_clock: Any) -> None:
    """The clock moves at each look, so that every block takes the same; the file's times are then made a tenth."""
    new, old = make_bundle("new", "text-generation"), make_bundle("old", "text-generation")
    path = record_baseline(old, tmp_path / "k", texts=TEXTS, clock=step_clock)
    file = read_baseline(path)
    assert file.latency is not None
    assert list(file.latency.times) == ["1x64 prefill", "1x64 decode"]
    assert file.bundle.peak_memory_bytes is not None
    assert file.bundle.peak_memory_bytes > 10e6
    tenths = {name: tuple(seconds / 10 for seconds in one.cpu) for name, one in file.latency.times.items()}
    times = {
        name: replace(one, cpu=tenths[name], median_cpu=float(np.median(tenths[name])))
        for name, one in file.latency.times.items()
    }
    changed(path, latency=replace(file.latency, times=times))
    report = gate(new, path, texts=TEXTS, clock=step_clock)
    assert report.verdict == "pass", report.to_markdown()
    for name in times:
        check = check_of(report, f"latency {name}")
        assert not check.required
        assert check.value == pytest.approx(10)
        assert "not judged: it was not measured in the same session" in check.reason
    assert check_of(report, "peak memory ratio").value == pytest.approx(1, rel=0.2)
    assert check_of(report, "size ratio").value == 1
    assert not any(check_of(report, name).required for name in ("peak memory ratio", "size ratio"))


def test_a_file_without_times_says_so(make_bundle: MakeBundle, kept: Path, step_clock: Any) -> None:
    report = gate(make_bundle("new"), kept, texts=TEXTS, clock=step_clock)
    assert "holds no times" in check_of(report, "latency").reason
    assert "not recorded" in check_of(report, "peak memory ratio").reason
    assert not check_of(report, "latency").required


def test_another_device_is_refused_field_by_field_or_marked(make_bundle: MakeBundle, kept: Path) -> None:
    new = make_bundle("new")
    here = read_baseline(kept).fingerprint
    elsewhere(kept, numpy="1.0", cpu="Cray-1")
    with pytest.raises(InputError, match="the device of old") as refused:
        gate(new, kept, texts=TEXTS, latency=False)
    assert refused.value.expected.endswith("cpu Cray-1, numpy 1.0")
    assert refused.value.got == f"cpu {here.cpu}, numpy {here.numpy}"
    assert "--across-devices" in refused.value.fix
    report = gate(new, kept, texts=TEXTS, latency=False, across_devices=True)
    words = f"baseline from another device: cpu Cray-1 (here {here.cpu}), numpy 1.0 (here {here.numpy})"
    assert f"**{words}**" in report.to_markdown()
    assert words in report.to_json()["notes"]
    assert "baseline from another device: cpu Cray-1" in html_report(report)
    assert "baseline from another device: cpu Cray-1" in junit(report)


def test_a_directory_gives_the_file_of_this_device_and_task(make_bundle: MakeBundle, kept: Path) -> None:
    folder, new = kept.parent, make_bundle("new")
    shutil.copy(kept, folder / "old.00000000.json")
    elsewhere(folder / "old.00000000.json", cpu="Cray-1")
    record_baseline(make_bundle("tags", "token-classification"), folder, texts=TEXTS, latency=False)
    (folder / "notes.json").write_text("{}")
    assert gate(new, folder, texts=TEXTS, latency=False).notes[0].startswith(f"baseline from a file: {kept.name}")
    shutil.copy(kept, folder / "twin.00000000.json")
    with pytest.raises(InputError, match=r"got several: .*\(text-classification, this device\).*name the file itself"):
        gate(new, folder, texts=TEXTS, latency=False)
    kept.unlink()
    (folder / "twin.00000000.json").unlink()
    with pytest.raises(InputError, match=r"got none: old.00000000.json \(text-classification, another cpu\), tags"):
        gate(new, folder, texts=TEXTS, latency=False)
    report = gate(new, folder, texts=TEXTS, latency=False, across_devices=True)
    assert "cpu Cray-1" in report.notes[1]
    (folder / "old.00000000.json").write_text("{")
    with pytest.raises(InputError, match=r"a baseline file: old.00000000.json"):
        gate(new, folder, texts=TEXTS, latency=False)


def test_a_directory_of_nothing_is_neither_bundle_nor_baselines(make_bundle: MakeBundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a bundle or baseline files in .*manifest.json"):
        gate(make_bundle("new"), tmp_path, texts=TEXTS)
    with pytest.raises(InputError, match=r"a baseline file at .*nothing"):
        read_baseline(tmp_path / "none.json")
    with pytest.raises(InputError, match=r"a baseline file at .*a directory"):
        read_baseline(tmp_path)


@pytest.mark.parametrize(
    ("task", "fields", "words"),
    [
        ("text-classification", {"labels": ["positive", "negative"]}, "labels"),
        ("text-classification", {"problem_type": "multi_label_classification"}, "problem_type"),
        ("token-classification", {"vocab_size": 99}, "vocab_size"),
    ],
)
def test_a_baseline_of_another_kind_is_refused(
    make_bundle: MakeBundle, tmp_path: Path, task: str, fields: dict[str, Any], words: str
) -> None:
    path = record_baseline(make_bundle("old", task, **fields), tmp_path / "k", texts=TEXTS, latency=False)
    with pytest.raises(InputError, match=words):
        gate(make_bundle("new", task), path, texts=TEXTS, latency=False)
    with pytest.raises(InputError, match="task"):
        gate(make_bundle("vectors", "feature-extraction"), path, texts=TEXTS, latency=False)


def test_other_data_is_refused(make_bundle: MakeBundle, tmp_path: Path, kept: Path, reviews: Path) -> None:
    new = make_bundle("new")
    for options in ({"data": reviews}, {"texts": TEXTS[:-1]}, {"texts": [*TEXTS[1:], TEXTS[0]]}, {}):
        with pytest.raises(InputError, match=r"the data the baseline was asked, texts \(60 samples, sha256:\w{8}\)"):
            gate(new, kept, latency=False, **options)  # type: ignore[arg-type]
    path = record_baseline(make_bundle("other"), tmp_path / "k", data=reviews, latency=False)
    lines = reviews.read_text().splitlines()
    flipped = {"positive": "negative", "negative": "positive"}[json.loads(lines[7])["label"]]
    lines[7] = json.dumps({**json.loads(lines[7]), "label": flipped})
    reviews.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"asked, reviews.jsonl"):
        gate(new, path, data=reviews, latency=False)
    lines[7] = json.dumps({**json.loads(lines[7]), "label": {"positive": "negative", "negative": "positive"}[flipped]})
    reviews.write_text("\n".join(json.dumps({**json.loads(line), "source": "web"}) for line in lines))
    assert gate(new, path, data=reviews, latency=False).metrics, "a column more is no other question"


def test_a_decoder_with_another_tokenizer_is_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    path = record_baseline(make_bundle("old", "text-generation"), tmp_path / "k", texts=TEXTS, latency=False)
    file = read_baseline(path)
    assert file.windows is not None
    changed(path, windows=replace(file.windows, digest="sha256:" + "0" * 64))
    with pytest.raises(InputError, match="the same tokenizer"):
        gate(make_bundle("new", "text-generation"), path, texts=TEXTS, latency=False)


@pytest.mark.parametrize("limits", [Limits(max_kl=0.1), Limits(require_speedup=2.0), Limits(max_wall_ratio=1.1)])
def test_limits_that_take_an_open_baseline_are_refused(make_bundle: MakeBundle, kept: Path, limits: Limits) -> None:
    with pytest.raises(InputError, match="a bundle as the baseline for"):
        gate(make_bundle("new"), kept, texts=TEXTS, limits=limits)


def test_an_open_baseline_is_on_this_device(make_bundle: MakeBundle) -> None:
    with pytest.raises(InputError, match="a baseline file with across_devices"):
        gate(make_bundle("new"), make_bundle("old"), texts=TEXTS, across_devices=True)


def test_a_file_is_written_whole_once_or_not_at_all(make_bundle: MakeBundle, tmp_path: Path) -> None:
    old, folder = make_bundle("old"), tmp_path / "kept"

    def stop(stage: str, done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record_baseline(old, folder, texts=TEXTS, latency=False, progress=stop)
    assert not folder.exists()
    path = record_baseline(old, folder, texts=TEXTS, latency=False)
    assert path.name == f"old.{read_baseline(path).fingerprint.digest}.json"
    before = path.read_bytes()
    with pytest.raises(InputError, match="--replace"):
        record_baseline(old, folder, texts=TEXTS[:4], latency=False, progress=stop)
    assert path.read_bytes() == before
    assert record_baseline(old, folder, texts=TEXTS[:4], latency=False, replace=True) == path
    assert read_baseline(path).data.samples == 4
    assert [entry.name for entry in folder.iterdir()] == [path.name]


def test_what_cannot_be_recorded_is_one_error(make_bundle: MakeBundle, tmp_path: Path) -> None:
    old = make_bundle("old")
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "none" / "k", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="a directory"):
            record_baseline(old, folder, texts=TEXTS, latency=False)
    with pytest.raises(InputError, match="data or texts"):
        record_baseline(old, tmp_path / "k", texts=TEXTS, data=tmp_path / "d.jsonl")
    with pytest.raises(InputError, match="seconds"):
        record_baseline(old, tmp_path / "k", texts=TEXTS, seconds=0)
    broken = make_bundle("broken", seed=1, noise=float("nan"))
    with pytest.raises(InconclusiveError, match=f"failures on {len(TEXTS)} of {len(TEXTS)} samples; sample 1: "):
        record_baseline(broken, tmp_path / "k", texts=TEXTS, latency=False)
    assert not (tmp_path / "k").exists()


def test_the_text_is_a_line_a_sample_and_names_no_folder(make_bundle: MakeBundle, kept: Path, tmp_path: Path) -> None:
    text = kept.read_text(encoding="utf-8")
    assert sum(line.startswith(' {"line": ') for line in text.splitlines()) == len(TEXTS)
    assert str(tmp_path) not in text
    kept.write_bytes(text.replace("\n", "\r\n").encode())
    assert isinstance(read_baseline(kept), BaselineFile), "version control may change line ends"


def test_texts_that_are_no_unicode_are_failures_and_no_traceback(make_bundle: MakeBundle, tmp_path: Path) -> None:
    """A lone surrogate: no tokenizer takes it, and no JSON file."""
    texts = [*TEXTS, *TEXTS, "a \ud800 film"]
    path = record_baseline(make_bundle("old"), tmp_path / "k", texts=texts, latency=False)
    assert [sample.line for sample in read_baseline(path).samples if sample.failed] == [len(texts)]
    report = gate(make_bundle("new"), path, texts=texts, latency=False)
    assert {failure.line for failure in report.failures} == {len(texts)}
