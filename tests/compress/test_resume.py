"""A killed run continues at the last finished block, with the same result to the bit; other ends leave nothing."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from planish.compress import compress, weight_only
from planish.errors import HostError, InputError

from .conftest import Maker

GPTQ = {"pass": "weight-only", "bits": 4, "group_size": 32, "method": "gptq"}
EMBEDDING = {"pass": "int8-embedding"}
KILLED = """
import os, signal, sys, torch
from planish.compress import compress
torch.set_num_threads(1)
def progress(stage, done, total):
    if stage == "weight-only" and done >= 8:
        os.kill(os.getpid(), signal.SIGKILL)
compress(sys.argv[1], sys.argv[2], sys.argv[3], progress=progress)
"""


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts calls of GPTQ: how much work a run really did."""
    calls: list[int] = []
    real = weight_only.gptq

    def counting(*args: object, **kwargs: object) -> object:
        calls.append(1)
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(weight_only, "gptq", counting)
    return calls


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "config.json", "tokenizer.json")}


def test_kill_9_and_again(
    recipe_file: Callable[..., Path], small_checkpoint: Maker, tmp_path: Path, counted: list[int]
) -> None:
    source = small_checkpoint("llama", num_hidden_layers=3)
    recipe = recipe_file(GPTQ, EMBEDDING)
    arguments = [sys.executable, "-c", KILLED, str(source), str(recipe), str(tmp_path / "out")]
    run = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert not (tmp_path / "out").exists()
    pieces = sorted(path.name for path in (tmp_path / ".out.partial").glob("*.safetensors"))
    assert pieces == ["pass-0-block-0000.safetensors"]  # killed while in the second block of 7 layers
    compress(source, recipe, tmp_path / "out")
    assert len(counted) == 14
    compress(source, recipe, tmp_path / "whole")
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert not list(tmp_path.glob(".*"))


class Stop:
    """A progress callback that raises when a given layer is reached."""

    def __init__(self, error: BaseException, at: int) -> None:
        self.error, self.at = error, at

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage == "weight-only" and done >= self.at:
            raise self.error


def test_ctrl_c_keeps_what_is_finished(
    recipe_file: Callable[..., Path], small_checkpoint: Maker, tmp_path: Path, counted: list[int]
) -> None:
    source, recipe = small_checkpoint("llama"), recipe_file(GPTQ)
    with pytest.raises(KeyboardInterrupt, match=r"\.out\.partial; the same command continues"):
        compress(source, recipe, tmp_path / "out", progress=Stop(KeyboardInterrupt(), 8))
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.glob(".*")] == [".out.partial"]
    counted.clear()
    compress(source, recipe, tmp_path / "out")
    assert len(counted) == 7
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("at", "error"), [(0, KeyboardInterrupt()), (8, RuntimeError("bug")), (8, MemoryError())])
def test_other_ends_leave_nothing(
    at: int, error: BaseException, recipe_file: Callable[..., Path], small_checkpoint: Maker, tmp_path: Path
) -> None:
    source, recipe = small_checkpoint("llama"), recipe_file(GPTQ)
    expected = HostError if isinstance(error, MemoryError) else type(error)
    with pytest.raises(expected):
        compress(source, recipe, tmp_path / "out", progress=Stop(error, at))
    assert [path.name for path in tmp_path.iterdir()] == [recipe.name]


def test_pieces_of_another_recipe_or_text_are_not_used(
    recipe_file: Callable[..., Path], small_checkpoint: Maker, tmp_path: Path, counted: list[int]
) -> None:
    source = small_checkpoint("llama")
    words = [f"whale {word} sea ship " for word in "abcdefgh"]
    (tmp_path / "text.txt").write_text("".join(words * 40), encoding="utf-8")
    for change in ("recipe", "text"):
        recipe = recipe_file(GPTQ, source="text.txt")
        with pytest.raises(KeyboardInterrupt):
            compress(source, recipe, tmp_path / change, progress=Stop(KeyboardInterrupt(), 8))
        if change == "recipe":
            recipe = recipe_file({**GPTQ, "damping": 0.02}, source="text.txt")
        else:
            (tmp_path / "text.txt").write_text("".join(words[::-1] * 40), encoding="utf-8")
        counted.clear()
        compress(source, recipe, tmp_path / change)
        assert len(counted) == 14, change


def test_damaged_pieces_are_made_again(
    recipe_file: Callable[..., Path], small_checkpoint: Maker, tmp_path: Path, counted: list[int]
) -> None:
    source, recipe = small_checkpoint("llama"), recipe_file(GPTQ)
    with pytest.raises(KeyboardInterrupt):
        compress(source, recipe, tmp_path / "out", progress=Stop(KeyboardInterrupt(), 8))
    piece = next((tmp_path / ".out.partial").glob("*.safetensors"))
    piece.write_bytes(piece.read_bytes()[:-10])
    counted.clear()
    compress(source, recipe, tmp_path / "out")
    assert len(counted) == 14


def test_foreign_and_busy_folders_are_refused(
    recipe_file: Callable[..., Path], small_checkpoint: Maker, tmp_path: Path
) -> None:
    source, recipe = small_checkpoint("llama"), recipe_file(GPTQ)
    work = tmp_path / ".out.partial"
    work.mkdir()
    (work / "diary.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="did not write"):
        compress(source, recipe, tmp_path / "out")
    assert (work / "diary.txt").read_text(encoding="utf-8") == "mine"
    (work / "diary.txt").unlink()
    handle = os.open(work / "lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="another run"):
        compress(source, recipe, tmp_path / "out")
    os.close(handle)
    compress(source, recipe, tmp_path / "out")
    assert not work.exists()
