"""MiniLM pruned without training: the sentiment model to 70 % of its FLOPs (slow), and its embeddings (quick)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from planish.compress import compress
from planish.compress.checkpoint import open_checkpoint
from planish.sliced import from_pretrained
from tests.conftest import ROOT
from tests.sentiment import train_sentiment

Rows = list[tuple[str, int]]


def jsonl(path: Path, rows: Rows) -> Path:
    names = ["negative", "positive"]
    path.write_text("".join(json.dumps({"text": text, "label": names[label]}) + "\n" for text, label in rows))
    return path


def accuracy(model: Any, tokenizer: Any, rows: Rows) -> float:
    right = 0
    for at in range(0, len(rows), 64):
        texts, labels = zip(*rows[at : at + 64], strict=True)
        inputs = tokenizer(list(texts), truncation=True, max_length=64, padding=True, return_tensors="pt")
        with torch.no_grad():
            right += int((model(**inputs).logits.argmax(-1) == torch.tensor(labels)).sum())
    return right / len(rows)


@pytest.mark.slow
def test_sentiment_at_70_percent_of_its_flops(
    minilm: Path, movie_sentences: dict[str, Rows], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    """At most 1.5 points lost on the 1,008 test sentences, and no training; half the FLOPs cost at most 2.5."""
    source = train_sentiment(minilm, movie_sentences["train"], ROOT / ".cache" / "sentiment-minilm")
    train = jsonl(tmp_path / "train.jsonl", movie_sentences["train"])
    checkpoint = open_checkpoint(source)
    tokenizer, test = checkpoint.tokenizer(), movie_sentences["test"]
    parent = accuracy(checkpoint.load_model(), tokenizer, test)
    for share, loss in ((0.7, 0.015), (0.5, 0.025)):
        recipe = recipe_file({"pass": "prune", "flops": share, "length": 64}, train=str(train), max_length=64)
        output = tmp_path / f"pruned-{share}"
        receipt = compress(source, recipe, output).receipts[0]
        found = accuracy(from_pretrained(output), tokenizer, test)
        print(f"{share:.0%}: {parent:.4f} -> {found:.4f} in {receipt['seconds']:.0f} s, {receipt['facts']['kept']}")
        assert receipt["facts"]["block_flops_left"] <= share
        assert parent - found <= loss


def test_embeddings_at_80_percent(
    minilm: Path, movie_sentences: dict[str, Rows], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Few samples, no labels: embeddings stay near, nearer with tuning, and the checkpoint is as small as it says."""
    train = jsonl(tmp_path / "train.jsonl", movie_sentences["train"][:128])
    checkpoint = open_checkpoint(minilm)
    texts = [text for text, _ in movie_sentences["test"][:64]]
    inputs = checkpoint.tokenizer()(texts, truncation=True, max_length=48, padding=True, return_tensors="pt")

    def embed(model: Any) -> torch.Tensor:
        mask = inputs["attention_mask"][..., None]
        with torch.no_grad():
            return functional.normalize((model(**inputs)[0] * mask).sum(1), dim=-1)

    parent, near = embed(checkpoint.load_model()), {}
    for tuning in ("none", "weights"):
        step = {"pass": "prune", "flops": 0.8, "length": 48, "samples": 64, "labels": False, "tuning": tuning}
        result = compress(minilm, recipe_file(step, train=str(train), max_length=48), tmp_path / tuning)
        model = from_pretrained(tmp_path / tuning)
        near[tuning] = float((embed(model) * parent).sum(-1).mean())
        receipt = result.receipts[0]
        assert sum(p.numel() for p in model.parameters()) == receipt["after"]["parameters"]
        assert receipt["after"]["parameters"] < 0.92 * receipt["before"]["parameters"]
        size = (tmp_path / tuning / "model.safetensors").stat().st_size
        assert receipt["after"]["bytes"] < size < 1.01 * receipt["after"]["bytes"]
    assert near["weights"] > near["none"]
    assert near["weights"] > 0.9
