"""Extractive question answering: the best span of a context, over all windows of a long one.

Spans of all windows compete with each other: their logits are turned into probabilities by one softmax over the whole
context (shared normalization, Clark & Gardner 2017, arXiv:1710.10723), so a window without the answer does not get to
be sure of itself. With one window the score is that of the Hugging Face question-answering pipeline.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planish.runtime.pieces import Piece

__all__ = ["Answer", "Window", "best_answers"]


@dataclass(frozen=True)
class Answer:
    """``context[start:end]`` in characters; an empty text says that the context does not answer."""

    text: str
    score: float
    start: int
    end: int
    alternatives: tuple[Answer, ...] = ()


@dataclass(frozen=True)
class Window:
    """One window over the context, and the model's logits [tokens] for where an answer starts and ends."""

    piece: Piece
    start_logits: NDArray[np.float32]
    end_logits: NDArray[np.float32]


def best_answers(context: str, windows: Sequence[Window], max_tokens: int, top_k: int, no_answer: bool) -> Answer:
    """The best answer of at most ``max_tokens`` tokens, with the next ``top_k - 1`` as alternatives.

    With ``no_answer`` the empty answer takes part; its score is that of the first token ([CLS]) in the window
    that believes in it least, as in SQuAD 2.0.
    """
    allowed = [_allowed(window.piece) for window in windows]
    starts = _normalize([window.start_logits for window in windows], allowed)
    ends = _normalize([window.end_logits for window in windows], allowed)
    found: dict[tuple[int, int], float] = {}
    for window, start, end in zip(windows, starts, ends, strict=True):
        for first, last, score in _spans(start, end, _context_tokens(window.piece), max_tokens, top_k):
            span = _characters(window.piece, first, last)
            found[span] = max(score, found.get(span, 0.0))
    if no_answer or not found:
        found[0, 0] = min(float(start[0] * end[0]) for start, end in zip(starts, ends, strict=True))
    ranked = sorted(found.items(), key=lambda item: -item[1])[:top_k]
    answers = [Answer(context[start:end], score, start, end) for (start, end), score in ranked]
    best = answers[0]
    return Answer(best.text, best.score, best.start, best.end, tuple(answers[1:]))


def _context_tokens(piece: Piece) -> NDArray[np.bool_]:
    return np.array([sequence == 1 for sequence in piece.sequence_ids], dtype=np.bool_)


def _allowed(piece: Piece) -> NDArray[np.bool_]:
    """Context tokens, and the first token, which stands for no answer."""
    allowed = _context_tokens(piece)
    allowed[0] = True
    return allowed


def _normalize(
    logits: Sequence[NDArray[np.float32]], allowed: Sequence[NDArray[np.bool_]]
) -> list[NDArray[np.float64]]:
    """One softmax over the allowed tokens of all windows."""
    highest = max(float(values[mask].max()) for values, mask in zip(logits, allowed, strict=True))
    powers = [np.exp(values.astype(np.float64) - highest) * mask for values, mask in zip(logits, allowed, strict=True)]
    total = sum(float(values.sum()) for values in powers)
    return [values / total for values in powers]


def _spans(
    start: NDArray[np.float64], end: NDArray[np.float64], inside: NDArray[np.bool_], max_tokens: int, top_k: int
) -> Iterator[tuple[int, int, float]]:
    """The best ``top_k`` pairs first <= last < first + max_tokens inside the context, with their scores."""
    positions = np.flatnonzero(inside)
    if not len(positions):
        return
    low = int(positions[0])
    scores = np.outer(np.where(inside, start, 0.0)[low:], np.where(inside, end, 0.0)[low:])
    scores = np.tril(np.triu(scores), max_tokens - 1)
    count = min(top_k, scores.size)
    flat = scores.ravel()
    best = np.argpartition(-flat, count - 1)[:count]
    for index in best[np.argsort(-flat[best], kind="stable")]:
        first, last = divmod(int(index), scores.shape[1])
        if flat[index] > 0:
            yield low + first, low + last, float(flat[index])


def _characters(piece: Piece, first: int, last: int) -> tuple[int, int]:
    """The character span of two tokens, widened to whole words where the tokenizer knows them."""
    encoding, left, right = piece.encoding, piece.kept[first], piece.kept[last]
    first_word, last_word = encoding.word_ids[left], encoding.word_ids[right]
    start, end = encoding.offsets[left][0], encoding.offsets[right][1]
    if first_word is not None and (span := encoding.word_to_chars(first_word, 1)) is not None:
        start = min(start, span[0])
    if last_word is not None and (span := encoding.word_to_chars(last_word, 1)) is not None:
        end = max(end, span[1])
    return int(start), int(end)
