"""Whole journeys on the real models, made once a session through the command line."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
Shelf = Callable[..., Path]


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """One folder for all workers of a run: what one has made the other takes."""
    if worker_id == "master":
        return tmp_path_factory.mktemp("shelf")
    folder = tmp_path_factory.getbasetemp().parent / "shelf"
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Only one worker at a time makes ``path``."""
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def make(shelf: Path) -> Shelf:
    """``make(name, command, ...)`` runs a planish command with ``-o name``, once, and returns the output's path."""

    def run(name: str, *arguments: str | Path) -> Path:
        output = shelf / name
        command = [sys.executable, "-m", "planish", *map(str, arguments), "-o", str(output)]
        with alone(output):
            if not output.exists():
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                assert done.returncode == 0, f"{command}\n{done.stderr[-4000:]}"
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


@pytest.fixture(scope="session")
def sentiment(minilm: Path, movie_sentences: dict[str, list[tuple[str, int]]]) -> Path:
    """MiniLM fine-tuned on the movie sentences: for tests marked slow, unless `.cache` has it."""
    from tests.sentiment import train_sentiment

    (ROOT / ".cache").mkdir(exist_ok=True)
    return train_sentiment(minilm, movie_sentences["train"], ROOT / ".cache" / "sentiment-minilm")


@pytest.fixture(scope="session")
def sentiment_parent(make: Shelf, sentiment: Path) -> Path:
    return make("sentiment-parent.bundle", "export", sentiment)


@pytest.fixture(scope="session")
def smollm2(shelf: Path, smollm2_gguf: Path) -> Path:
    """SmolLM2 with its channels permuted: the same function, off the 4-bit grid its GGUF lies on."""
    from planish.compress.gguf_source import off_grid_checkpoint

    folder = shelf / "smollm2"
    with alone(folder):
        return folder if folder.exists() else Path(off_grid_checkpoint(smollm2_gguf, folder))


@pytest.fixture(scope="session")
def smollm2_int4(make: Shelf, smollm2: Path, shelf: Path) -> Path:
    """Calibrated on half of what the shipped recipe takes: of the whole suite this is the longest step."""
    from planish.compress import load_recipe

    content = load_recipe("int4").content
    content["data"] |= {"samples": content["data"]["samples"] // 2}
    recipe = shelf / "int4.yaml"
    with alone(recipe):
        recipe.write_text(json.dumps(content), encoding="utf-8")
    return make("smollm2-int4", "compress", smollm2, "-r", recipe)


@pytest.fixture(scope="session")
def smollm2_bundle(make: Shelf, smollm2_int4: Path) -> Path:
    return make("smollm2.bundle", "export", smollm2_int4)


@pytest.fixture(scope="session")
def smollm2_shipped(make: Shelf, smollm2: Path) -> Path:
    """The recipe as it is shipped, for tests marked slow."""
    return make("smollm2-shipped.bundle", "export", make("smollm2-shipped", "compress", smollm2, "-r", "int4"))


@pytest.fixture(scope="session")
def smollm2_parent(make: Shelf, smollm2: Path) -> Path:
    return make("smollm2-parent.bundle", "export", smollm2)
