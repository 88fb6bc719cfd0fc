"""Entity spans in a text: from tags, and how many of them two sides share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Span", "spans_from_tags"]


class Span(NamedTuple):
    """Characters ``start`` to ``end`` (exclusive) carry ``label``."""

    start: int
    end: int
    label: str


def spans_from_tags(tokens: Sequence[str], tags: Sequence[str]) -> tuple[Span, ...]:
    """Character spans of tagged tokens joined by one space.

    ``B-X`` begins an entity; ``I-X`` continues one of the same label, else begins one (the lenient reading of
    conlleval); a bare ``X`` (no prefix) continues an equal neighbour; ``O`` is outside. ``E-``/``L-`` end and
    ``S-``/``U-`` are single.

    >>> spans_from_tags(["Ann", "Lee", "left"], ["B-PER", "I-PER", "O"])
    (Span(start=0, end=7, label='PER'),)
    """
    spans: list[Span] = []
    position, closed, before = 0, True, "O"
    for token, tag in zip(tokens, tags, strict=True):
        start, end = position, position + len(token)
        position = end + 1
        prefix, _, label = tag.partition("-") if tag[:2] in {"B-", "I-", "E-", "L-", "S-", "U-"} else ("I", "", tag)
        if tag == "O":
            before, closed = "O", True
            continue
        if not closed and before == label and prefix in {"I", "E", "L"}:
            spans[-1] = Span(spans[-1].start, end, label)
        else:
            spans.append(Span(start, end, label))
        before, closed = label, prefix in {"E", "L", "S", "U"}
    return tuple(spans)
