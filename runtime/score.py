"""How likely a decoder finds given texts: negative log-likelihood a token, and perplexity.

Protocol: the tokens of a text are cut into windows of ``context`` tokens that do not overlap; the first token of each
window is not predicted; perplexity is ``exp`` of the mean negative log-likelihood over all predicted tokens (Jelinek
et al. 1977).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planish.errors import RequestError
from planish.runtime.decoders import Decoder
from planish.runtime.manifest import Generation as DecoderInfo
from planish.runtime.prompts import check_count, read_prompts
from planish.runtime.sample import FloatArray, IntArray
from planish.runtime.text import TextEncoder

__all__ = ["Score", "negative_log_likelihood", "score"]

# Positions whose logits are held at once: 64 x 49,152 x 4 bytes = 12 MB, where a window of 512 would take 100 MB.
_CHUNK = 64


@dataclass(frozen=True)
class Score:
    """Scores of one or several texts; ``nll[i]`` holds the losses (nats) of text i's predicted tokens, in order."""

    nll: tuple[NDArray[np.float32], ...]

    @property
    def tokens(self) -> int:
        """Predicted tokens in all texts."""
        return sum(losses.size for losses in self.nll)

    @property
    def mean(self) -> float:
        """Mean loss over all predicted tokens, in nats."""
        return float(sum(losses.sum(dtype=np.float64) for losses in self.nll)) / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.mean)


def score(
    decoder: Decoder,
    encoder: TextEncoder,
    info: DecoderInfo,
    vocab_size: int,
    texts: str | Sequence[str] | Sequence[Sequence[int]],
    context: int = 512,
) -> Score:
    """Score ``texts`` (or token ids) in windows of ``context`` tokens.

    Raises RequestError for windows longer than the model's limit, and for texts too short to predict anything.
    """
    check_count("context", context, 2)
    ids, _ = read_prompts(texts, encoder, vocab_size)
    for index, tokens in enumerate(ids):
        if tokens.size < 2:
            raise RequestError("texts of at least two tokens", f"one in text {index}", "leave it out")
        if min(tokens.size, context) > info.max_length:
            got, fix = f"{min(tokens.size, context)} in text {index}", f"pass context={info.max_length}"
            raise RequestError(f"windows of at most {info.max_length} tokens", got, fix)
    return Score(tuple(_score_one(decoder, tokens, context) for tokens in ids))


def _score_one(decoder: Decoder, tokens: IntArray, context: int) -> FloatArray:
    losses: list[FloatArray] = []
    for start in range(0, tokens.size, context):
        window = tokens[start : start + context]
        if window.size > 1:
            losses.extend(_window(decoder, window))
    return np.concatenate(losses)


def _window(decoder: Decoder, window: IntArray) -> Iterator[FloatArray]:
    run = decoder.start(1, longest=window.size, limit=window.size)
    try:
        for start in range(0, window.size - 1, _CHUNK):
            stop = min(start + _CHUNK, window.size - 1)
            yield negative_log_likelihood(run.extend(window[start:stop]), window[start + 1 : stop + 1])
    finally:
        run.close()


def negative_log_likelihood(logits: FloatArray, targets: IntArray) -> FloatArray:
    """``-log softmax(logits)[targets]`` row by row, ``[rows, vocab]`` and ``[rows]`` to ``[rows]``; overwrites
    ``logits``.
    """
    logits -= logits.max(axis=1, keepdims=True)
    wanted = logits[np.arange(targets.size), targets]
    np.exp(logits, out=logits)
    return np.asarray(np.log(logits.sum(axis=1, dtype=np.float64)) - wanted, np.float32)
