"""Filling masks: the likeliest tokens for each mask in a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from planish.errors import RequestError
from planish.runtime.classify import softmax
from planish.runtime.pieces import Piece

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Filled", "fill_masks", "mask_positions"]


@dataclass(frozen=True)
class Filled:
    """One token for one mask: ``mask`` counts the masks of the text, ``text`` is the text with this mask filled."""

    token: str
    token_id: int
    score: float
    mask: int
    text: str


def mask_positions(piece: Piece, mask_id: int, mask_token: str) -> list[int]:
    """Where the masks of a text are among its tokens. Raises RequestError when it has none, or one was cut off."""
    positions = [index for index, token in enumerate(piece.ids) if token == mask_id]
    if not positions:
        got = "none in the part that fits the model" if piece.cut else "none"
        raise RequestError(f"at least one {mask_token} in the text", got, f"put {mask_token} where a word is missing")
    count = piece.encoding.ids.count(mask_id) if piece.cut else len(positions)
    if len(positions) < count:
        expected = f"every {mask_token} in the part of the text that fits the model ({len(piece)} tokens)"
        raise RequestError(expected, f"{len(positions)} of {count} there", "shorten the text")
    return positions


def fill_masks(
    text: str, piece: Piece, logits: NDArray[Any], positions: list[int], tokenizer: Tokenizer, top_k: int
) -> list[Filled]:
    """``top_k`` tokens for each mask, best first, from logits [tokens, vocabulary]."""
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise RequestError("top_k of at least 1", repr(top_k), "5 is usual")
    results = []
    for number, position in enumerate(positions):
        scores = softmax(logits[position])
        start, end = piece.offsets[position]
        for token_id in np.argsort(-scores, kind="stable")[:top_k]:
            token = tokenizer.decode([int(token_id)], skip_special_tokens=False)
            filled = _splice(text, start, end, token)
            results.append(Filled(token, int(token_id), float(scores[token_id]), number, filled))
    return results


def _splice(text: str, start: int, end: int, token: str) -> str:
    """The text with the mask replaced; a WordPiece continuation is joined to the word before it.

    >>> _splice("walk [MASK] home", 5, 11, "##ing"), _splice("The [MASK].", 4, 10, "cat")
    ('walking home', 'The cat.')
    """
    if token.startswith("##"):
        return text[:start].rstrip() + token[2:] + text[end:]
    return text[:start] + token + text[end:]
