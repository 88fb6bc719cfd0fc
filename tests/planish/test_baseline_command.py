"""``planish baseline`` and ``planish gate --baseline FILE``, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planish.__main__ import main
from planish.gate.baseline_file import read_baseline
from tests.gate.conftest import TASK_FIELDS, encoder_graph, save_bundle


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Bundles ``old``, ``new`` and ``bad``, and texts to ask, where the commands are typed."""
    monkeypatch.chdir(tmp_path)
    task = "text-classification"
    for name, noise in (("old", 0.0), ("new", 0.01), ("bad", 3.0)):
        save_bundle(tmp_path / name, encoder_graph(task, 1, noise), task=task, **TASK_FIELDS[task])
    (tmp_path / "texts.txt").write_text("a good film\nthe whale is bad\nnot very fine\nthe sea the ship\n" * 60)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def test_a_bundle_is_gated_by_a_file_when_the_other_bundle_is_gone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = ["baseline", "old", "--data", "texts.txt", "-o", "kept", "--no-latency"]
    assert main([*record, "--json"]) == 0
    said = told(capsys)["baseline"]
    path = Path(said["path"])
    assert path.parent == Path("kept")
    assert (said["task"], said["data"]["samples"]) == ("text-classification", 240)
    assert "samples" not in said
    (folder / "old").rename(folder / "gone")
    for baseline in (str(path), "kept"):
        assert main(["gate", "new", "-b", baseline, "--data", "texts.txt", "--no-latency"]) == 0
        assert f"baseline from a file: {path.name}" in capsys.readouterr().out
    assert main(["gate", "bad", "-b", "kept", "--data", "texts.txt", "--no-latency", "--json"]) == 1
    report = told(capsys)["gate"]
    assert (report["verdict"], report["baseline"]["name"]) == ("regress", "old")
    assert report["baseline"]["digest"] == read_baseline(path).bundle.digest


def test_a_baseline_is_kept_unless_told_to_replace_it(capsys: pytest.CaptureFixture[str]) -> None:
    record = ["baseline", "old", "--data", "texts.txt", "-o", "kept", "--no-latency"]
    assert main(record) == 0
    (path,) = Path("kept").iterdir()
    assert str(path) in capsys.readouterr().out
    assert main(record) == 2
    assert "--replace" in capsys.readouterr().err
    assert main([*record, "--replace"]) == 0


def test_mistakes_are_one_line_and_exit_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["baseline", "old", "--data", "texts.txt", "-o", "kept", "--no-latency"]) == 0
    (path,) = (folder / "kept").iterdir()
    torn = folder / "torn.json"
    torn.write_bytes(path.read_bytes()[:-100])
    capsys.readouterr()
    for arguments, words in (
        (["gate", "new", "-b", str(torn), "--data", "texts.txt"], "a baseline file: torn.json"),
        (["gate", "new", "-b", "kept"], "the data the baseline was asked, texts.txt (240 samples"),
        (["gate", "new", "-b", ".", "--data", "texts.txt"], "a bundle or baseline files in ."),
        (["gate", "new", "-b", "gone", "--data", "texts.txt"], "a bundle directory"),
        (["gate", "new", "-b", "old", "--across-devices"], "a baseline file with across_devices"),
        (["baseline", "old", "-o", "none/kept"], "mkdir -p none"),
        (["baseline", "gone", "-o", "kept"], "a bundle directory"),
        (["baseline", "old"], "--output"),
    ):
        assert main(arguments) == 2, arguments
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1, said
        assert words in said[0]
