"""Texts become token ids, and labels land on tokens: spans on words, answers on first and last token.

A *word* is a unit of the tokenizer's pre-tokenizer. In tagging the first token of a word carries its label and the
others none, as in Devlin et al. 2019 (BERT), section 5.3. An answer is its first occurrence in the context; a question
without one has both positions on token 0 ([CLS]), as in SQuAD 2.0.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from planish.compress.walk import longest_text
from planish.errors import CheckpointError, DataError
from planish.gate.data import Dataset, Sample
from planish.gate.spans import Span

__all__ = ["IGNORED", "Encoder", "Example", "cutting", "label_names", "tags_of", "takes_types", "text_of"]

_CHUNK = 1024  # texts encoded at a time: an encoding takes a hundred times the bytes of its ids
IGNORED = -100
"""What cross entropy leaves out."""


@dataclass(frozen=True)
class Example:
    """One example of ``t`` tokens.

    Attributes:
        text: what it was made of; of a question with its context both, one after the other.
        ids, types: int64 ``[t]``; ``types`` is None where the model takes none.
        label: int64 ``[]`` (one label a text), float32 ``[C]`` (several), int64 ``[t]`` (tags; -100 = none), int64
            ``[2]`` (first and last token of the answer), or None.
        open: bool ``[t]``: first tokens of words (tagging), tokens of the context (question answering), or tokens that
            are not special (fill-mask); else None.
        words: int64 ``[t, 2]``: the characters of the word an open token belongs to; else None.
        sample: the line it comes from; None for a window of tokens.
    """

    text: str
    ids: Tensor
    types: Tensor | None = None
    label: Tensor | None = None
    open: Tensor | None = None
    words: Tensor | None = None
    sample: Sample | None = None


def label_names(raw_config: dict[str, Any]) -> list[str]:
    """Names in the order of their ids. transformers does not write those it makes up: LABEL_0 and LABEL_1.

    Raises:
        CheckpointError: id2label is no table of names.
    """
    table = raw_config.get("id2label")
    if not table:
        return [f"LABEL_{index}" for index in range(int(raw_config.get("num_labels") or 2))]
    try:
        return [str(table[key]) for key in sorted(table, key=int)]
    except (TypeError, ValueError):
        expected = "an object from ids to names as id2label in config.json"
        raise CheckpointError(expected, repr(table)[:80], "correct config.json") from None


def takes_types(model: Any) -> bool:
    """Whether the model tells the first text from the second; RoBERTa takes the argument and has one row for it."""
    known = inspect.signature(model.forward).parameters
    return "token_type_ids" in known and int(getattr(model.config, "type_vocab_size", 0) or 0) > 1


def text_of(sample: Sample) -> str:
    """All text of a line as one string."""
    return sample.text or f"{sample.question} {sample.context}"


class Encoder:
    """A tokenizer, and what the model wants of it. ``length`` is the most tokens an example may have.

    Raises:
        CheckpointError: the tokenizer is not a fast one.
    """

    def __init__(self, tokenizer: Any, model: Any, task: str, raw_config: dict[str, Any], max_length: int) -> None:
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            fix = "save it with save_pretrained of transformers' fast class"
            raise CheckpointError("a fast tokenizer (tokenizer.json)", type(tokenizer).__name__, fix)
        self.backend = backend
        self.task = task
        self.labels = label_names(raw_config)
        self.problem_type = raw_config.get("problem_type")
        self.length = min(max_length, longest_text(model) or max_length)
        self.types = takes_types(model)
        self.special = frozenset(int(one) for one in tokenizer.all_special_ids)

    @property
    def several(self) -> bool:
        """Whether a text may have several labels, or none."""
        return bool(self.problem_type == "multi_label_classification")

    def encode(self, data: Dataset, *, training: bool) -> list[Example]:
        """Examples in the order of the file, with labels where it has them.

        Raises:
            DataError: a text without tokens; for training also an answer that is not in its context.
        """
        found: list[Example] = []
        with cutting(self.backend, self.length):
            for start in range(0, len(data.samples), _CHUNK):
                samples = data.samples[start : start + _CHUNK]
                encodings = self.backend.encode_batch([self._input(sample) for sample in samples])
                found += [self._example(data, s, e, training) for s, e in zip(samples, encodings, strict=True)]
        return found

    def _input(self, sample: Sample) -> str | tuple[str, str]:
        return (sample.question, sample.context) if self.task == "question-answering" else sample.text

    def _example(self, data: Dataset, sample: Sample, encoding: Any, training: bool) -> Example:
        if not encoding.ids:
            refuse(data, sample, "a text with a token in it", repr(text_of(sample))[:60])
        ids = torch.tensor(encoding.ids, dtype=torch.int64)
        types = torch.tensor(encoding.type_ids, dtype=torch.int64) if self.types else None
        label, opened, words = self._labels(data, sample, encoding, training)
        return Example(text_of(sample), ids, types, label, opened, words, sample)

    def _labels(
        self, data: Dataset, sample: Sample, encoding: Any, training: bool
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """``label``, ``open`` and ``words`` of the example."""
        if self.task == "text-classification":
            return (self._classes(sample) if data.labelled else None), None, None
        if self.task == "fill-mask":
            free = [id_ not in self.special for id_ in encoding.ids]
            return None, torch.tensor(free, dtype=torch.bool), None
        if self.task == "token-classification":
            begins, words = words_of(encoding, sample.text, 0)
            tags = tags_of(begins, words, sample.spans, self.labels) if data.labelled else None
            return tags, torch.tensor(begins), torch.tensor(words)
        if self.task == "question-answering":
            inside = [sequence == 1 for sequence in encoding.sequence_ids]
            place = answer_place(data, sample, training) if data.labelled else None
            label = torch.tensor(answer_tokens(encoding.offsets, inside, place)) if data.labelled else None
            return label, torch.tensor(inside), torch.tensor(words_of(encoding, sample.context, 1)[1])
        return None, None, None

    def _classes(self, sample: Sample) -> Tensor:
        if not self.several:
            return torch.tensor(sample.label[0])
        label = torch.zeros(len(self.labels))
        label[list(sample.label)] = 1.0
        return label


@contextmanager
def cutting(backend: Any, length: int | None) -> Iterator[None]:
    """Let the tokenizer cut at ``length`` (None: nowhere) and not pad; its own settings, kept in files, come back."""
    truncation, padding = backend.truncation, backend.padding
    try:
        backend.no_padding()
        backend.no_truncation()
        if length is not None:
            backend.enable_truncation(length, strategy="longest_first")
        yield
    finally:
        backend.no_truncation()
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)


def refuse(data: Dataset, sample: Sample, expected: str, got: str, fix: str = "correct the line") -> NoReturn:
    """Refuse one line of a file."""
    raise DataError(f"{data.name} line {sample.line}: {expected}", got, fix)


def words_of(encoding: Any, text: str, sequence: int) -> tuple[list[bool], list[tuple[int, int]]]:
    """For each token whether it begins a word of text number ``sequence``, and the characters of its word.

    (-1, -1) for specials and for tokens of the other text. White space that a tokenizer counts to a word is left out.
    """
    begins: list[bool] = []
    words: list[tuple[int, int]] = []
    last: int | None = None
    for index, (word, of) in enumerate(zip(encoding.word_ids, encoding.sequence_ids, strict=True)):
        if of != sequence:
            begins.append(False)
            words.append((-1, -1))
            last = None
            continue
        if word is not None and word == last:
            begins.append(False)
            words.append(words[-1])
            continue
        start, end = encoding.offsets[index] if word is None else encoding.word_to_chars(word, sequence)
        inner = text[start:end]
        start += len(inner) - len(inner.lstrip())
        end = max(start, end - (len(inner) - len(inner.rstrip())))
        begins.append(end > start)
        words.append((start, end))
        last = word
    return begins, words


def tags_of(
    begins: Sequence[bool], words: Sequence[tuple[int, int]], spans: Sequence[Span], labels: Sequence[str]
) -> Tensor:
    """Label of each token, int64 ``[t]``, -100 where a token does not begin a word.

    A word belongs to the first span it shares a character with. Labels may be BIO, BIOES, BILOU or bare names; where
    the model has no "O", words outside all spans carry no label.
    """
    tags = torch.full((len(words),), IGNORED, dtype=torch.int64)
    at = [index for index, begin in enumerate(begins) if begin]
    owners = [next((n for n, s in enumerate(spans) if s.start < words[i][1] and words[i][0] < s.end), None) for i in at]
    outside = labels.index("O") if "O" in labels else IGNORED
    for place, (index, owner) in enumerate(zip(at, owners, strict=True)):
        if owner is None:
            tags[index] = outside
            continue
        first = place == 0 or owners[place - 1] != owner
        final = place + 1 == len(at) and words[index][1] >= spans[owner].end  # else it was cut off
        last = final or (place + 1 < len(at) and owners[place + 1] != owner)
        tags[index] = _tag(spans[owner].label, first, last, labels)
    return tags


def _tag(name: str, first: bool, last: bool, labels: Sequence[str]) -> int:
    """The label for a place in an entity: the most telling prefix the model has for this name."""
    single = ("S-", "U-") if first and last else ()
    border = ("B-",) if first else ("E-", "L-") if last else ()
    for prefix in (*single, *border, "I-", "", "B-", "E-", "L-", "S-", "U-"):
        if prefix + name in labels:
            return labels.index(prefix + name)
    raise AssertionError(f"{name} was checked against the model's labels")


def answer_place(data: Dataset, sample: Sample, training: bool) -> tuple[int, int] | None:
    """Characters of the first answer that the context holds; None = the context does not answer."""
    for answer in sample.answers:
        start = sample.context.find(answer) if answer.strip() else -1
        if start >= 0:
            return start, start + len(answer)
    if training and any(answer.strip() for answer in sample.answers):
        refuse(data, sample, "an answer that occurs in its context, letter by letter", repr(sample.answers[0])[:60])
    return None


def answer_tokens(
    offsets: Sequence[tuple[int, int]], inside: Sequence[bool], place: tuple[int, int] | None
) -> tuple[int, int]:
    """First and last token of the characters ``place``; (0, 0) for none, and for an answer that was cut off."""
    if place is None:
        return 0, 0
    start, end = place
    hit = [i for i, (a, b) in enumerate(offsets) if inside[i] and a < end and start < b]
    kept = max((b for (_, b), one in zip(offsets, inside, strict=True) if one), default=0)
    return (hit[0], hit[-1]) if hit and end <= kept else (0, 0)
