"""Tokenizers from outside, and cutting what they give: against the tokenizers library's own truncation."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from planish.errors import BundleError, RequestError
from planish.runtime.pieces import truncated, whole, windows
from planish.runtime.text import MAX_TOKENIZER_BYTES, TextEncoder, load_tokenizer, special_tokens


def changed(tokenizer: Tokenizer, **parts: Any) -> bytes:
    return json.dumps({**json.loads(tokenizer.to_str()), **parts}).encode()


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def test_padding_and_truncation_of_the_file_are_off(word_pieces: Tokenizer) -> None:
    padding = {"strategy": {"Fixed": 2_000_000_000}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    truncation = {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    tokenizer = load_tokenizer(changed(word_pieces, padding=padding, truncation=truncation))
    text = "the whale and the sea"
    assert tokenizer.encode(text).ids == word_pieces.encode(text).ids


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"\xff", b"null", b'{"model": 3}', b"[" * 10_000],
)
def test_what_is_no_tokenizer_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError):
        load_tokenizer(data)


def test_a_huge_file_is_refused() -> None:
    with pytest.raises(BundleError, match="at most"):
        load_tokenizer(bytes(MAX_TOKENIZER_BYTES + 1))


def test_a_bad_regex_is_refused(word_pieces: Tokenizer) -> None:
    with pytest.raises(BundleError):
        load_tokenizer(changed(word_pieces, normalizer=replace({"Regex": "(("}, "x")))


def test_a_panic_while_encoding_is_a_request_error(word_pieces: Tokenizer) -> None:
    tokenizer = load_tokenizer(changed(word_pieces, normalizer=replace({"Regex": "(a+)+$"}, "x")))
    encoder = TextEncoder(tokenizer, {})
    for texts in (["a" * 40 + "b"], ["fine", "a" * 40 + "b"]):
        with pytest.raises(RequestError, match="tokenizer can take"):
            encoder.encode(texts)
    assert len(encoder.encode(["fine"])) == 1


def test_replacements_that_multiply_are_refused(word_pieces: Tokenizer) -> None:
    bomb = [replace({"String": "a"}, "a" * 16)] * 8
    with pytest.raises(BundleError, match="grow"):
        load_tokenizer(changed(word_pieces, normalizer={"type": "Sequence", "normalizers": bomb}))
    usual = [replace({"String": " "}, "▁"), {"type": "Prepend", "prepend": "▁"}]
    load_tokenizer(changed(word_pieces, normalizer={"type": "Sequence", "normalizers": usual}))


@pytest.mark.parametrize("text", [3, b"bytes", None, ("a", 3), ("a",), "\ud800", ("fine", "\udfff")])
def test_what_is_no_text_is_refused(word_pieces: Tokenizer, text: Any) -> None:
    with pytest.raises(RequestError):
        TextEncoder(word_pieces, {}).encode([text])


def test_text_without_tokens_is_refused(word_pieces: Tokenizer) -> None:
    bare = load_tokenizer(changed(word_pieces, post_processor=None))
    with pytest.raises(RequestError, match="text 1 has none"):
        TextEncoder(bare, {}).encode(["sea", ""])
    assert word_pieces.encode("").ids == [2, 3]


def test_special_tokens_from_either_file() -> None:
    config = b'{"mask_token": {"content": "<mask>", "lstrip": true}, "bos_token": null, "add_bos_token": true}'
    both = special_tokens(config, b'{"mask_token": "[MASK]", "sep_token": "</s>"}')
    assert both == {"mask_token": "<mask>", "sep_token": "</s>"}
    assert special_tokens(None, b"[]") == {}
    with pytest.raises(BundleError):
        special_tokens(b"{", None)


words = st.lists(st.sampled_from(["the", "whale", "xyzzy", "sea-", "I"]), max_size=30).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(first=words, second=words | st.none(), limit=st.integers(4, 40))
def test_truncation_is_that_of_the_library(word_pieces: Tokenizer, first: str, second: str | None, limit: int) -> None:
    text = (first,) if second is None else (first, second)
    oracle = Tokenizer.from_str(word_pieces.to_str())
    oracle.enable_truncation(limit, strategy="longest_first")
    expected = oracle.encode(*text)
    piece = truncated(word_pieces.encode(*text), limit)
    assert piece.ids == expected.ids
    assert piece.type_ids == expected.type_ids
    assert piece.offsets == expected.offsets
    assert piece.cut == (len(word_pieces.encode(*text)) > limit)


@settings(max_examples=200, deadline=None)
@given(question=words, context=words, limit=st.integers(5, 60), stride=st.integers(0, 20))
def test_windows_cover_the_context(
    word_pieces: Tokenizer, question: str, context: str, limit: int, stride: int
) -> None:
    encoding = word_pieces.encode(question, context)
    fixed = len(word_pieces.encode(question)) + 1
    if fixed >= limit and len(encoding) > limit:
        with pytest.raises(RequestError, match="room for text"):
            windows(encoding, limit, stride, 1)
        return
    pieces = windows(encoding, limit, stride, 1)
    own = [[index for index in piece.kept if encoding.sequence_ids[index] == 1] for piece in pieces]
    everything = [index for index, sequence in enumerate(encoding.sequence_ids) if sequence == 1]
    assert sorted({index for kept in own for index in kept}) == everything
    assert all(len(piece) <= limit for piece in pieces)
    before = fixed - 1
    assert all(piece.ids[:before] == encoding.ids[:before] and piece.ids[-1] == 3 for piece in pieces)
    shared = min(stride, (limit - fixed) // 2)
    for left, right in itertools.pairwise(own):
        assert right[0] == left[-1] + 1 - shared


def test_windows_are_those_of_the_library(word_pieces: Tokenizer, sentences: list[str]) -> None:
    oracle = Tokenizer.from_str(word_pieces.to_str())
    oracle.enable_truncation(40, stride=8, strategy="only_second")
    context = " ".join(sentences[:5])
    expected = oracle.encode("where is the whale", context)
    pieces = windows(word_pieces.encode("where is the whale", context), 40, 8, 1)
    assert [piece.ids for piece in pieces] == [expected.ids, *(more.ids for more in expected.overflowing)]
    assert pieces[1].offsets == expected.overflowing[0].offsets


def test_no_room_for_text(word_pieces: Tokenizer) -> None:
    with pytest.raises(RequestError, match="room for text in 2 tokens"):
        truncated(word_pieces.encode("the whale"), 2)
    assert whole(word_pieces.encode("")).ids == [2, 3]
