"""Trimming unigram models (SentencePiece; Kudo 2018): which pieces stay beside the used ones.

A text is cut so that the sum of its pieces' scores is largest. Take away pieces the best cut did not use, and it is
still the best, by the same sum; of equal ones the earliest start wins, as before. An unknown character scores the
lowest score of all pieces less 10, so the piece with the lowest score has to stay: without it, unknown would get
cheaper. (A character whose own piece is gone becomes unknown, which always costs more than the piece did.)
"""

from __future__ import annotations

from typing import Any

from planish.compress.trim_bpe import spells

__all__ = ["characters", "lowest"]


def characters(model: dict[str, Any]) -> set[int]:
    """Ids of single characters; with byte fallback of ``<0xNN>``, ASCII and the mark of a space."""
    fallback = bool(model.get("byte_fallback"))
    return {number for number, (piece, _) in enumerate(model["vocab"]) if spells(piece, piece, fallback)}


def lowest(model: dict[str, Any]) -> int:
    """Id of the piece with the lowest score, the first of several."""
    scores = [score for _, score in model["vocab"]]
    return scores.index(min(scores))
