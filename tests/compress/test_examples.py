"""Examples: labels land on the right tokens, parts do not mix, batches are the same every time, bad data is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoTokenizer

from planish.compress.checkpoint import open_checkpoint
from planish.compress.encode_examples import answer_tokens, tags_of, words_of
from planish.compress.examples import Examples, held_out, read_examples
from planish.compress.recipe import Data
from planish.errors import CheckpointError, DataError
from planish.gate.spans import Span

from .conftest import _tokenizer

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
WORDS = ["whale", "harpooneers", "Ahab", "Nantucket's", "sea", "unfathomable,", "(ship)", "Queequeg", "\u00e9t\u00e9"]
TOKENIZER = _tokenizer()
TOKENIZER.backend_tokenizer.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]",
    pair="[CLS] $A [SEP] $B:1 [SEP]:1",
    special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
)


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def read(tmp_path: Path, small_model: Callable[..., Any]) -> Callable[..., Examples]:
    """Examples of rows, for a small BERT."""
    kinds = {
        "text-classification": "BertForSequenceClassification",
        "token-classification": "BertForTokenClassification",
        "question-answering": "BertForQuestionAnswering",
        "fill-mask": "BertForMaskedLM",
        "feature-extraction": "BertModel",
    }

    def make(
        task: str, rows: list[dict[str, Any]], names: list[str] | None = None, config: Any = None, **data: Any
    ) -> Examples:
        model = small_model("bert", kinds[task])
        raw = {"id2label": dict(enumerate(names)) if names else None, **(config or {})}
        path = lines(tmp_path / "train.jsonl", rows)
        return read_examples(Data(train=str(path), **data), tmp_path, TOKENIZER, model, task, raw)

    return make


# Labels on tokens


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_spans_land_on_the_first_tokens_of_their_words(data: st.DataObject) -> None:
    words = data.draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=8))
    kinds = data.draw(st.lists(st.sampled_from(["O", "PER", "LOC"]), min_size=len(words), max_size=len(words)))
    text, spans, at = " ".join(words), [], 0
    for word, kind in zip(words, kinds, strict=True):
        if kind != "O":
            spans.append(Span(at, at + len(word), kind))
        at += len(word) + 1
    encoding = TOKENIZER.backend_tokenizer.encode(text)
    begins, places = words_of(encoding, text, 0)
    tags = tags_of(begins, places, spans, TAGS).tolist()
    # Oracle by characters: the tag of a token that starts a word is that of the span over its first character.
    for index, (start, end) in enumerate(encoding.offsets):
        fresh = end > start and (index == 0 or encoding.word_ids[index] != encoding.word_ids[index - 1])
        owner = next((span for span in spans if span.start <= start < span.end), None)
        if not fresh:
            assert tags[index] == -100
        elif owner is None:
            assert TAGS[tags[index]] == "O"
        else:
            assert TAGS[tags[index]] == ("B-" if start == owner.start else "I-") + owner.label


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_answers_land_on_their_tokens(data: st.DataObject) -> None:
    words = data.draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=10))
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, len(words) - 1))
    context = " ".join(words)
    start = sum(len(word) + 1 for word in words[:first])
    end = start + len(" ".join(words[first : last + 1]))
    encoding = TOKENIZER.backend_tokenizer.encode("where is the sea", context)
    inside = [one == 1 for one in encoding.sequence_ids]
    a, b = answer_tokens(encoding.offsets, inside, (start, end))
    assert inside[a]
    assert inside[b]
    assert (encoding.offsets[a][0], encoding.offsets[b][1]) == (start, end)
    assert answer_tokens(encoding.offsets, inside, None) == (0, 0)
    assert answer_tokens(encoding.offsets[:-2], inside[:-2], (start, len(context))) == (0, 0), "cut off"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["O", "B-A", "I-A"], ["B-A", "I-A", "I-A", "O", "B-A"]),
        (["O", "B-A", "I-A", "E-A", "S-A"], ["B-A", "I-A", "E-A", "O", "S-A"]),
        (["O", "B-A", "I-A", "L-A", "U-A"], ["B-A", "I-A", "L-A", "O", "U-A"]),
        (["O", "I-A"], ["I-A", "I-A", "I-A", "O", "I-A"]),
        (["A", "O"], ["A", "A", "A", "O", "A"]),
        (["A", "B"], ["A", "A", "A", None, "A"]),
    ],
)
def test_every_scheme_of_tags(names: list[str], expected: list[str | None]) -> None:
    words = [(0, 2), (3, 5), (6, 8), (9, 11), (12, 14)]
    tags = tags_of([True] * 5, words, [Span(0, 8, "A"), Span(12, 14, "A")], names).tolist()
    assert [None if tag == -100 else names[tag] for tag in tags] == expected


def test_an_entity_cut_off_has_no_end() -> None:
    names = ["O", "B-A", "I-A", "E-A", "S-A"]
    tags = tags_of([True, True], [(0, 2), (3, 5)], [Span(0, 8, "A")], names).tolist()
    assert [names[tag] for tag in tags] == ["B-A", "I-A"]


# Tasks


def test_classification_batches_train_the_model(read: Callable[..., Examples], small_model: Callable[..., Any]) -> None:
    rows = [
        {"text": f"the whale {'is here' if n % 2 else 'was there once more'} {n}", "label": n % 2} for n in range(20)
    ]
    examples = read("text-classification", rows, ["no", "yes"])
    assert (examples.count("train"), examples.count("validation")) == (18, 2)
    assert examples.labelled
    assert examples.judged
    (batch, *rest) = examples.batches("train", 8)
    assert [len(one["labels"]) for one in (batch, *rest)] == [8, 8, 2]
    texts = examples.texts("train")
    for number, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
        expected = TOKENIZER(texts[number])["input_ids"]
        assert ids[mask.bool()].tolist() == expected
        assert not ids[~mask.bool()].any(), "padding"
    truth = {row["text"]: row["label"] for row in rows}
    assert batch["labels"].tolist() == [truth[text] for text in texts[:8]]
    assert batch["token_type_ids"].shape == batch["input_ids"].shape
    model = small_model("bert", "BertForSequenceClassification")
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    assert model(**batch).loss == torch.nn.functional.cross_entropy(logits, batch["labels"])


def test_several_labels(read: Callable[..., Examples]) -> None:
    rows = [{"text": f"text {n}", "label": ["a"] if n % 2 else ["a", "c"]} for n in range(10)]
    config = {"problem_type": "multi_label_classification"}
    examples = read("text-classification", rows, ["a", "b", "c"], config)
    labels = examples.batches("train", 9)[0]["labels"]
    assert labels.dtype == torch.float32
    wanted = [[1.0, 0.0, float("c" in r["label"])] for t in examples.texts("train") for r in rows if r["text"] == t]
    assert labels.tolist() == wanted


def test_question_answering(read: Callable[..., Examples], small_model: Callable[..., Any]) -> None:
    context = "the white whale swam to the south of the island"
    rows = [{"question": f"who swam {n}", "context": f"{n} {context}", "answers": ["white whale"]} for n in range(9)]
    rows += [{"question": "who flew", "context": f"{n} {context}", "answers": []} for n in range(9, 12)]
    examples = read("question-answering", rows)
    assert examples.count("train") == 11
    batch = examples.batches("train", 11)[0]
    for row, ids, start, end in zip(
        examples.rows("train"), batch["input_ids"], batch["start_positions"], batch["end_positions"], strict=True
    ):
        assert row.sample is not None
        found = "".join(TOKENIZER.convert_ids_to_tokens(ids[start : end + 1])).replace("##", "") if start else ""
        assert found == ("whitewhale" if row.sample.answers else "")
        assert row.text == f"{row.sample.question} {row.sample.context}"
    assert batch["token_type_ids"].max() == 1
    assert torch.isfinite(small_model("bert", "BertForQuestionAnswering")(**batch).loss)


def test_long_questions_are_cut_too(read: Callable[..., Examples]) -> None:
    rows = [
        {"question": "who " * 60, "context": f"the whale {n} " + "sea " * n, "answers": ["whale"]} for n in range(6)
    ]
    examples = read("question-answering", rows, max_length=24)
    assert all(len(row.ids) <= 24 and row.open is not None and row.open.any() for row in examples.rows("train"))


def test_masks_are_drawn_anew_each_epoch(read: Callable[..., Examples], small_model: Callable[..., Any]) -> None:
    words = ["the", "white", "whale", "swam", "to", "the", "south", "of", "the", "island", "and", "back", "again"]
    rows = [{"text": " ".join(words[n % 5 :] + words[: n % 7]) + f" {n}"} for n in range(400)]
    examples = read("fill-mask", rows)
    plain = {text: TOKENIZER(text)["input_ids"] for text in examples.texts("train")}
    kept, special = 0, set(TOKENIZER.all_special_ids)
    masked: list[int] = []
    for batch in examples.batches("train", 32):
        at = batch["labels"] != -100
        masked += batch["input_ids"][at].tolist()
        kept += int((batch["input_ids"][at] == batch["labels"][at]).sum())
        assert not set(batch["labels"][at].tolist()) & special
    flat = [token for text in examples.texts("train") for token in plain[text] if token not in special]
    assert len(masked) / len(flat) == pytest.approx(0.15, abs=0.02)
    assert masked.count(TOKENIZER.mask_token_id) / len(masked) == pytest.approx(0.8, abs=0.04)
    assert kept / len(masked) == pytest.approx(0.1, abs=0.03)
    one, other = (examples.batches("train", 32, epoch=epoch)[0]["labels"] for epoch in (0, 1))
    assert not torch.equal(one, other)
    first, second = (examples.batches("validation", 32, epoch=epoch)[0] for epoch in (0, 1))
    assert torch.equal(first["labels"], second["labels"])
    assert (first["input_ids"][first["labels"] != -100] == TOKENIZER.mask_token_id).all()
    assert examples.labelled, "its labels are the text itself"
    assert torch.isfinite(small_model("bert", "BertForMaskedLM")(**first).loss)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "xlm-roberta", "mpnet", "electra"])
def test_every_encoder_takes_its_batches(kind: str, tmp_path: Path, small_checkpoint: Callable[..., Path]) -> None:
    one_type = {"type_vocab_size": 1} if "roberta" in kind else {}  # as all trained ones have it
    source = open_checkpoint(small_checkpoint(kind, **one_type))
    model = source.load_model()
    rows = [{"text": f"the whale {n} " * (n % 6 + 1)} for n in range(12)]
    lines(tmp_path / "rows.jsonl", rows)
    data = Data(train="rows.jsonl")
    examples = read_examples(data, tmp_path, source.tokenizer(), model, source.task, source.raw_config)
    batch = examples.batches("train", 6, seed=0)[0]
    assert ("token_type_ids" in batch) == (kind in ("bert", "electra"))
    found = model(**batch)
    assert torch.isfinite(found[0]).all()
    # Padding changes nothing: every row alone gives what it gives in the batch.
    row = int(batch["attention_mask"].sum(1).argmin())
    short = int(batch["attention_mask"][row].sum())
    alone = model(**{name: value[row : row + 1, :short] for name, value in batch.items()})
    key = "last_hidden_state" if "last_hidden_state" in found else "logits"
    inside = found[key][row, :short] if found[key].dim() == 3 else found[key][row]
    torch.testing.assert_close(alone[key][0], inside, atol=2e-5, rtol=1e-4)


def test_decoders_read_windows(tmp_path: Path, small_model: Callable[..., Any], judge_text: str) -> None:
    (tmp_path / "book.txt").write_text(judge_text[:20_000], encoding="utf-8")
    model = small_model("gpt2")
    data = Data(train="book.txt", sequence_length=[16, 32])
    examples = read_examples(data, tmp_path, TOKENIZER, model, "text-generation", {})
    batches = examples.batches("train", 8, seed=1)
    assert {tuple(batch["input_ids"].shape)[1] for batch in batches} == {32}
    assert all(torch.equal(batch["labels"], batch["input_ids"]) for batch in batches)
    assert all(batch["attention_mask"].all() for batch in batches)
    assert torch.isfinite(model(**batches[0]).loss)
    rows = [*examples.rows("train"), *examples.rows("validation")]
    stream = TOKENIZER(judge_text[:20_000], add_special_tokens=False)["input_ids"]
    assert len(rows) == len(stream) // 30
    cut = {tuple(stream[at : at + 30]) for at in range(0, len(stream) - 29, 30)}
    assert {tuple(row.ids[1:-1].tolist()) for row in rows} == cut
    assert examples.count("validation") == round(0.1 * len(rows))
    text, ids = examples.texts("train")[3], examples.rows("train")[3].ids
    assert TOKENIZER(text)["input_ids"] == ids.tolist(), "a window's text is what it was cut from"
    lines(tmp_path / "rows.jsonl", [{"text": line} for line in judge_text[:20_000].split("\n") if line.strip()])
    joined = read_examples(
        data.model_copy(update={"train": "rows.jsonl"}), tmp_path, TOKENIZER, model, "text-generation", {}
    )
    assert joined.count("train") == examples.count("train")


def test_pairs_and_prompts_are_read_as_texts(
    read: Callable[..., Examples], tmp_path: Path, small_model: Callable[..., Any]
) -> None:
    pairs = read(
        "feature-extraction", [{"sentence1": f"whale {n}", "sentence2": f"sea {n}", "score": n} for n in range(10)]
    )
    assert (pairs.labelled, pairs.count("train") + pairs.count("validation")) == (False, 20)
    data, model, digests = Data(train="t.jsonl", sequence_length=16), small_model("gpt2"), set()
    for names in (
        {"text": "the whale swims {n} in the sea"},
        {"prompt": "the whale swims {n}", "reference": "in the sea"},
    ):
        rows = [{name: text.format(n=n) for name, text in names.items()} for n in range(60)]
        lines(tmp_path / "t.jsonl", rows)
        digests.add(read_examples(data, tmp_path, TOKENIZER, model, "text-generation", {}).digest)
    assert len(digests) == 1, "a prompt and what follows it are one text"


@pytest.mark.parametrize("task", ["feature-extraction", "text-classification", "question-answering", "text-generation"])
def test_without_training_data_the_calibration_text_serves(
    task: str, tmp_path: Path, small_model: Callable[..., Any]
) -> None:
    model = small_model("gpt2" if task == "text-generation" else "bert")
    data = Data(samples=20, sequence_length=32, max_length=24)
    examples = read_examples(data, tmp_path, TOKENIZER, model, task, {})
    assert examples.count("train") + examples.count("validation") == 20
    assert examples.labelled == (task == "text-generation")
    longest = max(len(row.ids) for row in examples.rows("train"))
    assert longest == (32 if task == "text-generation" else 24)
    again = read_examples(data, tmp_path, TOKENIZER, model, task, {})
    assert again.digest == examples.digest
    other = read_examples(data.model_copy(update={"seed": 1}), tmp_path, TOKENIZER, model, task, {})
    assert other.digest != examples.digest


def test_the_tokenizer_keeps_its_own_settings(tmp_path: Path, small_model: Callable[..., Any]) -> None:
    tokenizer = _tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(100)
    tokenizer.backend_tokenizer.enable_padding(length=100)
    before = tokenizer.backend_tokenizer.to_str()
    read_examples(Data(samples=10), tmp_path, tokenizer, small_model("bert"), "feature-extraction", {})
    read_examples(Data(samples=10), tmp_path, tokenizer, small_model("gpt2"), "text-generation", {})
    assert tokenizer.backend_tokenizer.to_str() == before


# Batches and parts


def test_shuffled_batches(read: Callable[..., Examples]) -> None:
    rows = [{"text": f"{n} " + "whale " * (n * 7 % 40)} for n in range(300)]
    examples = read("feature-extraction", rows, max_length=64)
    same, again = (examples.batches("train", 8, seed=3, epoch=1) for _ in range(2))
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(same, again, strict=True))
    for other in (examples.batches("train", 8, seed=3, epoch=2), examples.batches("train", 8, seed=4, epoch=1)):
        assert any(a["input_ids"].shape != b["input_ids"].shape or (a["input_ids"] != b["input_ids"]).any()
                   for a, b in zip(same, other, strict=True))  # fmt: skip
    in_order = examples.batches("train", 8)
    seen = sorted(tuple(ids[mask.bool()].tolist()) for one in same for ids, mask in
                  zip(one["input_ids"], one["attention_mask"], strict=True))  # fmt: skip
    assert seen == sorted(tuple(row.ids.tolist()) for row in examples.rows("train")), "each example once"
    padded, plain = (sum(int((one["attention_mask"] == 0).sum()) for one in batches) for batches in (same, in_order))
    assert padded < 0.3 * plain, "texts of like length are together"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.floats(0.01, 0.5), st.integers(0, 2**63 - 1))
def test_equal_texts_are_held_out_together(keys: list[int], share: float, seed: int) -> None:
    names = [str(key) for key in keys]
    held = held_out(names, share, seed)
    assert held == sorted(set(held)) == held_out(names, share, seed)
    assert held
    rest = [name for number, name in enumerate(names) if number not in held]
    assert not {names[number] for number in held} & set(rest)
    unique = len(set(names)) == len(names)
    assert not unique or len(held) == max(1, round(share * len(names)))


def test_questions_on_one_context_stay_together(read: Callable[..., Examples]) -> None:
    rows = [
        {"question": f"what {n}", "context": f"the whale number {n // 4} swam", "answers": ["whale"]} for n in range(80)
    ]
    examples = read("question-answering", rows, holdout=0.2)
    contexts = [{row.sample.context for row in examples.rows(part) if row.sample} for part in ("train", "validation")]
    assert not contexts[0] & contexts[1]
    assert examples.count("validation") == 16


# Bad data


TWO = [{"text": "one whale", "label": "no"}, {"text": "two whales", "label": "yes"}] * 5


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": f"t {n}", "label": "yes"} for n in range(9)], "only label 'yes'"),
        ([*TWO, {"text": "three", "label": "maybe"}], "train.jsonl line 11: a label of the model"),
        ([], "empty file"),
        (TWO[:1], "at least 2 examples to train"),
        ([*TWO, {"text": "three"}], "label every line"),
    ],
)
def test_bad_training_data(rows: list[dict[str, Any]], message: str, read: Callable[..., Examples]) -> None:
    with pytest.raises(DataError, match=message):
        read("text-classification", rows, ["no", "yes"])


def test_bad_parts(read: Callable[..., Examples], tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": n % 2} for n in range(10)]
    with pytest.raises(DataError, match=r"as both; name another file"):
        read("text-classification", rows, ["no", "yes"], validation="train.jsonl")
    lines(tmp_path / "copy.jsonl", rows)
    with pytest.raises(DataError, match="only training texts"):
        read("text-classification", rows, ["no", "yes"], validation="copy.jsonl")
    lines(tmp_path / "bare.jsonl", [{"text": "a text"}])
    with pytest.raises(DataError, match=r"labels in .*bare.jsonl, got one without"):
        read("text-classification", rows, ["no", "yes"], validation="bare.jsonl")
    with pytest.raises(DataError, match="check the path"):
        read("text-classification", rows, ["no", "yes"], validation="missing.jsonl")
    bare = [{"text": f"text {n}"} for n in range(10)]
    lines(tmp_path / "judged.jsonl", [{"text": "a text", "label": 1}])
    examples = read("text-classification", bare, ["no", "yes"], validation="judged.jsonl")
    assert (examples.labelled, examples.judged) == (False, True), "trained on the parent's answers, judged on labels"
    assert "labels" not in examples.batches("train", 4)[0]


def test_what_lies_behind_the_limit(read: Callable[..., Examples]) -> None:
    rows = [{"text": f"{n} " + "sea " * 30 + "Ahab", "spans": [[len(f"{n} ") + 120, len(f"{n} ") + 124, "PER"]]}
            for n in range(6)]  # fmt: skip
    assert read("token-classification", rows, TAGS).count("train") == 5
    with pytest.raises(DataError, match=r"all of them behind the first 16 tokens; raise data\.max_length"):
        read("token-classification", rows, TAGS, max_length=16)
    with pytest.raises(DataError, match=r"an entity in .*, got none"):
        read("token-classification", [{"text": f"sea {n}", "spans": []} for n in range(6)], TAGS)
    asked = [{"question": "who", "context": f"{n} " + "sea " * 30 + "Ahab", "answers": ["Ahab"]} for n in range(6)]
    assert read("question-answering", asked).count("train") == 5
    with pytest.raises(DataError, match="all of them behind the first 16 tokens"):
        read("question-answering", asked, max_length=16)
    with pytest.raises(DataError, match="line 1: an answer that occurs in its context"):
        read("question-answering", [{**row, "answers": ["Ishmael"]} for row in asked])
    with pytest.raises(DataError, match=r"an answer in .*, got none"):
        read("question-answering", [{**row, "answers": []} for row in asked])


def test_models_that_cannot_be_trained_so(read: Callable[..., Examples], tmp_path: Path, small_model: Any) -> None:
    with pytest.raises(DataError, match="multi_label_classification"):
        read("text-classification", [{"text": f"t {n}", "label": 0} for n in range(5)], ["score"])
    with pytest.raises(CheckpointError, match="id2label"):
        read("text-classification", TWO, None, {"id2label": {"a": "b"}})
    tokenizer = _tokenizer()
    tokenizer.mask_token = None
    lines(tmp_path / "t.jsonl", [{"text": "a whale"}, {"text": "two whales"}])
    with pytest.raises(CheckpointError, match="mask token"):
        read_examples(Data(train="t.jsonl"), tmp_path, tokenizer, small_model("roberta"), "fill-mask", {})
    with pytest.raises(CheckpointError, match="a fast tokenizer"):
        read_examples(Data(train="t.jsonl"), tmp_path, _Slow(), small_model("bert"), "feature-extraction", {})
    (tmp_path / "short.txt").write_text("the whale", encoding="utf-8")
    data = Data(train="short.txt", sequence_length=64)
    with pytest.raises(DataError, match=r"lower data\.sequence_length or give more text"):
        read_examples(data, tmp_path, TOKENIZER, small_model("gpt2"), "text-generation", {})


class _Slow:
    all_special_ids = ()


def test_real_tokenizers_agree_with_transformers(minilm: Path, tmp_path: Path, small_model: Callable[..., Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    texts = ["Ahab's whale-boats, unfathomably far!", "naïve café in São Paulo", "hello [MASK] world"]
    (tmp_path / "t.txt").write_text("\n".join(texts), encoding="utf-8")
    model = small_model("bert", vocab_size=len(tokenizer))
    examples = read_examples(Data(train="t.txt"), tmp_path, tokenizer, model, "feature-extraction", {})
    found = {row.text: row.ids.tolist() for part in ("train", "validation") for row in examples.rows(part)}
    assert found == {text: tokenizer(text)["input_ids"] for text in texts}
