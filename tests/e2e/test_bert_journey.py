"""compress -> export -> run -> gate on real BERTs: MiniLM as it is, and MiniLM fine-tuned for sentiment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planish import runtime
from planish.demo import onnx_bytes

Sentences = dict[str, list[tuple[str, int]]]


def test_minilm_int8_is_small_and_close(minilm_bundle: Path, minilm_parent: Path, movie_sentences: Sentences) -> None:
    assert onnx_bytes(minilm_bundle) <= 24_000_000
    texts = [text for text, _ in movie_sentences["test"][:200]]
    with runtime.load(minilm_bundle) as small, runtime.load(minilm_parent) as parent:
        cosine = (small.embed(texts) * parent.embed(texts)).sum(axis=1)
    assert cosine.mean() >= 0.995
    assert cosine.min() >= 0.985


def test_parent_bundle_is_the_parent(minilm: Path, minilm_parent: Path, judge_text: str) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts = [line for line in judge_text.split(". ") if 20 < len(line) < 300][:16]
    tokenizer, model = AutoTokenizer.from_pretrained(minilm), AutoModel.from_pretrained(minilm).eval()
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).numpy()
    with runtime.load(minilm_parent) as bundle:
        np.testing.assert_allclose(bundle.embed(texts), pooled, atol=1e-4)


def test_padding_does_not_change_an_answer(minilm_bundle: Path) -> None:
    """Scales are static or a token's own, so a text's vector does not depend on what else is in its batch."""
    texts = ["Short.", "A much longer sentence about hammers, anvils and the smoothing of sheet metal, " * 4]
    with runtime.load(minilm_bundle) as model:
        together, alone = model.embed(texts), np.concatenate([model.embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=2e-3)


@pytest.mark.slow  # the fine-tuning alone takes five minutes on two cores
@pytest.mark.timeout(3600)
def test_sentiment_ships_within_half_a_point(
    sentiment: Path, sentiment_parent: Path, make: Any, movie_sentences: Sentences, tmp_path: Path
) -> None:
    data = tmp_path / "test.jsonl"
    names = ["negative", "positive"]
    data.write_text(
        "".join(json.dumps({"text": text, "label": names[label]}) + "\n" for text, label in movie_sentences["test"])
    )
    bundle = make("sentiment.bundle", "ship", sentiment, "-r", "int8", "--data", data, "--seconds", "20")
    gates = json.loads((bundle / "manifest.json").read_text())["gates"]
    assert gates[0]["verdict"] == "pass"
    texts, truth = zip(*movie_sentences["test"], strict=True)
    accuracy = {}
    for path in (bundle, sentiment_parent):
        with runtime.load(path) as model:
            predicted = [found.label for found in model.classify(list(texts))]
        accuracy[path] = np.mean([names[label] == name for label, name in zip(truth, predicted, strict=True)])
    assert accuracy[sentiment_parent] >= 0.84
    assert accuracy[bundle] >= accuracy[sentiment_parent] - 0.005


def test_quantized_checkpoint_is_what_was_exported(minilm_int8: Path, minilm_bundle: Path) -> None:
    """`planish.compress.load` answers the golden inputs as the exporter's reference did; the bundle stays near both.

    Not equal: roundings of activations that fall on the other side cascade, as much as quantizing itself changes.
    """
    import torch

    from planish.compress import load

    inputs = dict(np.load(minilm_bundle / "golden" / "inputs.npz"))
    golden = np.load(minilm_bundle / "golden" / "outputs.npz")["last_hidden_state"]
    model = load(minilm_int8)
    with torch.no_grad():
        loaded = model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).last_hidden_state.numpy()
    np.testing.assert_allclose(loaded, golden, atol=1e-4)
    with runtime.load(minilm_bundle) as bundle:
        served = bundle.run(inputs)["last_hidden_state"]
    real = inputs["attention_mask"].astype(bool)
    norms = np.linalg.norm(served[real], axis=-1) * np.linalg.norm(golden[real], axis=-1)
    assert ((served * golden)[real].sum(-1) / norms).min() >= 0.98


def test_a_checkpoint_without_smoothing_loads_in_transformers(minilm: Path, minilm_bundle: Path, make: Any) -> None:
    """`int8-dynamic` is the compressed-tensors layout and nothing else: plain `from_pretrained` gives its function."""
    import torch
    from transformers import AutoModel

    from planish.compress import load

    checkpoint = make("minilm-dynamic", "compress", minilm, "-r", "int8-dynamic")
    inputs = {name: torch.from_numpy(array) for name, array in np.load(minilm_bundle / "golden" / "inputs.npz").items()}
    with torch.no_grad():
        theirs = AutoModel.from_pretrained(checkpoint).eval()(**inputs).last_hidden_state
        ours = load(checkpoint)(**inputs).last_hidden_state
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)
