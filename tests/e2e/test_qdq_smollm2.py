"""SmolLM2-135M, off its 4-bit grid, in the qdq dialect: perplexity in ONNX Runtime, and engines built but not run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from planish import runtime
from planish.export.decoder import build_decoder
from planish.export.graph import Built
from planish.export.parity import open_session
from planish.export.qdq_parity import check_decoder_qdq
from planish.export.reference import load_reference

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

CONTEXT, TOKENS, LAYERS = 512, 8_192, 30


@pytest.fixture(scope="module")
def checkpoint(make: Any, smollm2: Path) -> Path:
    return Path(make("smollm2-int8-weight-only", "compress", smollm2, "-r", "int8-weight-only"))


@pytest.fixture(scope="module")
def built(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build_decoder(checkpoint, tmp_path_factory.mktemp("smollm2") / "qdq", dialect="qdq")


def perplexity(built: Built, ids: list[int]) -> float:
    session = open_session(built.folder / built.files[0], built)
    empty = {
        spec.name: np.zeros((1, int(spec.shape[1]), 0, int(spec.shape[3])), np.float16)
        for spec in built.inputs
        if spec.name.startswith("past_key_values")
    }
    loss, count = 0.0, 0
    for start in range(0, len(ids), CONTEXT):
        row = np.array([ids[start : start + CONTEXT]])
        steps = np.arange(row.shape[1])[None]
        fed = {"input_ids": row, "position_ids": steps, "attention_mask": np.ones_like(row), "logits_index": steps}
        logits = np.asarray(session.run(["logits"], {**fed, **empty})[0])[0, :-1]
        loss += float(np.sum(surprise(logits.astype(np.float64), row[0, 1:])))
        count += row.shape[1] - 1
    return math.exp(loss / count)


def surprise(logits: NDArray[np.float64], tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Minus the log probability of each token."""
    top = logits.max(-1)
    found: NDArray[np.float64] = (
        top + np.log(np.exp(logits - top[:, None]).sum(-1)) - logits[np.arange(len(tokens)), tokens]
    )
    return found


def test_perplexity_is_the_parents(built: Built, smollm2_parent: Path, judge_text: str) -> None:
    with runtime.load(smollm2_parent) as parent:
        ids = parent.tokenizer.encode(judge_text).ids[:TOKENS]
        base = float(parent.score([ids], context=CONTEXT).perplexity)
    found = perplexity(built, ids)
    print(f"perplexity on {TOKENS} tokens: fp32 {base:.3f}, int8-weight-only in qdq {found:.3f} ({found / base:.4f})")
    assert found <= 1.005 * base


def test_parity(built: Built, checkpoint: Path) -> None:
    told = check_decoder_qdq(built, load_reference(checkpoint, "text-generation"), vocab_size=49152)
    assert told["max_abs_error"] < 2e-3
    assert max(case["drift"] for case in told["cases"]) < 0.01
    assert "model.layers.11.mlp.down_proj" in built.audit["ranges"]["fp32"], "where the residual stream grows to 26,000"


def test_every_attention_is_fused_and_every_weight_int8(built: Built) -> None:
    pytest.importorskip("tensorrt_rtx", reason="NVIDIA publishes it for Linux on x86-64 only")
    from tests.export.decoder_engines import Sizes, counts, plan

    profiles: Sizes = {"prefill": ((1, 0), (128, 0), (512, 512)), "decode": ((1, 0), (1, 256), (1, 1023))}
    path = built.folder / built.files[0]
    data = plan(path, profiles)
    told = counts(path, data, profiles)
    print(f"plan {len(data) / 1e6:.1f} MB, {told}")
    assert len(data) < 225e6
    for found in told.values():
        assert found["fused_attentions"] == LAYERS
        assert set(found["gemms"]) == {"half x int8"}
