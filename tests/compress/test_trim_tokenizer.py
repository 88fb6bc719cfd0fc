"""Trimming tokenizer.json: random small vocabularies of every algorithm, read again by the tokenizers library."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tokenizers.pre_tokenizers import ByteLevel

from planish.compress.trim_corpus import encode, outside, prove, reader, used_ids
from planish.compress.trim_tokenizer import Trimmed, kind_of, tokens_of, trim, unknown_id
from planish.errors import CheckpointError, RecipeError
from tests.tiny import byte_level_tokenizer

Json = dict[str, Any]
FAST = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def quiet(done: int, total: int) -> None:
    return


def as_json(model: Any, pre_tokenizer: Any = None) -> Json:
    tokenizer = Tokenizer(model)
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    return json.loads(tokenizer.to_str())


def trim_on(parent: Json, texts: list[str], **options: Any) -> Trimmed:
    return trim(parent, used_ids(parent, texts, encode(reader(parent), texts, quiet)), **options)


def read_alike(parent: Json, trimmed: Trimmed, texts: list[str]) -> bool:
    """The oracle: both files tokenize every text anew, by ids and by tokens."""
    old, new = Tokenizer.from_str(json.dumps(parent)), Tokenizer.from_str(json.dumps(trimmed.json))
    for text in texts:
        one, other = old.encode(text), new.encode(text)
        if one.tokens != other.tokens or one.ids != [trimmed.keep[number] for number in other.ids]:
            return False
    return True


def well_formed(parent: Json, trimmed: Trimmed) -> None:
    tokens = tokens_of(trimmed.json)
    assert trimmed.keep == sorted(set(trimmed.keep))
    assert sorted(set(tokens.values())) == list(range(len(trimmed.keep)))
    former = tokens_of(parent)
    assert all(former[token] == trimmed.keep[number] for token, number in tokens.items())
    assert {**trimmed.json, "model": 0, "added_tokens": 0} == {**parent, "model": 0, "added_tokens": 0}


texts = st.lists(st.text("abcdz ", max_size=12), min_size=1, max_size=6)
words = st.text("abcd", min_size=1, max_size=4)


@FAST
@given(st.sets(words, max_size=14), st.sets(words, max_size=14), texts, st.integers(0, 20), st.booleans())
def test_wordpiece_reads_its_corpus_as_before(
    starts: set[str], parts: set[str], corpus: list[str], fill: int, whole: bool
) -> None:
    tokens = ["[UNK]", *sorted(starts), *sorted("##" + part for part in parts)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    pre_tokenizer = None if whole else pre_tokenizers.Whitespace()
    parent = as_json(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=9), pre_tokenizer)
    trimmed = trim_on(parent, corpus, fill=fill)
    well_formed(parent, trimmed)
    assert read_alike(parent, trimmed, corpus)
    assert len(trimmed.keep) >= min(fill, len(tokens))


@st.composite
def merging(draw: st.DrawFn) -> Json:
    """A BPE model of random merges, some of which make the same token twice; with every option it has."""
    prefix, suffix = draw(st.sampled_from([("", ""), ("##", ""), ("", "</w>"), ("##", "</w>")]))
    tokens = [lead + letter + end for letter in "abcd" for lead in {"", prefix} for end in {"", suffix}]
    fallback = draw(st.booleans())
    bytes_ = [f"<0x{number:02X}>" for number in range(256)] if fallback else []
    tokens = ["<unk>", *bytes_, *sorted(tokens)]
    merges: list[tuple[str, str]] = []
    first = 1 + len(bytes_)
    for _ in range(draw(st.integers(0, 14))):
        left, right = (tokens[draw(st.integers(first, len(tokens) - 1))] for _ in range(2))
        made = left + right[len(prefix) :]
        if right.startswith(prefix) and (left, right) not in merges:  # others the library cannot load
            merges.append((left, right))
            tokens += [] if made in tokens else [made]
    order = draw(st.permutations(range(len(tokens))))
    marks = {"continuing_subword_prefix": prefix, "end_of_word_suffix": suffix}
    options = {name: mark for name, mark in marks.items() if mark}
    options |= draw(st.sampled_from([{}, {"unk_token": "<unk>"}]))
    options |= {"fuse_unk": draw(st.booleans()), "ignore_merges": draw(st.booleans()), "byte_fallback": fallback}
    model = models.BPE({token: order[number] for number, token in enumerate(tokens)}, merges, **options)
    parent = as_json(model, draw(st.sampled_from([None, pre_tokenizers.Whitespace()])))
    if draw(st.booleans()):
        parent["model"]["merges"] = [" ".join(pair) for pair in parent["model"]["merges"]]
    return parent


@FAST
@given(merging(), texts, st.integers(0, 30))
def test_bpe_reads_its_corpus_as_before(parent: Json, corpus: list[str], fill: int) -> None:
    trimmed = trim_on(parent, corpus, fill=fill)
    well_formed(parent, trimmed)
    assert read_alike(parent, trimmed, corpus)
    kept, merges = set(tokens_of(trimmed.json)), trimmed.json["model"]["merges"]
    assert all({*(pair.split(" ") if isinstance(pair, str) else pair)} <= kept for pair in merges)


@FAST
@given(
    st.lists(st.tuples(words, st.sampled_from([-1.0, -2.0, -3.0, -3.5, -12.0, 0.0])), max_size=16),
    texts,
    st.booleans(),
    st.integers(0, 20),
)
def test_unigram_reads_its_corpus_as_before(
    found: list[tuple[str, float]], corpus: list[str], fallback: bool, fill: int
) -> None:
    """Few different scores: cuts that weigh the same are frequent."""
    bytes_ = [(f"<0x{number:02X}>", -4.0) for number in range(256)] if fallback else []
    pieces = [("<unk>", 0.0), *bytes_, *dict(found).items()]
    parent = as_json(models.Unigram(pieces, 0, fallback))
    trimmed = trim_on(parent, corpus, fill=fill)
    well_formed(parent, trimmed)
    assert read_alike(parent, trimmed, corpus)


@FAST
@given(st.sets(words, max_size=14), texts)
def test_wordlevel_reads_its_corpus_as_before(found: set[str], corpus: list[str]) -> None:
    vocabulary = {token: number for number, token in enumerate(["<unk>", *sorted(found)])}
    parent = as_json(models.WordLevel(vocabulary, unk_token="<unk>"), pre_tokenizers.Whitespace())
    trimmed = trim_on(parent, corpus)
    well_formed(parent, trimmed)
    assert read_alike(parent, trimmed, corpus)
    assert set(tokens_of(trimmed.json)) == {"<unk>"} | {w for t in corpus for w in t.split() if w in vocabulary}


def test_an_unknown_word_stays_unknown() -> None:
    """ "abz" fails after "ab"; with "ab" gone, "a" and "##bz" would read it."""
    tokens = ["[UNK]", "a", "ab", "##bz", "c"]
    parent = as_json(models.WordPiece({token: n for n, token in enumerate(tokens)}, unk_token="[UNK]"))
    corpus = ["abz", "c"]
    encoded = encode(reader(parent), corpus, quiet)
    assert [ids.tolist() for ids in encoded] == [[0], [4]]
    assert not read_alike(parent, trim(parent, {0, 3, 4}), corpus)  # what the ids alone say
    assert used_ids(parent, corpus, encoded) == {0, 2, 4}
    assert read_alike(parent, trim(parent, {0, 2, 3, 4}), corpus)


def test_the_lowest_piece_holds_the_price_of_unknown() -> None:
    """A cut with the unknown x is cheaper than one without it, if the lowest score rises from -100 to -12."""
    pieces = [("<unk>", 0.0), ("p", -12.0), ("xz", -12.0), ("px", -0.1), ("rare", -100.0)]
    parent = as_json(models.Unigram(pieces, 0, False))
    trimmed = trim_on(parent, ["pxz", "px"])
    assert read_alike(parent, trimmed, ["pxz", "px"])
    assert "rare" in tokens_of(trimmed.json)
    without = {**parent, "model": {**parent["model"], "vocab": pieces[:4]}}
    assert not read_alike(parent, Trimmed(without, [0, 1, 2, 3]), ["pxz"])


def test_bpe_keeps_the_merges_below_a_token_and_no_others() -> None:
    vocabulary = {t: n for n, t in enumerate(["a", "b", "c", "ab", "abc", "bc", "cc", "ca"])}
    merges = [("a", "b"), ("ab", "c"), ("b", "c"), ("c", "c"), ("c", "a")]
    trimmed = trim(as_json(models.BPE(vocabulary, merges)), {4})
    assert list(trimmed.json["model"]["vocab"]) == ["a", "b", "c", "ab", "abc"]
    assert trimmed.json["model"]["merges"] == [["a", "b"], ["ab", "c"]]


def test_fill_takes_the_lowest_ids_of_a_kind_and_multiple_rounds_up() -> None:
    vocabulary = {t: n for n, t in enumerate(["a", "b", "[unused1]", "ab", "ba", "aba", "bab", "abab"])}
    merges = [("a", "b"), ("b", "a"), ("ab", "a"), ("b", "ab"), ("ab", "ab")]
    parent = as_json(models.BPE(vocabulary, merges))
    assert trim(parent, {3}).keep == [0, 1, 3]
    assert trim(parent, {3}, fill=4).keep == [0, 1, 3, 4]
    assert trim(parent, {3}, fill=3, multiple=5).keep == [0, 1, 3, 4, 5]
    assert trim(parent, {3}, multiple=64).keep == [0, 1, 3, 4, 5, 6, 7]  # as many as there are
    assert trim(parent, {7}, multiple=4).keep == [0, 1, 3, 7]


def test_fill_takes_whole_words_before_pieces_numbers_and_marks() -> None:
    names = ["[UNK]", "a", "b", "##a", "##b", "##ab", "12", "b-a", "ab", "[unused3]", "ba"]
    parent = as_json(models.WordPiece({token: number for number, token in enumerate(names)}, unk_token="[UNK]"))
    alphabet = [0, 1, 2, 3, 4]
    assert trim(parent, set()).keep == alphabet
    assert trim(parent, set(), fill=6).keep == [*alphabet, 8]
    assert trim(parent, set(), fill=7).keep == [*alphabet, 8, 10]
    assert trim(parent, set(), fill=9).keep == [*alphabet, 5, 6, 8, 10]

    pairs = [("a", "b"), ("1", "1"), ("\u0120", "ab"), ("\u0120", "11"), ("\u0120", "a")]
    tokens = ["a", "b", "1", "\u0120", "ab", "11", "\u0120ab", "\u012011", "\u0120a"]
    bytes_first = as_json(models.BPE({token: number for number, token in enumerate(tokens)}, pairs))
    assert trim(bytes_first, {0, 1, 2, 3}, fill=5).keep == [0, 1, 2, 3, 8]  # the other word needs "ab", too
    assert trim(bytes_first, {0, 1, 2, 3}, fill=6).keep == [0, 1, 2, 3, 4, 6]


@pytest.mark.parametrize("merges", [[("b", "a")], [("b", "a"), ("ba", "b")]])
def test_fill_never_exceeds_its_number_for_what_a_token_needs(merges: list[tuple[str, str]]) -> None:
    """The lowest id is a token that needs two others: with room for one it is passed over."""
    vocabulary = {t: n for n, t in enumerate(["bab", "ba", "a", "b", "c"])}
    parent = as_json(models.BPE(vocabulary, merges))
    assert len(trim(parent, {2}, fill=4).keep) == 4


POST = {
    "template": (
        processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 5), ("</s>", 7)]),
        lambda node: [node["special_tokens"][name]["ids"] for name in ("<s>", "</s>")],
        [[1], [2]],
    ),
    "bert": (
        processors.BertProcessing(("</s>", 7), ("<s>", 5)),
        lambda node: [node["cls"], node["sep"]],
        [["<s>", 1], ["</s>", 2]],
    ),
    "roberta": (
        processors.RobertaProcessing(("</s>", 7), ("<s>", 5)),
        lambda node: [node["cls"], node["sep"]],
        [["<s>", 1], ["</s>", 2]],
    ),
    "sequence": (
        processors.Sequence([processors.ByteLevel(), processors.BertProcessing(("</s>", 7), ("<s>", 5))]),
        lambda node: [node["processors"][1]["cls"], node["processors"][1]["sep"]],
        [["<s>", 1], ["</s>", 2]],
    ),
}


@pytest.mark.parametrize("name", POST)
def test_special_ids_follow_into_post_processor_padding_and_added_tokens(name: str) -> None:
    processor, look, expected = POST[name]
    tokens = ["one", "two", "three", "four", "five", "<s>", "six", "</s>", "<pad>"]
    tokenizer = Tokenizer(models.WordLevel({token: n for n, token in enumerate(tokens)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processor
    tokenizer.add_special_tokens(["<s>", "</s>", "<extra>"])
    tokenizer.enable_padding(pad_id=8, pad_token="<pad>", length=6)
    tokenizer.enable_truncation(6)
    parent = json.loads(tokenizer.to_str())
    trimmed = trim_on(parent, ["three"])
    assert trimmed.keep == [2, 5, 7, 8, 9]
    assert look(trimmed.json["post_processor"]) == expected
    assert trimmed.json["padding"]["pad_id"] == 3
    assert [entry["id"] for entry in trimmed.json["added_tokens"]] == [1, 2, 4]
    assert trimmed.json["truncation"] == parent["truncation"]
    child = Tokenizer.from_str(json.dumps(trimmed.json))
    assert child.encode("three<extra>three").tokens == ["<s>", "three", "<extra>", "three", "</s>", "<pad>"]
    assert child.encode("three").ids == [1, 0, 2, 3, 3, 3]


def test_the_parent_is_not_written_to() -> None:
    parent = json.loads(byte_level_tokenizer("roberta").backend_tokenizer.to_str())
    before = json.dumps(parent)
    trim_on(parent, ["the whale"])
    assert json.dumps(parent) == before


@pytest.fixture(scope="module")
def byte_level() -> tuple[Any, Trimmed]:
    parent = json.loads(byte_level_tokenizer("gpt").backend_tokenizer.to_str())
    trimmed = trim_on(parent, ["The whale and the sea.", "a white whale"])
    return Tokenizer.from_str(json.dumps(trimmed.json)), trimmed


@FAST
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_byte_level_gives_any_text_back(byte_level: tuple[Any, Trimmed], text: str) -> None:
    tokenizer, trimmed = byte_level
    assert set(ByteLevel.alphabet()) <= set(tokens_of(trimmed.json))
    assert len(trimmed.keep) < 300
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@FAST
@given(text=st.text("abc ", max_size=30))
def test_wordpiece_has_no_new_unknown_among_known_characters(text: str) -> None:
    tokens = ["[UNK]", "a", "b", "c", "##a", "##b", "##c", "ab", "##abc", "cab"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    parent = as_json(models.WordPiece(vocabulary, unk_token="[UNK]"), pre_tokenizers.Whitespace())
    trimmed = trim_on(parent, ["a"])
    assert "cab" not in tokens_of(trimmed.json)
    assert "[UNK]" not in Tokenizer.from_str(json.dumps(trimmed.json)).encode(text).tokens


def test_byte_fallback_keeps_bytes_and_ascii_and_drops_other_characters() -> None:
    bytes_ = {f"<0x{number:02X}>": number for number in range(256)}
    vocabulary = {**bytes_, "a": 256, "鯨": 257, "海": 258, "▁": 259}
    parent = as_json(models.BPE(vocabulary, [], byte_fallback=True))
    trimmed = trim_on(parent, ["海"])
    assert set(tokens_of(parent)) - set(tokens_of(trimmed.json)) == {"鯨"}
    assert Tokenizer.from_str(json.dumps(trimmed.json)).encode("鯨").tokens == ["<0xE9>", "<0xAF>", "<0xA8>"]


def test_files_without_a_type_are_known_by_their_keys() -> None:
    for model in (models.WordPiece({"[UNK]": 0}), models.BPE({"a": 0}, []), models.Unigram([("a", 0.0)])):
        parent = as_json(model)
        kind = parent["model"].pop("type")
        assert kind_of(parent) == kind
    assert kind_of({"model": {"vocab": {}, "unk_token": "x"}}) == "WordLevel"


@pytest.mark.parametrize("model", [None, {"type": "Morse"}, {}, []])
def test_another_kind_of_model_is_refused(model: Any) -> None:
    with pytest.raises(RecipeError, match="trim-vocabulary"):
        trim({"model": model}, [])


def test_ids_without_a_token_are_refused() -> None:
    with pytest.raises(CheckpointError, match="id 9"):
        trim(as_json(models.WordLevel({"a": 0}, unk_token="a")), {0, 9})


def test_added_tokens_between_the_others_are_refused() -> None:
    """The library counts added tokens on from the size of the vocabulary, whatever the file says."""
    parent = as_json(models.WordLevel({"a": 0, "b": 2}, unk_token="a"))
    entry = {"content": "<x>", "special": True, "normalized": False} | dict.fromkeys(("lstrip", "rstrip"), False)
    parent["added_tokens"] = [{"id": 1, "single_word": False, **entry}]
    with pytest.raises(CheckpointError, match="added tokens"):
        trim(parent, {0, 2})


def test_prove_finds_a_text_that_reads_differently() -> None:
    parent = as_json(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    corpus = ["a", "b"]
    trimmed = trim(parent, {0, 1})
    with pytest.raises(CheckpointError, match="'b'"):
        prove(reader(trimmed.json), trimmed.keep, corpus, encode(reader(parent), corpus, quiet), quiet)
    full = trim(parent, {0, 1, 2})
    with pytest.raises(CheckpointError, match="same tokens"):
        prove(reader(full.json), [1, 0, 2], corpus, encode(reader(parent), corpus, quiet), quiet)


def test_outside_counts_words_texts_tokens_and_unknowns() -> None:
    tokens = ["[UNK]", "s", "e", "a", "##e", "##a", "sea", "whale", "##s"]
    parent = as_json(
        models.WordPiece({token: n for n, token in enumerate(tokens)}, unk_token="[UNK]"), pre_tokenizers.Whitespace()
    )
    trimmed = trim_on(parent, ["sea"])
    assert unknown_id(trimmed.json) == 0
    assert outside(parent, trimmed.json, trimmed.keep, ["sea seas", "whale sea zz"]) == {
        "texts": 2,
        "texts_changed": 0.5,
        "words": 5,
        "words_changed": 0.2,
        "tokens_per_word": [1.2, 1.2],
        "unknown_share": [round(1 / 6, 6), round(2 / 6, 6)],
    }
