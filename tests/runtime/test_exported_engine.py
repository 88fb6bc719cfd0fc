"""From export to an engine: real `qdq` graphs and the builder's own optimization profiles, on the fake TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planish import profiles
from planish.export import export
from planish.export.build_shapes import optimization_profiles
from planish.runtime import load, prove_engine, read_manifest
from tests import tiny
from tests.runtime import fake_tensorrt
from tests.runtime.engine_bundle import add_fake_engine
from tests.runtime.fake_cuda import FakeCudart

PROFILE = "rtx-4090"
TEXTS = ["Call me Ishmael. Some years ago, never mind how long", "The whale", "It was the whiteness of the whale that"]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCudart:
    made = FakeCudart()
    fake_tensorrt.install(monkeypatch, made)
    return made


def with_engine(bundle: Path) -> str:
    """Adds an engine for the shapes the builder would give it."""
    manifest = read_manifest(bundle)
    found = optimization_profiles(profiles.load(PROFILE), manifest, manifest.dialects["qdq"].inputs)
    shapes: list[dict[str, Any]] = [
        {name: (sizes.min, sizes.opt, sizes.max) for name, sizes in each.shapes.items()} for each in found
    ]
    return add_fake_engine(bundle, shapes, told=tuple(found), profile=PROFILE)


def test_a_decoder(tmp_path: Path, cuda: FakeCudart) -> None:
    bundle = export(tiny.tiny_decoder("llama", tmp_path / "checkpoint"), tmp_path / "bundle", profile=PROFILE).path
    name = with_engine(bundle)
    proof = prove_engine(bundle, name).engines[name].proved
    parity = read_manifest(bundle).parity["qdq"]
    assert proof is not None
    assert proof["drift"] == pytest.approx(parity.golden_drift, rel=0.2)
    assert proof["limit"] == parity.golden_limit
    with load(bundle) as model, load(bundle, "cpu") as other:
        assert (model.engine_id, other.dialect) == (name, "ort")
        got, wanted = (each.generate(TEXTS, max_new_tokens=24) for each in (model, other))
        assert [answer.token_ids for answer in got] == [answer.token_ids for answer in wanted]
        assert model.score(TEXTS).perplexity == pytest.approx(other.score(TEXTS).perplexity, rel=1e-3)
    assert not cuda.live


def test_an_encoder(tmp_path: Path, cuda: FakeCudart) -> None:
    checkpoint = tiny.tiny_encoder("bert", "text-classification", tmp_path / "checkpoint")
    bundle = export(checkpoint, tmp_path / "bundle", profile=PROFILE).path
    name = with_engine(bundle)
    with load(bundle) as model, load(bundle, "cpu") as other:
        assert model.engine_id == name
        for got, wanted in zip(model.classify(TEXTS * 3), other.classify(TEXTS * 3), strict=True):
            assert got.labels == wanted.labels
            np.testing.assert_allclose(got.scores, wanted.scores, atol=5e-3)
    assert not cuda.live
