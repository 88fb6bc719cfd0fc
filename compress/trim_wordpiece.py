"""Trimming WordPiece and WordLevel: which tokens stay beside the used ones.

WordPiece takes the longest token that fits, again and again. Where every token it took is still there and none was
added, it takes the same: a corpus reads as before. Only a word that ended as unknown needs care: the tokens it was
matched with before it failed are in no output, and without them a shorter match might succeed.
"""

from __future__ import annotations

from typing import Any

__all__ = ["attempted", "characters", "prefix_of"]


def characters(model: dict[str, Any]) -> set[int]:
    """Ids of the alphabet of a WordPiece ``model``: ``x`` and ``##x`` for single characters x."""
    prefix = prefix_of(model)
    return {
        number for token, number in model["vocab"].items() if len(token) == 1 or len(token.removeprefix(prefix)) == 1
    }


def attempted(model: dict[str, Any], word: str) -> set[int]:
    """Ids that WordPiece matches in the normalized ``word``, from the left until it ends or fails."""
    prefix, vocabulary = prefix_of(model), model["vocab"]
    found: set[int] = set()
    start = 0
    while start < len(word):
        lead = prefix if start else ""
        match = next((end for end in range(len(word), start, -1) if lead + word[start:end] in vocabulary), None)
        if match is None:
            break
        found.add(vocabulary[lead + word[start:match]])
        start = match
    return found


def prefix_of(model: dict[str, Any]) -> str:
    """What a piece that continues a word begins with, "##" in BERT; empty where there is none."""
    return str(model.get("continuing_subword_prefix") or "")
