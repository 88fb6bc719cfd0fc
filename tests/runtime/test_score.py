"""Scores against transformers' losses on the same windows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from planish.errors import RequestError
from planish.runtime.decoders import OrtDecoder
from planish.runtime.manifest import Generation as DecoderInfo
from planish.runtime.score import negative_log_likelihood, score
from planish.runtime.text import TextEncoder
from tests.runtime import tiny_decoder

INFO = DecoderInfo(**tiny_decoder.manifest_info())


def reference(model: Any, ids: list[int], context: int) -> list[float]:
    losses: list[float] = []
    for start in range(0, len(ids), context):
        window = torch.tensor([ids[start : start + context]])
        if window.shape[1] > 1:
            with torch.no_grad():
                logits = model(window).logits[0, :-1].double()
            losses += torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="none").tolist()
    return losses


@pytest.mark.parametrize("context", [2, 50, 64, 65, 130, 512])
def test_losses_match_transformers(
    session: Any, model: Any, encoder: TextEncoder, vocab: int, judge_text: str, context: int
) -> None:
    ids = encoder.encode([judge_text[:1500]])[0].ids[: 41 if context == 2 else 261]
    expected = reference(model, ids, context)
    got = score(OrtDecoder(session, INFO, vocab), encoder, INFO, vocab, ids, context)
    np.testing.assert_allclose(got.nll[0], expected, atol=2e-4)
    assert got.tokens == len(expected)
    assert got.perplexity == pytest.approx(math.exp(sum(expected) / len(expected)), rel=1e-4)


def test_several_texts_are_averaged_over_tokens_not_over_texts(
    session: Any, model: Any, encoder: TextEncoder, vocab: int
) -> None:
    texts = ["Call me Ishmael.", "Some years ago, never mind how long precisely, having little or no money in my purse"]
    got = score(OrtDecoder(session, INFO, vocab), encoder, INFO, vocab, texts)
    expected = [loss for text in texts for loss in reference(model, encoder.encode([text])[0].ids, 512)]
    assert got.mean == pytest.approx(np.mean(expected), abs=1e-4)
    assert [losses.size for losses in got.nll] == [len(encoder.encode([text])[0].ids) - 1 for text in texts]
    assert (
        score(OrtDecoder(session, INFO, vocab), encoder, INFO, vocab, texts[0]).nll[0].tolist() == got.nll[0].tolist()
    )


def test_losses_of_extreme_logits_do_not_overflow() -> None:
    logits = np.array([[1000.0, -1000.0, 0.0], [-1000.0, -1000.0, -1000.0]], np.float32)
    np.testing.assert_allclose(negative_log_likelihood(logits, np.array([2, 0])), [1000.0, math.log(3)], rtol=1e-6)


@pytest.mark.parametrize(
    ("texts", "context", "match"),
    [
        ("", 512, "at least one token"),
        ([[5]], 512, "at least two tokens"),
        ("Call me Ishmael.", 1, "context"),
        ([[5] * 600], 513, "at most 512 tokens, got 513 in text 0; pass context=512"),
        ("Call me Ishmael.", 3.0, "context"),
        ([[5, 99999]], 512, "99999"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    session: Any, encoder: TextEncoder, vocab: int, texts: Any, context: Any, match: str
) -> None:
    with pytest.raises(RequestError, match=match):
        score(OrtDecoder(session, INFO, vocab), encoder, INFO, vocab, texts, context)
