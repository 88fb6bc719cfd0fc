"""Cutting encodings to what the model takes: truncation, and overlapping windows for long texts.

Special tokens stay where the tokenizer put them; only the text between them is cut. Truncation of pairs cuts the
longer text first and, when both are too long, each to half, as the tokenizers library does with ``longest_first``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planish.errors import RequestError

if TYPE_CHECKING:
    from tokenizers import Encoding

__all__ = ["Piece", "truncated", "whole", "windows"]


@dataclass(frozen=True)
class Piece:
    """A part of an encoding: ``kept`` are the positions of its tokens there; ``cut`` says that some are missing."""

    encoding: Encoding
    kept: Sequence[int]
    cut: bool

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def ids(self) -> list[int]:
        return self._take(self.encoding.ids)

    @property
    def type_ids(self) -> list[int]:
        return self._take(self.encoding.type_ids)

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """Character spans (start, end) in the text the token comes from."""
        return self._take(self.encoding.offsets)

    @property
    def sequence_ids(self) -> list[int | None]:
        """0 for the first text, 1 for the second, None for special tokens the tokenizer added."""
        return self._take(self.encoding.sequence_ids)

    @property
    def word_ids(self) -> list[int | None]:
        return self._take(self.encoding.word_ids)

    def _take(self, values: list) -> list:  # type: ignore[type-arg]
        return [values[index] for index in self.kept] if self.cut else values


def whole(encoding: Encoding) -> Piece:
    """All of an encoding."""
    return Piece(encoding, range(len(encoding)), False)


def truncated(encoding: Encoding, max_length: int) -> Piece:
    """The encoding cut to ``max_length`` tokens, special ones included. Raises RequestError when those fill it."""
    if len(encoding) <= max_length:
        return whole(encoding)
    owner = encoding.sequence_ids
    first = [index for index, sequence in enumerate(owner) if sequence == 0]
    second = [index for index, sequence in enumerate(owner) if sequence == 1]
    room = max_length - (len(owner) - len(first) - len(second))
    if room < 1:
        raise RequestError(f"room for text in {max_length} tokens", "only special tokens", "raise max_length")
    keep_first, keep_second = _share(len(first), len(second), room)
    dropped = {*first[keep_first:], *second[keep_second:]}
    return Piece(encoding, [index for index in range(len(owner)) if index not in dropped], True)


def windows(encoding: Encoding, max_length: int, stride: int, sequence: int) -> list[Piece]:
    """Windows of ``max_length`` tokens over text number ``sequence``; neighbours share ``stride`` of its tokens.

    All other tokens are in every window. When they leave too little room for the stride, neighbours share half of what
    is left. Raises RequestError when they leave no room.
    """
    if len(encoding) <= max_length:
        return [whole(encoding)]
    owner = encoding.sequence_ids
    moving = [index for index, value in enumerate(owner) if value == sequence]
    room = max_length - (len(owner) - len(moving))
    if room < 1:
        got = f"{len(owner) - len(moving)} tokens before any text"
        raise RequestError(f"room for text in {max_length} tokens", got, "shorten the question or raise max_length")
    step = room - min(stride, room // 2)
    before = [index for index in range(len(owner)) if index < moving[0]]
    after = [index for index in range(len(owner)) if index > moving[-1]]
    pieces = []
    for start in range(0, len(moving), step):
        pieces.append(Piece(encoding, [*before, *moving[start : start + room], *after], True))
        if start + room >= len(moving):
            break
    return pieces


def _share(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each text are kept, together at most ``room``."""
    if first + second <= room:
        return first, second
    short, long = min(first, second), max(first, second)
    if short <= room - short:
        long = room - short
    else:
        short, long = room // 2, room // 2 + room % 2
    return (short, long) if first <= second else (long, short)
