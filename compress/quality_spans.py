"""Entities out of the tags of words."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from planish.compress.quality_read import Reading
from planish.gate.spans import Span, spans_from_tags

__all__ = ["entities", "spans_of_words"]


def entities(reading: Reading, labels: Sequence[str]) -> tuple[Span, ...]:
    """What a model found, as characters of the text."""
    assert reading.places is not None
    return spans_of_words(reading.best, reading.places, labels)


def spans_of_words(tags: Tensor, words: Tensor, labels: Sequence[str]) -> tuple[Span, ...]:
    """Entities of words tagged ``tags`` int64 ``[n]``, whose characters are ``words`` int64 ``[n, 2]``.

    >>> import torch
    >>> spans_of_words(torch.tensor([1, 2, 0]), torch.tensor([[0, 3], [5, 8], [8, 9]]), ["O", "B-PER", "I-PER"])
    (Span(start=0, end=8, label='PER'),)
    """
    # Words of one character joined by one space: word i lies at 2 i, whatever the text between the words is.
    found = spans_from_tags(["x"] * len(tags), [labels[int(tag)] for tag in tags])
    return tuple(Span(int(words[span.start // 2, 0]), int(words[(span.end - 1) // 2, 1]), span.label) for span in found)
