"""LoadGen on toy bundles: every scenario really runs, what is reported is what LoadGen logged, and what goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from planish.cli import planish
from planish.errors import HostError, InconclusiveError, InputError, RequestError
from planish.gate import load_run, loadgen
from planish.gate.load_plan import LoadPlan
from planish.gate.load_report import read_log, reasons_of, times_of
from planish.gate.load_run import answer_of, requests_for
from planish.runtime import read_manifest

pytest.importorskip("mlperf_loadgen", reason="LoadGen is not installed: pip install 'planish[loadgen]'")

MakeBundle = Callable[..., Path]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(["a good film", "the sea", "a very bad ship"] * 20), encoding="utf-8")
    return file


def test_one_after_the_other(make_bundle: MakeBundle, texts: Path, tmp_path: Path) -> None:
    report = loadgen(make_bundle("one"), "SingleStream", data=texts, seconds=1, threads=1, logs=tmp_path / "logs")
    assert report.valid
    assert report.exit_code == 0
    assert report.reasons == ()
    assert report.queries == report.samples > 64
    assert report.latency["min"] <= report.latency["p50"] <= report.latency["p99"] <= report.latency["max"]
    assert report.queries / 2 < report.samples_per_second < 1.05 * report.queries  # in a second, or a little more
    assert report.query == report.first_token == report.per_token == {}
    assert report.tokens_per_second is None
    said = (tmp_path / "logs/mlperf_log_summary.txt").read_text(encoding="utf-8")
    p90 = next(line for line in said.splitlines() if line.startswith("90.00 percentile latency (ns)"))
    assert report.latency["p90"] == int(p90.split(":")[1]) / 1e9
    assert "VALID" in report.to_markdown()
    assert f"{1000 * report.latency['p90']:.3f}" in report.to_markdown()
    assert json.loads(json.dumps(report.to_json()))["settings"]["data"]["requests"] == 60


def test_several_at_once_and_all_at_once(make_bundle: MakeBundle, texts: Path) -> None:
    bundle = make_bundle("one")
    several = loadgen(bundle, "MultiStream", data=texts, seconds=1, samples_per_query=5)
    assert several.samples == 5 * several.queries
    assert several.query["p50"] >= several.latency["min"]
    assert several.samples_per_second == pytest.approx(5 / several.query["mean"])
    whole = loadgen(bundle, "Offline", data=texts, seconds=1)
    assert whole.queries == 1
    assert whole.samples > 100
    assert whole.samples_per_second == pytest.approx(whole.samples / whole.latency["max"], rel=0.05)


@pytest.mark.parametrize("scenario", ["SingleStream", "Offline"])
def test_a_bundle_faster_than_it_was_in_warming_up_is_asked_again(
    make_bundle: MakeBundle, texts: Path, monkeypatch: pytest.MonkeyPatch, scenario: str
) -> None:
    """A machine that was busy while it warmed up: LoadGen runs out of requests long before the time is up."""
    slow = "import planish.gate.load_child as it; it.Served.warm_up = lambda served: (0.2, 0.05); it.child()"
    monkeypatch.setattr(load_run, "CHILD", slow)
    bundle = make_bundle("one")
    report = loadgen(bundle, scenario, data=texts, seconds=1)
    assert report.valid
    assert report.samples > 100  # 25 were enough at 0.05 s each
    monkeypatch.setattr(load_run, "CHILD", slow.replace("it.child()", "it.RUNS = 1; it.child()"))
    short = loadgen(bundle, scenario, data=texts, seconds=1)
    assert (short.valid, short.exit_code) == (False, 3)
    assert "before 1 s had passed" in short.reasons[0]


def test_a_server_keeps_its_promise_or_not(make_bundle: MakeBundle, texts: Path) -> None:
    bundle = make_bundle("one")
    kept = loadgen(bundle, "Server", data=texts, seconds=2, target_qps=600, target_seconds=5, seed=3)
    assert kept.valid
    assert kept.exit_code == 0
    assert kept.queries == pytest.approx(1200, rel=0.15)  # Poisson: 600 a second
    missed = loadgen(bundle, "Server", data=texts, seconds=1, target_qps=50, target_seconds=1e-6)
    assert missed.missed
    assert missed.exit_code == 1
    assert f"{missed.queries} of {missed.queries} answers came late" in missed.reasons[0]
    few = loadgen(bundle, "Server", data=texts, seconds=0.5, target_qps=20, target_seconds=5)
    assert not few.valid
    assert not few.missed
    assert few.exit_code == 3
    assert "give more --seconds" in few.reasons[0]


def test_a_decoder_tells_when_its_first_token_is_there(make_bundle: MakeBundle) -> None:
    bundle = make_bundle("writer", "text-generation")
    report = loadgen(bundle, "SingleStream", seconds=1, new_tokens=6)
    assert 0 < report.first_token["p50"] < report.latency["p50"]
    further = (report.latency["mean"] - report.first_token["mean"]) / 5
    assert report.per_token["mean"] == pytest.approx(further, rel=0.3)
    assert report.tokens_per_second is not None
    assert report.tokens_per_second <= 6 * report.samples
    with pytest.raises(InputError, match="target_token_seconds above 0"):
        loadgen(bundle, "Server", target_qps=5, target_seconds=1)
    server = loadgen(bundle, "Server", seconds=1, target_qps=50, target_seconds=5, target_token_seconds=5, new_tokens=4)
    assert server.first_token
    assert server.per_token
    assert not server.missed


@pytest.mark.parametrize("task", ["token-classification", "question-answering", "fill-mask", "feature-extraction"])
def test_every_task_can_be_asked(make_bundle: MakeBundle, task: str) -> None:
    report = loadgen(make_bundle("one", task), "SingleStream", seconds=0.3)
    assert report.samples > 0
    assert report.bundle["task"] == task


def test_what_is_asked(make_bundle: MakeBundle, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"sentence1": "a film", "sentence2": "the sea", "score": 1}\n', encoding="utf-8")
    embedder = read_manifest(make_bundle("embedder", "feature-extraction"))
    assert requests_for(embedder, pairs)[1] == [["a film"], ["the sea"]]
    answerer = read_manifest(make_bundle("answerer", "question-answering"))
    assert all(len(request) == 2 for request in requests_for(answerer, None)[1])
    writer = read_manifest(make_bundle("writer", "text-generation"))
    prompts = requests_for(writer, None)[1]
    assert len(prompts) >= 60
    assert all(0 < len(prompt) <= 200 for (prompt,) in prompts)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scenario": "SingelStream"}, "did you mean 'SingleStream'"),
        ({"scenario": "Server"}, "--target-qps"),
        ({"scenario": "Server", "target_qps": 5.0}, "--target-ms"),
        ({"scenario": "Server", "target_qps": float("nan"), "target_seconds": 1.0}, "target_qps above 0"),
        ({"scenario": "Offline", "target_qps": 5.0}, "leave target_qps out"),
        ({"scenario": "Server", "target_qps": 5.0, "target_seconds": 1.0, "target_token_seconds": 1.0}, "a decoder"),
        ({"scenario": "Offline", "seconds": 0.0}, "seconds as a finite number"),
        ({"scenario": "Offline", "batch_size": 0}, "batch_size of at least 1"),
        ({"scenario": "Offline", "new_tokens": True}, "new_tokens of at least 2"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        LoadPlan(**settings).check(decoder=False)


def test_what_the_child_says_is_raised_as_what_it_was(make_bundle: MakeBundle, texts: Path) -> None:
    bundle = make_bundle("one")
    (bundle / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        loadgen(bundle, "SingleStream", data=texts, seconds=0.3)
    masker = make_bundle("masker", "fill-mask")
    long = texts.with_name("long.txt")
    long.write_text("the sea " * 400 + "[MASK]", encoding="utf-8")  # the mask would be cut off
    with pytest.raises(RequestError):
        loadgen(masker, "SingleStream", data=long, seconds=0.3)
    with pytest.raises(InconclusiveError, match="exit code -11"):
        answer_of("", "", -11)
    with pytest.raises(InconclusiveError, match="no memory"):
        answer_of('{"error": "MemoryError", "words": ["no memory"]}\n', "", 1)


def test_a_request_that_fails_while_loadgen_waits_ends_the_run(make_bundle: MakeBundle, tmp_path: Path) -> None:
    """The warm-up asks the first request alone; the batch of the second text is asked by LoadGen only."""
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(["a [MASK] film"] * 40 + ["the sea " * 400 + "[MASK]"]), encoding="utf-8")
    with pytest.raises(RequestError):
        loadgen(make_bundle("masker", "fill-mask"), "SingleStream", data=file, seconds=5, batch_size=4)


def test_late_answers_end_the_run(make_bundle: MakeBundle, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_run, "OPENING", 0.0)
    monkeypatch.setattr(load_run, "PATIENCE", 0.1)
    with pytest.raises(InconclusiveError, match="fewer --target-qps"):
        loadgen(make_bundle("one"), "SingleStream", data=texts, seconds=5)


def test_without_loadgen_the_extra_is_named(
    make_bundle: MakeBundle, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_run, "find_spec", lambda name: None)
    with pytest.raises(HostError, match=r"planish\[loadgen\]"):
        loadgen(make_bundle("one"), "SingleStream", data=texts)


def test_a_log_is_read_line_by_line() -> None:
    def line(key: str, value: Any) -> str:
        return f":::MLLOG {json.dumps({'key': key, 'value': value})}"

    facts = {"result_validity": "INVALID", "result_min_duration_met": False, "result_query_count": 1,
             "result_mean_latency_ns": 2_000_000, "result_99.90_percentile_latency_ns": 5,
             "result_first_token_90.00_percentile_latency_ns": 7}  # fmt: skip
    lines = [line(*fact) for fact in facts.items()]
    log = read_log(["Loaded.", ':::MLLOG {"key": "path", "value": "C:\\x"}', *lines])
    assert times_of(log, "latency") == {"mean": 0.002, "p99.9": 5e-9}
    assert times_of(log, "first_token") == {"p90": 7e-9}
    assert reasons_of(log, LoadPlan("Offline", seconds=3)) == [
        "all was answered before 3 s had passed: run it again on a quieter machine"
    ]
    assert reasons_of({"result_validity": "INVALID"}, LoadPlan("Offline")) == ["LoadGen does not say why"]
    with pytest.raises(InconclusiveError, match="a result in LoadGen's log"):
        read_log(lines[1:])


def test_the_command(make_bundle: MakeBundle, texts: Path) -> None:
    bundle = make_bundle("one")
    words = ["bench", "loadgen", str(bundle), "--data", str(texts), "--seconds", "1", "--threads", "1"]
    done = CliRunner().invoke(planish, [*words, "--scenario", "offline", "--json"], standalone_mode=False)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["loadgen"]["scenario"] == "Offline"
    assert done.return_value == result["exit_code"] == result["loadgen"]["exit_code"]
    server = ["--scenario", "server", "--target-qps", "40", "--target-ms", "0.001"]
    late = CliRunner().invoke(planish, [*words, *server], standalone_mode=False)
    assert late.return_value == 1
    assert "LoadGen Server: INVALID" in late.stdout
    assert "lower --target-qps" in late.stdout
