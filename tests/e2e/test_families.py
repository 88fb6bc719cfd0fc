"""Every family goes the whole way: ship, then run, on a tiny checkpoint trained for seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import DECODERS, ENCODERS, tiny_decoder, tiny_encoder


def run_json(*arguments: str | Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "planish", *map(str, arguments), "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.parametrize("family", sorted(DECODERS))
def test_decoders_ship_and_run(family: str, tmp_path: Path) -> None:
    model = tiny_decoder(family, tmp_path / family)
    bundle = tmp_path / "bundle"
    shipped = run_json("ship", model, "-r", "int8-weight-only", "-o", bundle, "--no-latency")
    assert shipped["gate"]["verdict"] == "pass"
    told = run_json("run", bundle, "The captain stood upon", "--max-new-tokens", "12")
    assert told["task"] == "text-generation"
    assert len(told["results"][0]["token_ids"]) == 12
    assert told["results"][0]["text"]


@pytest.mark.parametrize("family", sorted(ENCODERS))
def test_encoders_ship_and_run(family: str, tmp_path: Path) -> None:
    model = tiny_encoder(family, "text-classification", tmp_path / family)
    bundle = tmp_path / "bundle"
    shipped = run_json("ship", model, "-r", "int8", "-o", bundle, "--no-latency")
    assert shipped["gate"]["verdict"] == "pass"
    texts = ["A whale.", "And God created great whales, and the great ship sailed on over the wide and heaving sea."]
    told = run_json("run", bundle, *texts)
    assert [found["labels"][0] for found in told["results"]] == [parents_label(model, text) for text in texts]


def parents_label(model: Path, text: str) -> str:
    """What the float parent says in transformers."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    parent = AutoModelForSequenceClassification.from_pretrained(model).eval()
    inputs = AutoTokenizer.from_pretrained(model)(text, return_tensors="pt")
    with torch.no_grad():
        logits = parent(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    return str(parent.config.id2label[int(logits.argmax())])


@pytest.mark.parametrize("task", ["feature-extraction", "token-classification", "question-answering", "fill-mask"])
def test_tasks_export_and_run(task: str, tmp_path: Path) -> None:
    model = tiny_encoder("roberta", task, tmp_path / "model")
    checkpoint, bundle = tmp_path / "checkpoint", tmp_path / "bundle"
    run_json("compress", model, "-r", "int8", "-o", checkpoint)
    run_json("export", checkpoint, "-o", bundle)
    text = "The captain saw the <mask> ." if task == "fill-mask" else "The captain saw the whale."
    extra = {"question-answering": ["--question", "Who saw the whale?"], "feature-extraction": ["--pooling", "mean"]}
    told = run_json("run", bundle, text, *extra.get(task, []))
    assert told["task"] == task
    assert len(told["results"]) == 1
