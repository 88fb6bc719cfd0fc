"""A real model: MiniLM in INT8 is small, near its parent, and what the checkpoint says."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from planish.demo import onnx_bytes
from planish.export.golden import encoder_inputs, run_torch
from planish.export.quiet import quiet
from planish.export.reference import load_reference
from planish.runtime import load

SENTENCES = 60


def test_small_and_near_the_parent(
    minilm_bundle: Path, minilm_parent: Path, movie_sentences: dict[str, list[tuple[str, int]]]
) -> None:
    sentences = [text for text, _ in movie_sentences["test"][:SENTENCES]]
    with load(minilm_bundle) as model, load(minilm_parent) as parent:
        cosine = np.sum(model.embed(sentences) * parent.embed(sentences), axis=1)
        assert model.manifest.pooling is not None
        assert model.manifest.pooling.normalize
        assert model.manifest.parity["ort"].max_abs_error < 5e-5
    assert onnx_bytes(minilm_bundle) <= 24_000_000
    assert cosine.mean() >= 0.995
    assert cosine.min() >= 0.985


def test_free_running_programs_drift_apart_and_that_is_why_parity_forces(
    minilm_int8: Path, minilm_bundle: Path
) -> None:
    """Rounding amplifies the last bit: free-running, two faithful programs differ by more than the tolerance."""
    model = load_reference(minilm_int8, "feature-extraction")
    with load(minilm_bundle) as bundle:
        parity = bundle.manifest.parity["ort"]
        names = [info.name for info in bundle.manifest.dialects["ort"].inputs]
        inputs = encoder_inputs(names, [64], vocab_size=30522, pad_token_id=0)
        free = bundle.run(inputs)["last_hidden_state"]
    with quiet():
        expected = run_torch(model, inputs, ["last_hidden_state"])["last_hidden_state"]
    assert np.abs(free - expected).max() > parity.atol > 20 * parity.max_abs_error
    vectors = free.mean(axis=1), expected.mean(axis=1)
    assert np.sum(vectors[0] * vectors[1]) / np.prod([np.linalg.norm(v) for v in vectors]) > 0.995
