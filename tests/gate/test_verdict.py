"""The whole gate on toy bundles: it passes the same model, and it can fail."""

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

from planish.errors import BundleError, DataError, InputError
from planish.gate import GateReport, Limits, Verdict, gate
from planish.gate.checks import Check
from planish.gate.outputs import Failure
from planish.gate.verdict import default_texts, failure_check, plan_of
from planish.runtime.manifest import Task
from tests.gate.work_clock import WorkClock

MakeBundle = Callable[..., Path]
TASKS = get_args(Task)
TEXTS = ["a good film", "the whale is bad", "not very fine", "the sea the ship"] * 30


def check_of(report: GateReport, name: str) -> Check:
    return next(check for check in report.checks if check.name == name)


@pytest.mark.parametrize("task", TASKS)
def test_the_same_model_passes(make_bundle: MakeBundle, step_clock: Any, task: str) -> None:
    report = gate(make_bundle("new", task), make_bundle("old", task), clock=step_clock)
    assert report.verdict == "pass", report.to_markdown()
    assert report.exit_code == 0
    # The two default shapes are one when cut to the toy's 32 tokens; decoders have two phases.
    assert len(report.latency) == (2 if task == "text-generation" else 1)
    assert all(comparison.ratio.estimate == pytest.approx(1) for comparison in report.latency)


@pytest.mark.parametrize("task", TASKS)
def test_a_model_with_broken_weights_regresses(make_bundle: MakeBundle, task: str) -> None:
    broken, parent = make_bundle("new", task, seed=1, noise=3.0), make_bundle("old", task)
    report = gate(broken, parent, texts=None if task == "question-answering" else TEXTS, latency=False)
    assert report.verdict == "regress", report.to_markdown()
    assert report.exit_code == 1
    assert report.reasons


def test_labels_judge_the_loss_and_agreement_is_only_reported(make_bundle: MakeBundle, reviews: Path) -> None:
    report = gate(make_bundle("new", seed=1, noise=0.01), make_bundle("old"), data=reviews, latency=False)
    assert report.verdict == "pass", report.to_markdown()
    assert check_of(report, "accuracy loss").required
    assert not check_of(report, "agreement").required
    assert report.metrics[0].baseline > 0.95
    assert report.data["labelled"]


def test_a_lost_accuracy_is_a_regress(make_bundle: MakeBundle, reviews: Path) -> None:
    report = gate(make_bundle("new", seed=1, noise=1.0), make_bundle("old"), data=reviews, latency=False)
    loss = check_of(report, "accuracy loss")
    assert (report.verdict, loss.verdict) == ("regress", "regress")
    assert loss.interval is not None
    assert loss.interval.low > 0
    assert loss.value == pytest.approx(100 * (report.metrics[0].baseline - report.metrics[0].candidate))


def test_few_samples_are_inconclusive(make_bundle: MakeBundle, reviews: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(reviews.read_text(encoding="utf-8").splitlines()[:30]), encoding="utf-8")
    report = gate(make_bundle("new"), make_bundle("old"), data=few, latency=False)
    assert report.verdict == "inconclusive"
    assert report.exit_code == 3
    assert "more samples" in report.reasons[0]


def test_one_sample_is_inconclusive_not_an_error(make_bundle: MakeBundle) -> None:
    report = gate(make_bundle("new"), make_bundle("old"), texts=["a good film"], latency=False)
    assert report.verdict == "inconclusive"


def test_the_interval_rule_asks_for_proof(make_bundle: MakeBundle, reviews: Path) -> None:
    """300 samples without a change exclude a loss of 1.3 points, not of 0.5."""
    new, old = make_bundle("new"), make_bundle("old")
    strict = gate(new, old, data=reviews, latency=False, limits=Limits(rule="interval"))
    lenient = gate(new, old, data=reviews, latency=False, limits=Limits(rule="interval", max_loss_points=1.5))
    assert (strict.verdict, lenient.verdict) == ("inconclusive", "pass")


def test_an_explicit_agreement_limit_is_judged_beside_labels(make_bundle: MakeBundle, reviews: Path) -> None:
    limits = Limits(max_loss_points=50, min_agreement=0.999)
    report = gate(make_bundle("new", seed=1, noise=1.0), make_bundle("old"), data=reviews, latency=False, limits=limits)
    assert check_of(report, "accuracy loss").verdict == "pass"
    assert report.verdict == "regress"


def test_a_size_budget_is_kept(make_bundle: MakeBundle) -> None:
    new, old = make_bundle("new"), make_bundle("old")
    report = gate(new, old, texts=TEXTS * 4, latency=False, limits=Limits(max_bytes=100))
    assert report.verdict == "regress"
    assert report.reasons == [check_of(report, "size").reason]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"task": "feature-extraction"}, "task"),
        ({"labels": ["positive", "negative"]}, "labels"),
        ({"problem_type": "multi_label_classification"}, "problem_type"),
    ],
)
def test_a_baseline_of_another_kind_is_refused(make_bundle: MakeBundle, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        gate(make_bundle("new"), make_bundle("old", **fields), latency=False)


def test_tokens_may_be_fewer_where_texts_are_judged_as_a_whole(make_bundle: MakeBundle) -> None:
    new, old = make_bundle("new"), make_bundle("old", vocab_size=99)
    assert gate(new, old, texts=TEXTS * 4, latency=False).verdict == "pass"
    tags, others = (make_bundle(name, "token-classification", vocab_size=size) for name, size in (("t", 98), ("o", 99)))
    with pytest.raises(InputError, match="vocab_size"):
        gate(tags, others, latency=False)


def test_a_baseline_with_outputs_of_another_shape_is_refused(make_bundle: MakeBundle) -> None:
    new = make_bundle("new")
    with pytest.raises(InputError, match="same shape"):
        gate(new, make_bundle("old", graph="token-classification"), texts=TEXTS, latency=False)


def test_a_damaged_bundle_is_refused(make_bundle: MakeBundle) -> None:
    new, old = make_bundle("new"), make_bundle("old")
    (new / "tokenizer.json").write_bytes((new / "tokenizer.json").read_bytes().replace(b"whale", b"shark"))
    with pytest.raises(BundleError):
        gate(new, old, latency=False)


def test_lists_of_labels_are_for_models_that_say_several(make_bundle: MakeBundle, tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    lines = [{"text": "a good film", "label": [0, 1]}, {"text": "the sea", "label": []}]
    data.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    with pytest.raises(DataError, match=r"line 1: one label, by name or index.*got \[0, 1\]"):
        gate(make_bundle("new"), make_bundle("old"), data=data, latency=False)
    several = {"problem_type": "multi_label_classification"}
    report = gate(make_bundle("new2", **several), make_bundle("old2", **several), data=data, latency=False)
    assert report.data["labelled"]


@pytest.mark.parametrize("seconds", [float("nan"), -1.0, 0])
def test_seconds_are_above_0(make_bundle: MakeBundle, seconds: float) -> None:
    with pytest.raises(InputError, match="seconds as a finite number above 0"):
        gate(make_bundle("new"), make_bundle("old"), seconds=seconds)


def test_two_sources_of_text_are_refused(make_bundle: MakeBundle, reviews: Path) -> None:
    with pytest.raises(InputError, match="data or texts"):
        gate(make_bundle("new"), make_bundle("old"), data=reviews, texts=TEXTS, latency=False)
    with pytest.raises(DataError, match="at least one text"):
        gate(make_bundle("new2"), make_bundle("old2"), texts=[], latency=False)


def test_a_candidate_that_answers_with_no_number_is_named(make_bundle: MakeBundle) -> None:
    """Weights of NaN: argmax would still give a label. The gate calls each sample a failure of the candidate."""
    broken = make_bundle("new", seed=1, noise=float("nan"))
    report = gate(broken, make_bundle("old"), texts=TEXTS, latency=False)
    assert report.verdict == "regress"
    assert len(report.failures) == len(TEXTS)
    assert {failure.side for failure in report.failures} == {"candidate"}
    assert check_of(report, "failed samples").verdict == "regress"
    assert check_of(report, "agreement").value == 0.0
    assert "and 110 more" in report.to_markdown()


def test_a_decoder_without_numbers_regresses(make_bundle: MakeBundle) -> None:
    broken = make_bundle("new", "text-generation", seed=1, noise=float("nan"))
    report = gate(broken, make_bundle("old", "text-generation"), texts=TEXTS, latency=False)
    assert report.verdict == "regress"
    assert {failure.side for failure in report.failures} == {"candidate"}


def test_failures_are_judged_by_side() -> None:
    new, old = Failure("candidate", 3, "boom"), Failure("baseline", 3, "boom")
    assert failure_check([], 10).verdict is Verdict.PASS
    assert failure_check([new], 1000).verdict is Verdict.REGRESS
    assert failure_check([new, old], 1000).verdict is Verdict.PASS  # both on the same sample: the data's fault
    assert failure_check([new, old], 50).verdict is Verdict.INCONCLUSIVE
    assert "(3)" in failure_check([new], 10).reason


def test_a_slow_candidate_regresses_on_the_injected_clock(make_bundle: MakeBundle) -> None:
    """The clock counts inferences of the engine; the candidate's session is made to run each one twice."""
    clock = EngineClock()
    with pytest.MonkeyPatch.context() as patch:
        clock.watch(patch, slow="new")
        report = gate(make_bundle("new"), make_bundle("old"), texts=TEXTS * 4, clock=clock)
    assert report.verdict == "regress"
    assert all(comparison.ratio.estimate == pytest.approx(2) for comparison in report.latency)
    assert any("CPU time" in reason for reason in report.reasons)


def test_the_wall_clock_is_judged_beside_cpu_time_if_it_is_limited(make_bundle: MakeBundle) -> None:
    clock = EngineClock()
    with pytest.MonkeyPatch.context() as patch:
        clock.watch(patch, slow="new")
        sides = make_bundle("new"), make_bundle("old")
        limits = Limits(max_latency_ratio=3.0, max_wall_ratio=1.5)
        report = gate(*sides, texts=TEXTS * 4, clock=clock, limits=limits)
        lenient = gate(*sides, texts=TEXTS * 4, clock=clock, limits=replace(limits, max_wall_ratio=2.5))
    assert [(found.name, found.judged, found.verdict) for found in report.latency] == [
        ("1x32 inference", "cpu", "pass"), ("1x32 wall inference", "wall", "regress"),
    ]  # fmt: skip
    noise = report.latency[1].noise
    assert noise is not None
    assert noise.estimate == pytest.approx(1)
    assert any("wall time 2.000" in reason for reason in report.reasons)
    assert lenient.verdict == "pass"
    assert clock.opened.count("old") == 2 * clock.opened.count("new") - 2  # but for the answers, one of each


def test_what_is_judged_on_which_engine() -> None:
    limits = Limits(max_wall_ratio=1.2)
    assert plan_of(limits, "cpu", 1.0, 0).judgements["wall"].limit == 1.2
    assert plan_of(limits, "cpu", 1.0, 0).limit == 1.05
    assert plan_of(limits, "device", 1.0, 0).judgements["wall"].limit == 1.2
    on_gpu = plan_of(limits, "wall", 1.0, 0)
    assert (on_gpu.judged, on_gpu.limit, on_gpu.wall_limit, on_gpu.sides) == ("wall", 1.05, None, 3)
    assert plan_of(Limits(max_wall_ratio=1.02), "wall", 1.0, 0).limit == 1.02
    assert plan_of(Limits(max_wall_ratio=1.02, max_latency_ratio=None), "wall", 1.0, 0).limit == 1.02


class EngineClock(WorkClock):
    """Moves one millisecond for each run of an engine, whoever asks."""

    def watch(self, patch: pytest.MonkeyPatch, *, slow: str) -> None:
        """Count every run; the bundle named ``slow`` really does its work twice."""
        from planish.gate import verdict

        load, self.opened = verdict.load, list[str]()

        def loaded(bundle: Path, *args: Any, **options: Any) -> Any:
            model = load(bundle, *args, **options)
            self.opened.append(Path(bundle).name)
            run, times = model.run, 2 if Path(bundle).name == slow else 1

            def counted(inputs: Any) -> Any:
                for _ in range(times):
                    self.now += 1e-3
                    answer = run(inputs)
                return answer

            model.run = counted  # type: ignore[method-assign]
            return model

        patch.setattr(verdict, "load", loaded)


def test_the_real_clock_never_calls_the_same_bundle_a_regress(make_bundle: MakeBundle) -> None:
    """A/A on real time: pass, or too noisy to say; with a floor above the toy's microseconds."""
    bundle = make_bundle("new")
    report = gate(
        bundle,
        bundle,
        texts=TEXTS * 4,
        seconds=2,
        limits=Limits(latency_floor_seconds=1e-3),
    )
    assert report.verdict in {"pass", "inconclusive"}
    assert report.environment["before"]["threads"] == 1


def test_the_report_is_json_and_markdown(make_bundle: MakeBundle, reviews: Path, step_clock: Any) -> None:
    report = gate(make_bundle("new", seed=1, noise=0.05), make_bundle("old"), data=reviews, clock=step_clock)
    back = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert back["verdict"] == str(report.verdict)
    assert Limits.from_json(back["limits"]) == report.limits
    assert back["latency"][0]["judged"] == "cpu"
    lines = report.to_markdown().splitlines()
    assert lines[0] == f"# planish gate: {report.verdict}"
    tables = [line for line in lines if line.startswith("|")]
    assert len(tables) >= 10
    for head, rule in pairwise(lines):
        if rule.startswith("|---"):
            assert head.count("|") == rule.count("|")


def test_the_same_seed_gives_the_same_numbers(make_bundle: MakeBundle) -> None:
    new, old = make_bundle("new", "text-generation", seed=1, noise=0.2), make_bundle("old", "text-generation")
    first, second = (gate(new, old, texts=TEXTS, latency=False, seed=9) for _ in range(2))
    assert [check.to_json() for check in first.checks] == [check.to_json() for check in second.checks]


def test_progress_is_called_and_ctrl_c_goes_through(make_bundle: MakeBundle) -> None:
    stages: list[str] = []

    def progress(stage: str, done: int, total: int) -> None:
        stages.append(stage)
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gate(make_bundle("new"), make_bundle("old"), texts=TEXTS, progress=progress, latency=False)
    assert stages == ["answers of the candidate"] * 5


def test_builtin_texts_are_whole_for_decoders_and_sentences_else() -> None:
    assert len(default_texts("text-generation")) == 1
    sentences = default_texts("text-classification")
    assert len(sentences) == 200
    assert len(set(sentences)) > 190


def test_a_text_file_is_taken(make_bundle: MakeBundle, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS), encoding="utf-8")
    report = gate(make_bundle("new"), make_bundle("old"), texts=path, latency=False)
    assert report.data["samples"] == len(TEXTS)
    assert report.data["duplicates"] == len(TEXTS) - 4


def test_a_missing_bundle_is_one_line(make_bundle: MakeBundle, tmp_path: Path) -> None:
    old = make_bundle("old")
    with pytest.raises(BundleError):
        gate(tmp_path / "nothing", old)
    shutil.rmtree(old / "onnx")
    with pytest.raises(BundleError):
        gate(old, old)


def test_perplexities_are_those_of_the_bigram_table(make_bundle: MakeBundle) -> None:
    """Oracle: the toy decoder's next token depends on the last one, so its perplexity is a table look-up in numpy."""
    import onnx
    from onnx import numpy_helper

    from planish import runtime
    from planish.gate.likelihood import compare_likelihood

    paths = [make_bundle("new", "text-generation", seed=1, noise=0.5), make_bundle("old", "text-generation")]
    with runtime.load(paths[0]) as new, runtime.load(paths[1]) as old:
        found = compare_likelihood(new, old, [" ".join(TEXTS)])
        ids = np.array(new.tokenizer.encode(" ".join(TEXTS)).ids)
    logs = []
    for path in paths:
        graph = onnx.load(str(path / "onnx" / "ort" / "model.onnx")).graph
        table = next(numpy_helper.to_array(t) for t in graph.initializer if t.name == "table").astype(np.float64)
        logs.append(table - np.log(np.exp(table).sum(axis=1, keepdims=True)))
    pairs = [
        (a, b) for start in range(0, len(ids), found.context) for a, b in pairwise(ids[start : start + found.context])
    ]
    losses = [np.array([-log[a, b] for a, b in pairs]) for log in logs]
    divergence = np.mean([np.sum(np.exp(logs[1][a]) * (logs[1][a] - logs[0][a])) for a, _ in pairs])
    same = np.mean([logs[0][a].argmax() == logs[1][a].argmax() for a, _ in pairs])
    assert found.tokens == len(pairs)
    assert found.candidate.value == pytest.approx(np.exp(losses[0].mean()), rel=1e-5)
    assert found.baseline.value == pytest.approx(np.exp(losses[1].mean()), rel=1e-5)
    assert found.divergence.value == pytest.approx(divergence, rel=1e-4)
    assert found.top_1.value == pytest.approx(same)
