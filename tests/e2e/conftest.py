"""Whole journeys on the real models, made once a session through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.shelf import Shelf, alone

ROOT = Path(__file__).resolve().parents[2]


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
