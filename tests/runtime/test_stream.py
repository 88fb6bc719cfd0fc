"""Incremental text against the whole, with real and SentencePiece-like tokenizers; stop strings against brute force."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from planish.runtime.stream import Detokenizer, StopMatcher


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2_gguf: Path) -> Tokenizer:
    """The real byte-level BPE of SmolLM2, 49,152 tokens."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    tokenizer: Tokenizer = loaded.backend_tokenizer
    return tokenizer


def special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset(i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special)


def plain(tokenizer: Tokenizer):  # type: ignore[no-untyped-def]
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=False)


def pieces(tokenizer: Tokenizer, ids: list[int], context: list[int]) -> list[str]:
    detokenizer = Detokenizer(plain(tokenizer), special_ids(tokenizer), context)
    return [*(detokenizer.push(i) for i in ids), detokenizer.flush()]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 49_151), max_size=60))
def test_pieces_of_any_ids_make_the_text(smollm2_tokenizer: Tokenizer, ids: list[int]) -> None:
    whole = smollm2_tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(pieces(smollm2_tokenizer, ids, [])) == whole
    at_once = Detokenizer(plain(smollm2_tokenizer), special_ids(smollm2_tokenizer))
    assert at_once.extend(ids) == whole


# Planes 3 to 13 are unassigned, and SmolLM2 has no tokens for some of their bytes.
TEXT = st.text(
    st.characters(max_codepoint=0x2FFFF, exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=60
)


@settings(max_examples=300, deadline=None)
@given(TEXT, st.integers(0, 60))
def test_pieces_of_any_text_are_whole_characters(smollm2_tokenizer: Tokenizer, text: str, cut: int) -> None:
    ids = smollm2_tokenizer.encode(text).ids
    assume(smollm2_tokenizer.decode(ids, skip_special_tokens=False) == text)
    prompt = smollm2_tokenizer.decode(ids[:cut], skip_special_tokens=False)
    assume("\ufffd" not in prompt)  # cut inside a character
    parts = pieces(smollm2_tokenizer, ids[cut:], ids[:cut])
    assert "".join(parts) == text[len(prompt) :]
    assert all("\ufffd" not in part for part in parts)


def test_a_character_of_several_tokens_comes_out_whole(smollm2_tokenizer: Tokenizer) -> None:
    ids = smollm2_tokenizer.encode("𓂀").ids
    assert len(ids) > 1
    assert pieces(smollm2_tokenizer, ids, []) == [*[""] * (len(ids) - 1), "𓂀", ""]


def test_an_unfinished_character_comes_out_at_the_end(smollm2_tokenizer: Tokenizer) -> None:
    ids = smollm2_tokenizer.encode("ab 𓂀").ids[:-1]
    parts = pieces(smollm2_tokenizer, ids, [])
    assert "\ufffd" not in "".join(parts[:-1])
    assert "".join(parts) == smollm2_tokenizer.decode(ids)


def test_invalid_bytes_in_the_middle_are_as_in_the_whole(smollm2_tokenizer: Tokenizer) -> None:
    random.seed(0)
    lone = [i for i in range(49_152) if smollm2_tokenizer.decode([i]) == "\ufffd"]
    assert len(lone) > 50
    letters = smollm2_tokenizer.encode("Call me Ishmael 𓂀é").ids
    for _ in range(300):
        ids = [random.choice(lone if random.random() < 0.5 else letters) for _ in range(30)]
        assert "".join(pieces(smollm2_tokenizer, ids, [])) == smollm2_tokenizer.decode(ids)


def sentencepiece_like() -> Tokenizer:
    """A tokenizer whose decoder strips the first space and falls back to bytes, as Llama 2's does."""
    words = ["▁", "▁the", "▁whale", "▁sea", "s", "ing", "é", "▁▁", "<s>"]
    vocab = {w: i for i, w in enumerate([*words, "<unk>", *(f"<0x{b:02X}>" for b in range(256))])}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=30), st.lists(st.integers(0, 8), max_size=40))
def test_the_leading_space_survives_after_a_prompt(prompt: list[int], ids: list[int]) -> None:
    tokenizer = sentencepiece_like()
    kept = [i for i in ids if i != 8]
    before = tokenizer.decode(prompt, skip_special_tokens=False)
    whole = tokenizer.decode(prompt + kept, skip_special_tokens=False)
    assert "".join(pieces(tokenizer, ids, prompt)) == whole[len(before) :]


def test_the_leading_space_is_lost_without_the_prompt() -> None:
    """Why the prompt's end is decoded too: alone, the first word has no space before it."""
    tokenizer = sentencepiece_like()
    assert tokenizer.decode([1]) == "the"
    assert "".join(pieces(tokenizer, [1, 2, 4], [3])) == " the whales"
    assert "".join(pieces(tokenizer, [8, 1], [3, 8])) == " the"


def test_bytes_of_a_fallback_character_come_out_together() -> None:
    tokenizer = sentencepiece_like()
    ids = [tokenizer.token_to_id(f"<0x{b:02X}>") for b in "€".encode()]
    assert pieces(tokenizer, [*ids, 1], [2]) == ["", "", "€", " the", ""]


def first_stop(text: str, stops: list[str]) -> int | None:
    """Brute force: where the first completed stop string starts (the longest, if several end there)."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if stop and text[:end].endswith(stop)]
        if starts:
            return min(starts)
    return None


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.text("ab", max_size=5), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=5), max_size=4),
)
def test_stop_strings_match_brute_force_however_the_text_is_cut(parts: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown, met = "", False
    for part in parts:
        text, met = matcher.push(part)
        shown += text
        if met:
            break
        assert not any(stop in shown for stop in stops)
    shown += "" if met else matcher.flush()
    start = first_stop("".join(parts), stops)
    assert met == (start is not None)
    assert shown == "".join(parts)[:start]


def test_only_what_could_become_a_stop_string_is_held_back() -> None:
    matcher = StopMatcher(["\n\nUser:"])
    assert [matcher.push(t)[0] for t in ("Hello\n", "x\n\nUs", "a", "\n\nUser")] == ["Hello", "\nx", "\n\nUsa", ""]
    assert matcher.push(": hi") == ("", True)


def test_matching_takes_time_linear_in_the_text() -> None:
    """A pattern made to be bad for a naive search: 100,000 characters against 4,000 take well under a second."""
    matcher = StopMatcher(["a" * 4000 + "b"])
    for _ in range(100_000):
        matcher.push("a")
    assert len(matcher.flush()) == 4000
