"""Tokenizing a corpus before and after trimming: which tokens it uses, whether it still reads the same, and how text
outside of it fares.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from planish.compress.trim_tokenizer import Json, kind_of, unknown_id
from planish.compress.trim_wordpiece import attempted
from planish.errors import CheckpointError

__all__ = ["Ids", "encode", "outside", "prove", "reader", "same_rows", "used_ids"]

Ids = NDArray[np.integer[Any]]
Progress = Callable[[int, int], None]
_BATCH = 256


def reader(tokenizer_json: Json) -> Any:
    """A ``tokenizers.Tokenizer`` of the file that neither truncates nor pads.

    Raises:
        CheckpointError: the file is not one.
    """
    try:
        tokenizer = Tokenizer.from_str(json.dumps(tokenizer_json, ensure_ascii=False))
    except Exception as error:  # tokenizers raises nothing narrower
        raise CheckpointError("a tokenizer.json that loads", str(error)[:200], "download or copy it again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode(tokenizer: Any, texts: Sequence[str], progress: Progress) -> list[Ids]:
    """Token ids of each text, int32 ``[tokens]``, special tokens around it included."""
    found: list[Ids] = []
    for start in range(0, len(texts), _BATCH):
        progress(start, len(texts))
        for encoding in tokenizer.encode_batch_fast(texts[start : start + _BATCH]):
            found.append(np.array(encoding.ids, dtype=np.int32))
    return found


def used_ids(tokenizer_json: Json, texts: Sequence[str], encoded: Sequence[Ids]) -> set[int]:
    """Ids in ``encoded``, and those a WordPiece tokenizer matched in words it then took for unknown.

    ``encoded`` is what :func:`encode` gave for ``texts``.
    """
    found = {int(number) for number in np.unique(np.concatenate([np.zeros(0, np.int32), *encoded]))}
    unknown = unknown_id(tokenizer_json)
    if kind_of(tokenizer_json) != "WordPiece" or unknown not in found:
        return found
    tokenizer = reader(tokenizer_json)
    for text, ids in zip(texts, encoded, strict=True):
        if unknown in ids:
            found |= _attempts(tokenizer, tokenizer_json["model"], text, unknown)
    return found


def _attempts(tokenizer: Any, model: Json, text: str, unknown: int) -> set[int]:
    """Tokens matched in the unknown words of ``text``."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    found: set[int] = set()
    for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        if number == unknown:
            word = text[start:end]
            found |= attempted(model, tokenizer.normalizer.normalize_str(word) if tokenizer.normalizer else word)
    return found


def prove(tokenizer: Any, keep: Sequence[int], texts: Sequence[str], before: Sequence[Ids], progress: Progress) -> None:
    """See that the trimmed ``tokenizer`` reads every text as before: ids put through ``keep`` are the former ones.

    Raises:
        CheckpointError: a text reads differently.
    """
    for start in range(0, len(texts), _BATCH):
        progress(start, len(texts))
        encodings = tokenizer.encode_batch_fast(texts[start : start + _BATCH])
        after = [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        same_rows(keep, before[start : start + _BATCH], after, texts[start : start + _BATCH])


def same_rows(keep: Sequence[int], before: Sequence[Ids], after: Sequence[Ids], texts: Sequence[str] = ()) -> None:
    """See that new ids put through ``keep`` are the former ones, row by row; ``texts`` names them in the message.

    Raises:
        CheckpointError: they are not.
    """
    former = np.array(keep, dtype=np.int64)
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        if len(old) != len(new) or (new >= len(former)).any() or not np.array_equal(former[new], old):
            got = f"others for {texts[number][:60]!r}" if texts else f"others for example {number}"
            fix = "take the pass trim-vocabulary out, and report this bug with the tokenizer's name"
            raise CheckpointError("the trimmed tokenizer to give the same tokens on the corpus", got, fix)


def outside(parent: Json, child: Json, keep: Sequence[int], texts: Sequence[str]) -> dict[str, Any]:
    """How texts that may not be in the corpus are tokenized before and after.

    Words are what blanks separate; a word changed if its tokens are not the same ones. ``tokens_per_word`` and
    ``unknown_share`` (of all tokens) are pairs, before and after.
    """
    readers, unknown = [reader(parent), reader(child)], [unknown_id(parent), unknown_id(child)]
    words = changed = texts_changed = 0
    tokens, unknowns = [0, 0], [0, 0]
    for text in texts:
        spots = _word_numbers(text)
        words += len(text.split())
        sides: list[dict[int, list[int]]] = []
        for side, tokenizer in enumerate(readers):
            encoding = tokenizer.encode(text, add_special_tokens=False)
            tokens[side] += len(encoding.ids)
            unknowns[side] += encoding.ids.count(unknown[side])
            ids = encoding.ids if side == 0 else [keep[number] for number in encoding.ids]
            sides.append(_by_word(ids, encoding.offsets, spots))
        differing = sum(sides[0].get(word) != sides[1].get(word) for word in sides[0].keys() | sides[1].keys())
        changed += differing
        texts_changed += differing > 0
    return {
        "texts": len(texts),
        "texts_changed": _share(texts_changed, len(texts)),
        "words": words,
        "words_changed": _share(changed, words),
        "tokens_per_word": [_share(count, words) for count in tokens],
        "unknown_share": [_share(count, total) for count, total in zip(unknowns, tokens, strict=True)],
    }


def _word_numbers(text: str) -> list[int]:
    """For each character the number of its word; a blank has that of the word before it."""
    numbers, word, inside = [], -1, False
    for character in text:
        if not character.isspace() and not inside:
            word += 1
        inside = not character.isspace()
        numbers.append(word)
    return numbers


def _by_word(ids: Sequence[int], offsets: Sequence[tuple[int, int]], spots: list[int]) -> dict[int, list[int]]:
    """Tokens of each word; a token belongs to the word its last character is in."""
    found: dict[int, list[int]] = {}
    for number, (_, end) in zip(ids, offsets, strict=True):
        found.setdefault(spots[end - 1] if end else -1, []).append(number)
    return found


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0
