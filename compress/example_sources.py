"""Where examples come from: evaluation files, passages of plain text, windows of tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from planish.compress.data import calibration_texts, read_texts
from planish.compress.encode_examples import Encoder, Example, cutting
from planish.compress.recipe import Data
from planish.compress.walk import longest_text
from planish.errors import DataError
from planish.gate.data import Dataset, load_data, plain_texts, unlabelled

__all__ = ["cut_passages", "load", "passages", "token_examples"]

_CHARACTERS = 4  # of English text a token, about
_CHUNK = 1 << 18  # characters tokenized at a time


def load(name: str, folder: Path, encoder: Encoder) -> Dataset:
    """A JSONL file, or a text file with one text a line.

    Raises:
        DataError: as :func:`planish.gate.data.load_data`; or labels for a model that transformers trains otherwise.
    """
    labels = encoder.labels if encoder.task in ("text-classification", "token-classification") else None
    found = load_data(folder / name, encoder.task, labels, encoder.problem_type)
    if found.labelled and encoder.task == "text-classification" and not encoder.several:
        got = f"problem_type {encoder.problem_type!r}, labels: {', '.join(encoder.labels)[:60]}"
        if encoder.problem_type == "regression" or len(encoder.labels) == 1:
            fix = 'set "problem_type": "multi_label_classification" in config.json, or remove the labels'
            raise DataError(f"a classifier for the labels in {found.name}", got, fix)
    if found.labelled and encoder.task == "feature-extraction":
        return unlabelled(found.name, plain_texts(found), encoder.task)  # what pairs are scored is the gate's to judge
    return found


def passages(data: Data, folder: Path, encoder: Encoder) -> Dataset:
    """``data.samples`` passages of the calibration text, drawn with the seed, without labels.

    They are cut by characters, so that they are the same for every tokenizer.

    Raises:
        DataError: fewer than two.
    """
    pieces = [p for text in calibration_texts(data, folder) for p in cut_passages(text, encoder.length * _CHARACTERS)]
    chosen = sorted(random.Random(data.seed).sample(range(len(pieces)), min(data.samples, len(pieces))))
    return unlabelled(f"data.source {data.source!r}", [pieces[number] for number in chosen], encoder.task)


def cut_passages(text: str, characters: int) -> Iterator[str]:
    """Passages of at most ``characters``, cut at the last white space where there is one.

    >>> list(cut_passages("the whale  swims in the sea", 12))
    ['the whale', 'swims in the', 'sea']
    """
    start = 0
    while start < len(text):
        end = min(start + characters, len(text))
        if end < len(text) and not text[end].isspace():
            space = next((at for at in range(end - 1, start, -1) if text[at].isspace()), None)
            end = end if space is None else space
        if passage := text[start:end].strip():
            yield passage
        start = end
        while start < len(text) and text[start].isspace():
            start += 1


def token_examples(data: Data, folder: Path, encoder: Encoder, model: Any) -> dict[str, list[Example]]:
    """Windows of ``data.sequence_length`` tokens (its largest), without padding; of a calibration text some, drawn.

    Raises:
        DataError: less text than two windows for training, or than one for validation.
    """
    length = min(max(data.lengths), longest_text(model) or max(data.lengths))
    if data.train is None:
        found = _windows(calibration_texts(data, folder), encoder.backend, length)
        chosen = sorted(random.Random(data.seed).sample(range(len(found)), min(data.samples, len(found))))
        train = [found[number] for number in chosen]
    else:
        train = _windows(_texts(data.train, folder, encoder), encoder.backend, length)
    name = f"data.source {data.source!r}" if data.train is None else str(folder / data.train)
    if data.validation is not None:
        validation = _windows(_texts(data.validation, folder, encoder), encoder.backend, length)
        _enough(validation, 1, length, str(folder / data.validation))
        _enough(train, 2, length, name)
        return {"train": train, "validation": validation}
    _enough(train, 3, length, name)
    wanted = min(max(1, round(data.holdout * len(train))), len(train) - 2)
    held = set(random.Random(data.seed).sample(range(len(train)), wanted))
    return {
        "train": [row for number, row in enumerate(train) if number not in held],
        "validation": [row for number, row in enumerate(train) if number in held],
    }


def _enough(windows: Sequence[Example], least: int, length: int, name: str) -> None:
    if len(windows) < least:
        expected = f"text for {least} or more windows of {length} tokens in {name}"
        raise DataError(expected, f"text for {len(windows)}", "lower data.sequence_length or give more text")


def _texts(name: str, folder: Path, encoder: Encoder) -> list[str]:
    """A whole .txt as one text; the texts of a JSONL file."""
    if Path(name).suffix == ".txt":
        return read_texts(name, folder)
    return plain_texts(load_data(folder / name, encoder.task))


def _windows(texts: Sequence[str], backend: Any, length: int) -> list[Example]:
    """All whole windows of the texts, put one after the other on lines of their own."""
    whole = "\n".join(texts)
    ids: list[int] = []
    starts: list[int] = []  # the character each token begins at
    at = 0
    with cutting(backend, None):
        before, after = frame(backend)
        for piece in _pieces(whole):
            encoding = backend.encode(piece, add_special_tokens=False)
            ids += encoding.ids
            starts += [at + start for start, _ in encoding.offsets]
            at += len(piece)
    inner = length - len(before) - len(after)
    starts.append(len(whole))
    return [
        Example(whole[starts[i] : starts[i + inner]], torch.tensor([*before, *ids[i : i + inner], *after]))
        for i in range(0, len(ids) - inner + 1, inner)
    ]


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces that end with a line, so that tokens of the ends are what they are in the whole."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + _CHUNK)
        end = len(text) if end < 0 else end + 1
        yield text[start:end]
        start = end


def frame(backend: Any) -> tuple[list[int], list[int]]:
    """The tokens put before and after every text."""
    encoding = backend.encode("a")
    inside = [at for at, special in enumerate(encoding.special_tokens_mask) if not special]
    return (encoding.ids[: inside[0]], encoding.ids[inside[-1] + 1 :]) if inside else ([], [])
