"""What ``planish run`` says about options a task does not read, and texts the model did not read to the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from planish.__main__ import main
from planish.export import export
from planish.export.quiet import quiet
from tests.tiny import tiny_encoder

Maker = Callable[[str], str]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """``bundle(task)`` is a tiny BERT's bundle, made once."""
    folder = tmp_path_factory.mktemp("bundles")

    def make(task: str) -> str:
        path = folder / f"{task}.bundle"
        if not path.exists():
            with quiet():
                model = tiny_encoder("bert", task, folder / task, steps=0)
                export(model, path)
        return str(path)

    return make


LONG = "word " * 1000


@pytest.mark.parametrize(
    ("task", "text", "more"),
    [
        ("text-classification", LONG, []),
        ("feature-extraction", LONG, ["--pooling", "mean"]),
        ("fill-mask", f"a <mask> {LONG}", []),
    ],
    ids=lambda value: str(value)[:12],
)
def test_cut_texts_are_said(
    task: str, text: str, more: list[str], bundle: Maker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", bundle(task), "a <mask>", text, *more, "--json"]) == 0
    told = capsys.readouterr()
    (said,) = [line for line in told.err.splitlines() if "tokens" in line]
    assert said.startswith("planish: text 2 has ")
    assert said.endswith("only the first 128 were read")
    assert len(json.loads(told.out.splitlines()[-1])["results"]) == 2


def test_texts_read_to_the_end_are_not(bundle: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["run", bundle("token-classification"), LONG, "--json"],  # reads windows
        ["run", bundle("text-classification"), "short"],
    ):
        assert main(arguments) == 0
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("task", "option", "value", "words"),
    [
        ("fill-mask", "--top-k", "0", "top_k of at least 1"),
        ("fill-mask", "--question", "who?", "a bundle for question-answering with --question"),
        ("fill-mask", "--pooling", "mean", "a bundle for feature-extraction with --pooling"),
        ("text-classification", "--seed", "1", "a bundle for text-generation with --seed"),
        ("token-classification", "--top-k", "2", "leave --top-k out"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    task: str, option: str, value: str, words: str, bundle: Maker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", bundle(task), "a <mask>", option, value]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert words in told.err


def test_top_k_reaches_fill(bundle: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    for given, found in (([], 5), (["--top-k", "2"], 2)):
        assert main(["run", bundle("fill-mask"), "a <mask>", *given, "--json"]) == 0
        (result,) = json.loads(capsys.readouterr().out)["results"]
        assert len(result) == found


def test_stdin_that_is_no_text(
    bundle: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bytes").write_bytes(b"good\n\xff\xfe\n")
    with (tmp_path / "bytes").open(encoding="utf-8") as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert main(["run", bundle("fill-mask"), "-"]) == 2
    assert "got byte 0xff" in capsys.readouterr().err
