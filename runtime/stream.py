"""Token ids to text while they are generated: whole characters only, and stop strings across token borders.

A token of a byte-level tokenizer may hold part of a character, and a SentencePiece one shows its leading space only
after another token. So a token is never decoded alone: a short window of ids is decoded before and after it, and the
difference is what it added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Detokenizer", "Piece", "StopMatcher"]

# The window is cut back when it is longer than this; cutting costs a decode, a longer window makes each decode dearer.
_WINDOW = 12
# Prompt tokens decoded before the first generated one, so that its leading space is seen.
_CONTEXT = 4
_INCOMPLETE = "\ufffd"


@dataclass(frozen=True)
class Piece:
    """A bit of text that will not change any more. ``index`` is the prompt's position in the request.

    ``finish_reason`` is set on the last piece of a prompt (whose text may be empty): "stop", "length" or "eos".
    """

    index: int
    text: str
    finish_reason: str | None = None

    def __str__(self) -> str:
        return self.text


class Detokenizer:
    """Decodes one row of ids, step by step; the pieces' concatenation is the text of the ids.

    ``decode`` maps ids to text; ``skip`` are ids that have no text (special tokens); ``context`` is the prompt's end.
    With a byte-level tokenizer and no context the text equals ``decode`` of all ids at once.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], skip: frozenset[int] = frozenset(), context: Sequence[int] = ()
    ) -> None:
        self._decode = decode
        self._skip = skip
        self._ids = [int(i) for i in context[-4 * _CONTEXT :] if int(i) not in skip][-_CONTEXT:]
        text = decode(self._ids) if self._ids else ""
        if text.endswith(_INCOMPLETE):  # the prompt ends inside a character: what follows stands for itself
            self._ids, text = [], ""
        self._shown = len(text)  # characters of decode(_ids) already given out
        self._border = len(self._ids)  # ids up to here make whole characters

    def push(self, token: int) -> str:
        """The text that ``token`` completes, maybe none."""
        if token in self._skip:
            return ""
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith(_INCOMPLETE):
            return ""
        piece = text[self._shown :]
        self._shown = len(text)
        if len(self._ids) > _WINDOW:
            # Cut at the last border, not here: the next token needs this one before it to show its leading space.
            del self._ids[: self._border]
            self._shown = len(self._decode(self._ids))
        self._border = len(self._ids)
        return piece

    def extend(self, tokens: Sequence[int]) -> str:
        """The text of many tokens at once; the same as pushing them one by one and flushing, with one decode."""
        self._ids.extend(t for t in tokens if t not in self._skip)
        return self.flush()

    def flush(self) -> str:
        """What is still held back, an unfinished character included."""
        text = self._decode(self._ids) if self._ids else ""
        piece, self._shown = text[self._shown :], len(text)
        return piece


class StopMatcher:
    """Finds the first stop string to be completed in a growing text, and never gives out a part of it.

    Knuth, Morris and Pratt (1977), one automaton a stop string: each character is looked at once, however the text is
    cut. If two stop strings end at the same character the longer one is taken.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [(stop, _failures(stop)) for stop in stops]
        self._states = [0] * len(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """``(text that is safe to show, whether a stop string was met)``; the stop string itself is not shown."""
        if not self._stops:
            return text, False
        whole = self._held + text
        for at in range(len(self._held), len(whole)):
            found = self._advance(whole[at])
            if found:
                self._held = ""
                return whole[: at + 1 - found], True
        safe = len(whole) - max(self._states)
        self._held = whole[safe:]
        return whole[:safe], False

    def _advance(self, char: str) -> int:
        found = 0
        for which, (stop, failures) in enumerate(self._stops):
            state = self._states[which]
            while state and stop[state] != char:
                state = failures[state - 1]
            state += stop[state] == char
            if state == len(stop):
                found = max(found, state)
                state = failures[state - 1]
            self._states[which] = state
        return found

    def flush(self) -> str:
        """The text held back because it could have become a stop string."""
        held, self._held = self._held, ""
        self._states = [0] * len(self._stops)
        return held


def _failures(pattern: str) -> list[int]:
    """For each prefix of ``pattern``: the length of its longest proper prefix that is also its suffix."""
    table = [0] * len(pattern)
    length = 0
    for at in range(1, len(pattern)):
        while length and pattern[at] != pattern[length]:
            length = table[length - 1]
        length += pattern[at] == pattern[length]
        table[at] = length
    return table
