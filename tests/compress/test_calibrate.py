"""Calibration: layers that share an input are seen once, and a killed run ends with the same checkpoint to the bit."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from planish.compress import compress
from planish.compress.calibrate import SharedInputs
from planish.errors import RecipeError

from .conftest import Maker

STATIC = {"pass": "int8-linear", "activations": "static", "smoothing": 0.9, "input_range": "percentile"}
KILLED = """
import os, signal, sys, torch
from planish.compress import calibrate, compress
calibrate._SAVE_EVERY = 0.0
torch.set_num_threads(1)
left = int(sys.argv[4])
def progress(stage, done, total):
    global left
    left -= stage == "calibrate"
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
compress(sys.argv[1], sys.argv[2], sys.argv[3], progress=progress)
"""


def test_readers_of_one_tensor_are_found_by_identity() -> None:
    shared, x = SharedInputs(), torch.ones(2)
    assert [shared.leads("q", x), shared.leads("k", x), shared.leads("o", x + 0)] == [True, False, True]
    assert shared.leaders == {"q": "q", "k": "q", "o": "o"}
    del x
    assert shared.leads("next", torch.ones(2)), "a tensor that is gone is no one's input"


def test_kill_9_at_any_batch_gives_the_same_scales(
    recipe_file: Callable[..., Path], small_checkpoint: Maker, tmp_path: Path
) -> None:
    """Two passes of 8 batches each are killed at several points, one after the other, in one work folder."""
    source = small_checkpoint("bert")
    recipe = recipe_file(STATIC, samples=512, sequence_length=32)
    compress(source, recipe, tmp_path / "whole")
    points = random.Random(0).sample(range(1, 16), 3)
    for steps in [*points, 100]:
        arguments = [sys.executable, "-c", KILLED, str(source), str(recipe), str(tmp_path / "out"), str(steps)]
        run = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
        if run.returncode == 0:
            break
        assert run.returncode == -signal.SIGKILL, run.stderr
        assert not (tmp_path / "out").exists()
        assert list((tmp_path / ".out.partial").glob("pass-0-*.safetensors"))
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


def test_smoothing_needs_static_scales_and_patterns_that_match(
    recipe_file: Callable[..., Path], small_checkpoint: Maker, tmp_path: Path
) -> None:
    source = small_checkpoint("bert")
    for wrong, words in (
        ({"activations": "token"}, "static activations"),
        ({"smoothing_exclude": ["*.qery"]}, "smoothing_exclude"),
    ):
        with pytest.raises(RecipeError, match=words):
            compress(source, recipe_file({**STATIC, **wrong}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
