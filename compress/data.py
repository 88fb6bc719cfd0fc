"""Calibration text: the built-in one, a ``.txt``, or a ``.jsonl`` with a field "text"; cut into windows of tokens."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch

from planish import recipes
from planish.compress.recipe import Data
from planish.errors import DataError

__all__ = ["calibration_texts", "read_texts", "token_windows"]


def read_texts(source: str, folder: Path) -> list[str]:
    """Texts of a calibration source; a relative path is looked up from ``folder``.

    Raises:
        DataError: no such file, not UTF-8, or a bad line (named by number).
    """
    if source == "builtin":
        return [recipes.text("calibrate")]
    path = folder / source
    if path.suffix not in (".txt", ".jsonl"):
        raise DataError("'builtin' or a .txt or .jsonl file", source, "name such a file under data.source")
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"calibration text at {path}", "nothing there", "check data.source in the recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"UTF-8 text at {path}", str(error)[:120], "convert the file") from None
    texts = [content] if path.suffix == ".txt" else _rows(content, path)
    if not any(text.strip() for text in texts):
        raise DataError(f"text in {path}", "none", "put text into it")
    return texts


def _rows(content: str, path: Path) -> list[str]:
    texts = []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"JSON in {path}, line {number}", str(error)[:120], "correct that line") from None
        text = _text_of(row) if isinstance(row, dict) else None
        if not isinstance(text, str):
            got = f"keys {sorted(row)}"[:120] if isinstance(row, dict) else type(row).__name__
            raise DataError(f"an object with a string 'text' in {path}, line {number}", got, "correct that line")
        texts.append(text)
    return texts


def _text_of(row: dict[str, Any]) -> Any:
    """A row's text; of a question with its context the latter, of words apart the words."""
    if "text" in row or "context" in row:
        return row.get("text", row.get("context"))
    words = row.get("tokens")
    return " ".join(words) if isinstance(words, list) and all(isinstance(word, str) for word in words) else None


def calibration_texts(data: Data, folder: Path) -> list[str]:
    """Texts to calibrate on: ``data.source``, or the training texts where it says ``train``.

    Raises:
        DataError: as :func:`read_texts`, or ``train`` without training data.
    """
    if data.source != "train":
        return read_texts(data.source, folder)
    if data.train is None:
        raise DataError("training data, since data.source is 'train'", "none", "name it with --train, or as data.train")
    return read_texts(data.train, folder)


def token_windows(data: Data, folder: Path, tokenizer: Any, max_length: int | None) -> tuple[torch.Tensor, ...]:
    """Windows of tokens, int64 ``[samples, length]`` for each length asked for, without padding; the same for a seed.

    The texts are tokenized one after the other into one stream and cut; ``samples`` cuts are drawn with the seed.
    Tokens a tokenizer puts around every text ([CLS] and [SEP]) stand around every window. Fewer windows than asked are
    taken as they are; windows are shortened to ``max_length``, the model's limit. Of several lengths, those the text
    cannot fill are left out.

    Raises:
        DataError: not one window's worth of text.
    """
    stream = [token for text in calibration_texts(data, folder) for token in _encode(tokenizer, text)]
    lengths = dict.fromkeys(min(length, max_length or length) for length in data.lengths)
    frame = _frame(tokenizer)
    inner = {length: length - len(frame[0]) - len(frame[1]) for length in lengths}
    fitting = [length for length in lengths if 1 <= inner[length] <= len(stream)]
    if not fitting:
        expected = f"at least one window of {min(lengths)} tokens in data.source {data.source!r}"
        raise DataError(expected, f"{len(stream)} tokens", "lower data.sequence_length or give more text")
    return tuple(_windows(stream, inner[length], data, frame) for length in fitting)


def _windows(stream: list[int], inner: int, data: Data, frame: tuple[list[int], list[int]]) -> torch.Tensor:
    before, after = frame
    starts = range(0, len(stream) - inner + 1, inner)
    chosen = random.Random(data.seed).sample(starts, min(data.samples, len(starts)))
    return torch.tensor([before + stream[start : start + inner] + after for start in chosen], dtype=torch.int64)


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])


def _frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens put before and after every text."""
    plain = _encode(tokenizer, "a")
    framed = list(tokenizer("a")["input_ids"])
    for start in range(len(framed) - len(plain) + 1):
        if framed[start : start + len(plain)] == plain:
            return framed[:start], framed[start + len(plain) :]
    return [], []
