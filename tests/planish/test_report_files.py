"""Files a gate leaves: refused before measuring where they cannot be written, replaced whole, added to a summary."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from planish.commands_use import gate
from planish.errors import HostError, InputError
from planish.gate import GateReport, Limits, Verdict
from planish.gate.checks import Check
from planish.gate.report import Side
from planish.report_files import check_reports, write_reports


@pytest.fixture
def report() -> GateReport:
    check = Check("size", Verdict.PASS, 3.0, 4.0, "bytes", "size 3 bytes; at most 4")
    side = Side("bundle", "sha256:0", 3)
    data = {"name": "texts", "samples": 1}
    lines = ({"sample": 1, "candidate": None, "baseline": {}},)
    return GateReport(Verdict.PASS, "fill-mask", side, side, (check,), (), (), (), Limits(), data, {}, 0, 1.0, lines)


def test_each_file_holds_the_report(report: GateReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    files = {name: tmp_path / name for name in ("html", "markdown", "junit", "benchmark_json", "samples")}
    files["junit"].write_text("of the run before")
    write_reports(report, files)
    assert files["html"].read_text().startswith("<!doctype html>")
    assert files["markdown"].read_text() == report.to_markdown()
    assert ElementTree.parse(files["junit"]).getroot().tag == "testsuites"
    assert json.loads(files["benchmark_json"].read_text())[0]["name"] == "size"
    assert json.loads(files["samples"].read_text()) == report.samples[0]
    assert summary.read_text() == f"before\n{report.to_markdown()}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*files, "summary.md"])


def test_nothing_asked_for_writes_nothing(report: GateReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    write_reports(report, {"junit": None})
    assert list(tmp_path.iterdir()) == []


def test_a_summary_that_cannot_be_written_is_one_error(
    report: GateReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    with pytest.raises(HostError, match="to write under"):
        write_reports(report, {})


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"junit": "none/gate.xml"}, "a folder for --junit at"),
        ({"benchmark_json": "."}, "a file for --benchmark-json"),
        ({"junit": "a.xml", "samples": "./a.xml"}, "a file of its own for --samples"),
    ],
)
def test_refused_before_anything_is_measured(files: dict[str, str], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        check_reports({name: tmp_path / path for name, path in files.items()})
    asked = [part for name, path in files.items() for part in (f"--{name.replace('_', '-')}", str(tmp_path / path))]
    found = CliRunner().invoke(gate, ["nothing.bundle", "-b", "nothing.bundle", *asked])
    assert isinstance(found.exception, InputError), "before the bundles are looked at"
    assert words in str(found.exception)
