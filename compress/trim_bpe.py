"""Trimming byte-pair encoding: the closure of merges.

BPE joins the pair of the lowest rank until no merge applies (Sennrich et al. 2016). A token at the end of that came of
one tree of merges, in which every inner node is a token, too. If a kept token keeps every merge that makes it, and so
on down to characters, then each step on corpus text finds the merge it found before, and no other of lower rank: the
merges left are a part of the former ones, in their order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

__all__ = ["Merges", "characters"]

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "▁"


class Merges:
    """The merges of a BPE ``model`` (of tokenizer.json), by the token they make."""

    def __init__(self, model: dict[str, Any]) -> None:
        self._vocabulary: dict[str, int] = model["vocab"]
        self._lists: list[Any] = model["merges"]
        lead = len(model.get("continuing_subword_prefix") or "")
        self._ids = [self._resolve(*_pair(entry), lead) for entry in self._lists]
        self._makers: dict[int, set[int]] = {}
        for left, right, made in self._ids:
            self._makers.setdefault(made, set()).update((left, right))

    def _resolve(self, left: str, right: str, lead: int) -> tuple[int, int, int]:
        """Ids of the two parts and of what they make; the right part loses its continuing prefix."""
        return self._vocabulary[left], self._vocabulary[right], self._vocabulary[left + right[lead:]]

    def closure(self, ids: Iterable[int]) -> set[int]:
        """``ids``, the parts of every merge that makes one of them, and the parts of those."""
        closed: set[int] = set()
        open_ = list(ids)
        while open_:
            token = open_.pop()
            if token not in closed:
                closed.add(token)
                open_.extend(self._makers.get(token, ()))
        return closed

    def among(self, kept: set[int]) -> list[Any]:
        """The merges whose two parts and product are kept, in rank order, spelled as they were."""
        pairs = zip(self._lists, self._ids, strict=True)
        return [entry for entry, ids in pairs if kept.issuperset(ids)]


def _pair(entry: Any) -> tuple[str, str]:
    left, right = entry.split(" ") if isinstance(entry, str) else entry
    return left, right


def characters(model: dict[str, Any]) -> set[int]:
    """Ids of the alphabet of a BPE ``model``, out of which any text can be spelled.

    Single characters; of byte-level BPE these are the 256 bytes (as far as the vocabulary has them). With byte
    fallback the tokens ``<0xNN>`` stand in for characters, so only ASCII and the mark of a space are kept besides.
    """
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    found = set()
    for token, number in model["vocab"].items():
        bare = token.removeprefix(prefix).removesuffix(suffix)
        if spells(token, bare, bool(model.get("byte_fallback"))):
            found.add(number)
    return found


def spells(token: str, bare: str, byte_fallback: bool) -> bool:
    """Whether ``token`` belongs to the alphabet; ``bare`` is it without the marks of its place in the word."""
    if not byte_fallback:
        return len(bare) == 1 or len(token) == 1
    return _BYTE.fullmatch(token) is not None or (len(bare) == 1 and (bare.isascii() or bare == _SPACE))
