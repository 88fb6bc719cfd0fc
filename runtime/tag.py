"""Token classification: entities with their character spans.

Labels may be plain or prefixed: BIO (Ramshaw & Marcus 1995), and BIOES / BILOU, whose E, L, S and U end an entity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planish.errors import RequestError, nearest

__all__ = ["AGGREGATIONS", "Entity", "Token", "entities"]

ENDING = ("E", "L", "S", "U")
AGGREGATIONS = ("simple", "first", "average", "max", "none")
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Entity:
    """A piece of the text, ``text[start:end]`` in characters, with its label and probability."""

    label: str
    score: float
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Token:
    """One token of the text: probabilities of all labels, character span, number of its word (None if unknown)."""

    scores: Scores
    start: int
    end: int
    word: int | None


def entities(text: str, tokens: Sequence[Token], labels: Sequence[str], aggregation: str) -> list[Entity]:
    """Entities of one text, in order; the label ``O`` is no entity.

    ``none``: one a token. ``simple``: neighbours with the same label merge. The others settle the label of a word
    first, so that an entity never ends inside one: by its ``first`` token, the ``average`` of its tokens, or its most
    certain token (``max``). The meanings are those of the Hugging Face token-classification pipeline.
    """
    if aggregation not in AGGREGATIONS:
        raise RequestError("a known aggregation", repr(aggregation), nearest(str(aggregation), AGGREGATIONS))
    if aggregation == "none":
        spans = [(labels[int(t.scores.argmax())], float(t.scores.max()), t.start, t.end) for t in tokens]
        return [Entity(label, score, start, end, text[start:end]) for label, score, start, end in spans if label != "O"]
    units = list(tokens) if aggregation == "simple" else [_word(group, aggregation) for group in _by_word(tokens)]
    found = (_entity(text, group, labels) for group in _groups(units, labels))
    return [entity for entity in found if entity.label != "O"]


def _by_word(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    group: list[Token] = []
    for token in tokens:
        if group and (token.word is None or token.word != group[-1].word):
            yield group
            group = []
        group.append(token)
    if group:
        yield group


def _word(group: Sequence[Token], aggregation: str) -> Token:
    scores = np.stack([token.scores for token in group])
    if aggregation == "first":
        chosen = scores[0]
    elif aggregation == "average":
        chosen = scores.mean(axis=0)
    else:
        chosen = scores[int(scores.max(axis=1).argmax())]
    return Token(chosen, group[0].start, group[-1].end, group[0].word)


def _groups(units: Sequence[Token], labels: Sequence[str]) -> Iterator[list[Token]]:
    group: list[Token] = []
    last = ("", "")
    for unit in units:
        prefix, name = _split(labels[int(unit.scores.argmax())], labels)
        ends = last[0] in ENDING
        if group and (name != last[1] or prefix in ("B", "S", "U") or ends):
            yield group
            group = []
        group.append(unit)
        last = (prefix, name)
    if group:
        yield group


def _entity(text: str, group: Sequence[Token], labels: Sequence[str]) -> Entity:
    _, name = _split(labels[int(group[0].scores.argmax())], labels)
    score = float(np.mean([unit.scores.max() for unit in group]))
    start, end = group[0].start, group[-1].end
    return Entity(name, score, start, end, text[start:end])


def _split(label: str, labels: Sequence[str]) -> tuple[str, str]:
    """Prefix and name: B-PER is ("B", "PER"), a plain label is an inside one; E-MAIL is plain where no B-MAIL is.

    >>> _split("B-PER", []), _split("LOC", []), _split("E-MAIL", ["E-MAIL"]), _split("E-LOC", ["B-LOC", "E-LOC"])
    (('B', 'PER'), ('I', 'LOC'), ('I', 'E-MAIL'), ('E', 'LOC'))
    """
    prefix, dash, name = label.partition("-")
    if dash and (prefix in ("B", "I") or (prefix in ENDING and f"B-{name}" in labels)):
        return prefix, name
    return "I", label
