"""JUnit XML, figures for github-action-benchmark and sample lines: what they hold of a report, and that they parse."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from planish.gate import GateReport, Limits, Verdict, gate
from planish.gate.action_benchmark import action_benchmark
from planish.gate.checks import Check
from planish.gate.junit import junit
from planish.gate.report import Side
from planish.gate.sample_lines import sample_lines

MakeBundle = Callable[..., Path]
SIDE = Side("a", "sha256:0", 1)
SCHEMA = etree.XMLSchema(etree.parse(str(Path(__file__).with_name("junit.xsd"))))


@pytest.fixture
def report(make_bundle: MakeBundle, reviews: Path, step_clock: Any) -> GateReport:
    new, old = make_bundle("new", seed=1, noise=0.01), make_bundle("old")
    return gate(new, old, data=reviews, clock=step_clock, limits=Limits(max_bytes=10))


def lines_of(report: GateReport) -> list[dict[str, Any]]:
    return [json.loads(line) for line in sample_lines(report).splitlines()]


def test_a_case_for_each_check_and_a_failure_for_each_regress(report: GateReport) -> None:
    assert report.verdict is Verdict.REGRESS, "ten bytes are not enough"
    root = ElementTree.fromstring(junit(report))
    (suite,) = root.findall("testsuite")
    cases = {case.get("name"): case for case in suite.findall("testcase")}
    assert list(cases) == [check.name for check in report.checks]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == (str(len(cases)), "1", "0")
    failure = cases["size"].find("failure")
    assert failure is not None
    assert failure.get("type") == "regress"
    assert "at most 10" in str(failure.get("message"))
    assert all(case.find("failure") is None for name, case in cases.items() if name != "size")
    told = str(suite.findtext("system-out")).splitlines()
    assert len(told) == len(report.checks)
    assert all(check.name in line and check.reason in line for check, line in zip(report.checks, told, strict=True))
    properties = {one.get("name"): one.get("value") for one in suite.iter("property")}
    assert properties["verdict"] == "regress"
    assert properties["candidate"] == report.candidate.digest


def test_what_could_not_be_decided_is_an_error_and_what_is_reported_is_neither(report: GateReport) -> None:
    open_question = Check("accuracy loss", Verdict.INCONCLUSIVE, 0.4, 0.5, "points", "too few", required=True)
    told = Check("agreement", Verdict.REGRESS, 0.4, None, "share", "0.4", required=False)
    root = ElementTree.fromstring(junit(replace(report, checks=(open_question, told))))
    first, second = root.iter("testcase")
    assert [child.tag for child in first] == ["error"]
    assert [child.tag for child in second] == []
    (suite,) = root
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "0", "1")
    assert suite.findtext("system-out") == "accuracy loss: inconclusive: too few\nagreement: reported: 0.4"


def test_the_document_keeps_to_the_schema_readers_share(report: GateReport) -> None:
    told = Check("agreement", Verdict.PASS, 0.4, None, "share", "0.4", required=False)
    undecided = Check("accuracy loss", Verdict.INCONCLUSIVE, 0.4, 0.5, "points", "too few")
    for found in (report, replace(report, checks=(undecided, told)), replace(report, checks=(), seconds=0.0)):
        SCHEMA.assertValid(etree.fromstring(junit(found).encode()))
    whole = junit(report)
    assert not SCHEMA.validate(etree.fromstring(whole.replace(" hostname=", " host=").encode()))
    assert not SCHEMA.validate(etree.fromstring(whole.replace("<failure type=", "<failure kind=").encode()))


def test_the_time_is_when_the_gate_began(report: GateReport) -> None:
    end = datetime(2026, 3, 1, 0, 0, 5, tzinfo=timezone.utc)
    (suite,) = ElementTree.fromstring(junit(replace(report, seconds=10.0), end))
    assert (suite.get("timestamp"), suite.get("time")) == ("2026-02-28T23:59:55", "10.000")


@given(st.text())
def test_any_words_become_xml(words: str) -> None:
    """An exception's message may hold what XML may not."""
    check = Check(words, Verdict.REGRESS, 0.0, 0.0, "share", words)
    report = GateReport(
        Verdict.REGRESS, "fill-mask", *[SIDE] * 2, (check,), (), (), (), Limits(), {"name": words}, {}, 0, 1.0
    )
    text = junit(report)
    SCHEMA.assertValid(etree.fromstring(text.encode()))
    (case,) = ElementTree.fromstring(text).iter("testcase")
    assert len(str(case.get("name"))) <= len(words), "a line break within a value becomes a space"


def test_figures_are_named_once_and_finite(report: GateReport) -> None:
    entries = json.loads(action_benchmark(report))
    names = [entry["name"] for entry in entries]
    assert len(set(names)) == len(names)
    assert all(math.isfinite(entry["value"]) and entry["unit"] for entry in entries)
    found = {entry["name"]: entry for entry in entries}
    assert found["size"]["value"] == report.candidate.bytes
    (latency,) = report.latency
    assert found[f"{latency.name} time"]["value"] == pytest.approx(1e3 * latency.median_seconds["candidate_cpu"])
    assert " to " in found[f"{latency.name} ratio to the baseline"]["range"]
    assert found["accuracy lost"]["unit"] == "points"


def test_the_lines_hold_every_sample_and_every_sitting(report: GateReport, reviews: Path) -> None:
    lines = lines_of(report)
    samples = [line for line in lines if "sample" in line]
    rows = [json.loads(line) for line in reviews.read_text(encoding="utf-8").splitlines()]
    assert len(samples) == len(rows)
    hits = sum(line["candidate"]["labels"] == line["truth"] for line in samples)
    (accuracy,) = (pair for pair in report.metrics if pair.name == "accuracy")
    assert hits / len(samples) == pytest.approx(accuracy.candidate)
    assert not any("text" in line for line in lines), "texts stay where they are"
    sittings = [line for line in lines if "latency" in line]
    (latency,) = report.latency
    assert len(sittings) == latency.pairs
    assert [line["sitting"] for line in sittings] == list(range(1, latency.pairs + 1))
    assert all(line["candidate"]["cpu"] > 0 for line in sittings)


@pytest.mark.parametrize("task", ["token-classification", "feature-extraction", "question-answering", "fill-mask"])
def test_lines_of_every_task(make_bundle: MakeBundle, task: str) -> None:
    report = gate(make_bundle("new", task), make_bundle("old", task), latency=False)
    lines = lines_of(report)
    assert len(lines) == report.data["samples"]
    assert all(line["candidate"] == line["baseline"] for line in lines)
    if task == "feature-extraction":
        assert all(line["cosine"] == pytest.approx(1) for line in lines)


def test_lines_of_a_decoder_are_windows(make_bundle: MakeBundle) -> None:
    report = gate(make_bundle("new", "text-generation"), make_bundle("old", "text-generation"), latency=False)
    lines = lines_of(report)
    (pair,) = report.metrics
    loss = sum(line["candidate"]["loss"] for line in lines) / sum(line["tokens"] for line in lines)
    assert math.exp(loss) == pytest.approx(pair.candidate)
    assert all(line["same_token"] == line["tokens"] for line in lines)


def test_a_side_that_failed_is_null(make_bundle: MakeBundle, reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from planish.gate import outputs

    asked = outputs.ask_labels
    calls = iter(range(10_000))

    def fails_once(*arguments: Any) -> Any:
        if next(calls) == 3:
            raise RuntimeError("out of luck")
        return asked(*arguments)

    monkeypatch.setitem(outputs.ASKS, "text-classification", fails_once)
    lines = lines_of(gate(make_bundle("new"), make_bundle("old"), data=reviews, latency=False))
    assert [line["sample"] for line in lines if line["candidate"] is None] == [lines[3]["sample"]]
    assert all(line["baseline"] for line in lines)
