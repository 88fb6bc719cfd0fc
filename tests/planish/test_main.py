"""The door of the command line: every mistake is one line, one JSON object if asked, and the right exit code."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from planish.__main__ import escape_what_cannot_be_written, main
from planish.errors import InputError
from planish.options import shape_of


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verify"], ["BUNDLE", "got none", "planish verify --help"]),
        (["verify", "--nope"], ["an option of planish verify", "--nope", "--json"]),
        (["verify", "--jsn"], ["did you mean '--json'?"]),
        (["verify", "a", "b"], ["unexpected extra argument"]),
        (["compresss"], ["'compresss'", "did you mean 'compress'?"]),
        (["profiles", "shw"], ["planish profiles", "did you mean 'show'?"]),
        (["run", "b", "text", "--top-k"], ["a value after --top-k"]),
        (["run", "b", "text", "--top-k", "q"], ["--top-k as an integer", "'q'"]),
        (
            ["run", "b", "text", "--threads", "99999999999999"],
            ["--threads as an integer from 1 to 1024", "99999999999"],
        ),
        (["run", "b", "text", "--pooling", "q"], ["one of mean, cls, max"]),
        (["ship", "m", "-o", "x"], ["--recipe"]),
        (["bench", "b", "--seconds", "nan"], ["seconds as a finite number above 0", "nan"]),
        (["bench", "b", "--seconds", "86401"], ["at most 86400", "86401"]),
        (["gate", "b", "-b", "b", "--seconds", "-5"], ["seconds as a finite number above 0", "-5"]),
        (["ship", "m", "-r", "int8", "-o", "x", "--seconds", "inf"], ["a finite number above 0, at most 86400", "inf"]),
    ],
    ids=lambda value: "-".join(value[:2]),
)
def test_usage_errors(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    (said,) = told.err.splitlines()
    assert said.startswith("planish: expected ")
    for word in ("; ", "got ", *words):
        assert word in said
    place = 2 if arguments[0] == "profiles" else 1
    assert main([*arguments[:place], "--json", *arguments[place:]]) == 2
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["ok"], found["exit_code"], found["error"]) == (False, 2, "InputError")
    if place == 1:
        assert f"planish: {found['message']}" == said


def test_help_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--help"]) == 0
    assert main(["profiles"]) in (0, 2)  # click 8.1 and later ones
    told = capsys.readouterr()
    assert "Usage: planish profiles" in told.out + told.err


@pytest.mark.parametrize("shape", ["²x5", "1x٣", "x5", "0x5", "1x", "1x5x5", "1" * 5000 + "x1", "1x99999999"])
def test_shapes_that_are_none(shape: str) -> None:
    with pytest.raises(InputError, match="--shape BATCHxLENGTH"):
        shape_of(shape)


def test_control_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A real signal, and no words of a command that keeps nothing."""
    from planish import runtime

    monkeypatch.setattr(runtime, "verify", lambda bundle: signal.raise_signal(signal.SIGINT))
    assert main(["verify", str(tmp_path), "--json"]) == 130
    told = capsys.readouterr()
    assert "planish: interrupted; nothing half-written was left" in told.err
    found = json.loads(told.out.splitlines()[-1])
    assert (found["ok"], found["exit_code"]) == (False, 130)
    assert found["message"].startswith("interrupted")


def test_a_reader_that_goes_away_is_no_error() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m planish profiles list | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "0"
    assert "Traceback" not in done.stderr


def test_what_stdout_cannot_spell_is_escaped_as_json_does(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    escape_what_cannot_be_written()
    text = "é 😀 \udcff"
    print(json.dumps({"text": text}, ensure_ascii=False), flush=True)
    assert json.loads(raw.getvalue().decode("ascii")) == {"text": text}


def test_control_c_inside_an_exec_keeps_the_exit_code(tmp_path: Path) -> None:
    """Python remembers such an interrupt and would end `python -m` by the signal, -2 to a parent."""
    (tmp_path / "interrupted.py").write_text(
        "import sys\n"
        "from planish import __main__, cli\n"
        "cli.planish.make_context = lambda *arguments: exec('raise KeyboardInterrupt')\n"
        "sys.exit(__main__.main(['doctor']))\n"
    )
    done = subprocess.run([sys.executable, "-m", "interrupted"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
