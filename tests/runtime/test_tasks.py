"""Each task against the Hugging Face pipeline, or its definition where transformers dropped it, on the same logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast, pipeline
from transformers.modeling_outputs import MaskedLMOutput, TokenClassifierOutput

from planish.errors import BundleError, RequestError
from planish.runtime import Model, load
from tests.runtime import tiny_decoder

BIO = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


class TableModel(BertForTokenClassification):
    """The tiny model in torch, so that a pipeline can run it."""

    def __init__(self, tables: Any, labels: list[str], output: type) -> None:
        names = dict(enumerate(labels))
        small = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
        super().__init__(BertConfig(vocab_size=600, id2label=names, label2id={v: k for k, v in names.items()}, **small))
        self.tables = tables
        self.output = output

    def forward(self, input_ids: Any = None, attention_mask: Any = None, token_type_ids: Any = None, **_: Any) -> Any:
        return self.output(logits=torch.from_numpy(self.tables(input_ids.numpy(), attention_mask.numpy())))


def fast(tokenizer: Tokenizer, limit: int = 48) -> PreTrainedTokenizerFast:
    roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", model_max_length=limit, **roles)


def short(sentences: list[str], tokenizer: Tokenizer, limit: int = 48) -> list[str]:
    return [text for text in sentences if len(tokenizer.encode(text)) <= limit]


# --- classify


@pytest.fixture(scope="module")
def classifier(tiny: Callable[..., Any]) -> Any:
    return tiny("text-classification", 3, labels=["bad", "fair", "good"])


def test_classify_is_softmax_best_first(classifier: Any, word_pieces: Tokenizer, sentences: list[str]) -> None:
    texts = short(sentences, word_pieces)[:40]
    results = load(classifier.path).classify(texts, batch_size=7)
    for text, result in zip(texts, results, strict=True):
        ids = np.array([word_pieces.encode(text).ids])
        expected = torch.softmax(torch.from_numpy(classifier.tables.context[ids].mean(1)[0]), -1).numpy()
        assert dict(zip(result.labels, result.scores, strict=True)) == pytest.approx(
            dict(zip(["bad", "fair", "good"], expected, strict=True)), abs=1e-5
        )
        assert list(result.scores) == sorted(result.scores, reverse=True)
        assert (result.label, result.score) == (result.labels[0], result.scores[0])
        assert not result.truncated


def test_classify_multi_label_and_single_label_use_sigmoid(tiny: Callable[..., Any], word_pieces: Tokenizer) -> None:
    several = tiny("text-classification", 3, problem_type="multi_label_classification")
    one = tiny("text-classification", 1)
    for made, width in ((several, 3), (one, 1)):
        result = load(made.path).classify("the whale")[0]
        logits = made.tables.context[word_pieces.encode("the whale").ids].mean(0)
        expected = {f"LABEL_{i}": float(torch.sigmoid(torch.tensor(logits[i]))) for i in range(width)}
        assert dict(zip(result.labels, result.scores, strict=True)) == pytest.approx(expected, abs=1e-5)


def test_classify_pairs_top_k_and_truncation(classifier: Any) -> None:
    model = load(classifier.path)
    both, one = model.classify([("the whale", "the sea"), "the whale"], top_k=1)
    assert len(both.labels) == 1
    assert both.score != one.score
    long = model.classify(["sea " * 100, "sea"])
    assert [result.truncated for result in long] == [True, False]
    with pytest.raises(RequestError, match="at most 48 tokens, got 102 in text 1"):
        model.classify(["sea", "sea " * 100], truncate=False)
    assert model.count_tokens(["sea " * 100]) == [102]
    with pytest.raises(RequestError, match="top_k"):
        model.classify("sea", top_k=0)
    assert model.classify([]) == []


def test_classify_wrong_number_of_labels(tiny: Callable[..., Any]) -> None:
    made = tiny("text-classification", 3, labels=["a", "b"])
    with pytest.raises(BundleError, match="2 logits"):
        load(made.path).classify("sea")


# --- embed


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
@pytest.mark.parametrize("normalize", [True, False])
def test_embed(
    tiny: Callable[..., Any], word_pieces: Tokenizer, sentences: list[str], mode: str, normalize: bool
) -> None:
    made = tiny("feature-extraction", 5, pooling={"mode": mode, "normalize": normalize})
    texts = short(sentences, word_pieces)[:30]
    result = load(made.path).embed(texts, batch_size=8)
    assert result.shape == (30, 5)
    assert result.dtype == np.float32
    batch = fast(word_pieces)(texts, padding=True, return_tensors="pt")
    tokens = torch.from_numpy(made.tables(batch["input_ids"].numpy(), batch["attention_mask"].numpy()))
    mask = batch["attention_mask"].unsqueeze(-1)
    pooled = {
        "mean": lambda: (tokens * mask).sum(1) / mask.sum(1).clamp(min=1e-9),
        "cls": lambda: tokens[:, 0],
        "max": lambda: tokens.masked_fill(mask == 0, float("-inf")).max(1).values,
    }[mode]()
    expected = torch.nn.functional.normalize(pooled, dim=1) if normalize else pooled
    np.testing.assert_allclose(result, expected.numpy(), atol=2e-5)


def test_embed_asks_for_pooling_it_does_not_know(tiny: Callable[..., Any]) -> None:
    model = load(tiny("feature-extraction", 5).path)
    with pytest.raises(RequestError, match="pooling mode"):
        model.embed("sea")
    with pytest.raises(RequestError, match="did you mean 'mean'"):
        model.embed("sea", pooling="meen")
    long = model.embed("sea", pooling="mean")
    unit = model.embed("sea", pooling="mean", normalize=True)
    np.testing.assert_allclose(unit, long / np.linalg.norm(long), rtol=1e-6)
    assert model.embed([], pooling="mean").shape == (0, 5)


# --- tag


@pytest.mark.parametrize("aggregation", ["none", "simple", "first", "average", "max"])
@pytest.mark.parametrize("labels", [BIO, ["O", "A", "B", "C", "X-Y"]])
def test_tag(
    tiny: Callable[..., Any], word_pieces: Tokenizer, sentences: list[str], aggregation: str, labels: list[str]
) -> None:
    made = tiny("token-classification", 5, labels=labels)
    texts = short(sentences, word_pieces)[:60]
    oracle = pipeline(
        "token-classification",
        model=TableModel(made.tables, labels, TokenClassifierOutput),
        tokenizer=fast(word_pieces),
        aggregation_strategy=aggregation,
        device="cpu",
    )
    found = load(made.path).tag(texts, aggregation=aggregation, batch_size=16)
    kinds = set()
    for text, entities, expected in zip(texts, found, oracle(texts), strict=True):
        name = "entity" if aggregation == "none" else "entity_group"
        wanted = [(item[name], item["start"], item["end"]) for item in expected]
        # The pipeline cuts "X-Y" at its dash; the name of a label is the user's.
        assert [
            (e.label.replace("X-Y", "Y") if name != "entity" else e.label, e.start, e.end) for e in entities
        ] == wanted
        assert [e.score for e in entities] == pytest.approx([float(item["score"]) for item in expected], abs=1e-5)
        assert all(e.text == text[e.start : e.end] for e in entities)
        kinds |= {e.label for e in entities}
    assert len(kinds) >= 2


def test_tag_words_of_a_byte_level_tokenizer(tiny: Callable[..., Any], byte_pieces: Tokenizer) -> None:
    made = tiny("token-classification", 5, tokenizer=byte_pieces, labels=BIO)
    text = "Ishmael sailed from Nantücket, aboard the Pequod."
    bounds = {0, 7, 14, 19, 29, 30, 37, 41, 48, 49}
    for entity in load(made.path).tag(text, aggregation="first")[0]:
        assert {entity.start, entity.end} <= bounds | {8, 15, 20, 31, 38, 42}
        assert entity.text == text[entity.start : entity.end]
        assert entity.text == entity.text.strip()


def test_tag_bioes_and_unknown_aggregation(tiny: Callable[..., Any]) -> None:
    from planish.runtime.tag import Token, entities

    labels = ["O", "B-X", "I-X", "E-X", "S-X"]
    order = [4, 4, 1, 2, 3, 1, 3, 0, 2]
    scores = np.eye(5) * 0.9
    tokens = [Token(scores[label], place, place + 1, place) for place, label in enumerate(order)]
    spans = [(e.start, e.end) for e in entities("abcdefghi", tokens, labels, "simple")]
    assert spans == [(0, 1), (1, 2), (2, 5), (5, 7), (8, 9)]
    with pytest.raises(RequestError, match="did you mean 'first'"):
        load(tiny("token-classification", 5, labels=BIO).path).tag("sea", aggregation="frist")


def test_tag_reads_long_texts_in_windows(
    tiny: Callable[..., Any], word_pieces: Tokenizer, sentences: list[str]
) -> None:
    """A model that looks at each token alone says the same of a long text, however it is cut."""

    def alone(tables: Any) -> None:
        tables.positions[:] = 0
        tables.context[:] = 0

    text = " ".join(sentences[:6])
    assert 100 < len(word_pieces.encode(text)) < 500
    whole = load(tiny("token-classification", 5, change=alone, labels=BIO, max_length=500).path)
    cut = load(tiny("token-classification", 5, change=alone, labels=BIO, max_length=24).path)
    for aggregation in ("none", "simple", "average"):
        expected = whole.tag(text, aggregation=aggregation)[0]
        got = cut.tag(text, aggregation=aggregation, stride=10)[0]
        assert [(e.label, e.start, e.end) for e in got] == [(e.label, e.start, e.end) for e in expected]
        assert [e.score for e in got] == pytest.approx([e.score for e in expected])


def test_tag_takes_a_token_from_the_window_that_sees_most_around_it(tiny: Callable[..., Any]) -> None:
    """Only positions count here, so a label tells where in its window the token stood."""

    def places(tables: Any) -> None:
        tables.table[:] = tables.context[:] = tables.positions[:] = 0
        tables.positions[np.arange(512), np.arange(512) % 12] = 9

    labels = [f"at{place}" for place in range(12)]
    model = load(tiny("token-classification", 12, change=places, labels=labels, max_length=12).path)
    found = [entity.label for entity in model.tag("the " * 14, aggregation="none", stride=4)[0]]
    # Windows hold 10 words and share words 6 to 9; of those, 6 and 7 are nearer the middle of the first window.
    assert found == [f"at{place}" for place in (1, 2, 3, 4, 5, 6, 7, 8, 3, 4, 5, 6, 7, 8)]


# --- answer


def spans_by_definition(
    starts: np.ndarray, ends: np.ndarray, context: list[bool], longest: int
) -> list[tuple[int, int, float]]:
    """All spans by falling probability, by the definition of the SQuAD pipeline: softmax over context and [CLS]."""
    allowed = torch.tensor([inside or index == 0 for index, inside in enumerate(context)])
    p = [torch.softmax(torch.from_numpy(x).masked_fill(~allowed, -1e4), -1).numpy() for x in (starts, ends)]
    inside = [index for index, value in enumerate(context) if value]
    spans = [(i, j, float(p[0][i] * p[1][j])) for i in inside for j in inside if i <= j < i + longest]
    return sorted(spans, key=lambda span: -span[2])


@pytest.fixture(scope="module")
def squad(tiny: Callable[..., Any]) -> Any:
    return tiny("question-answering", 2, max_length=64)


def test_answer_in_one_window(squad: Any, word_pieces: Tokenizer, sentences: list[str]) -> None:
    model = load(squad.path)
    contexts = [text for text in sentences if len(word_pieces.encode("where is it", text)) <= 60][:25]
    for context, answer in zip(contexts, model.answer("where is it", contexts, max_answer_length=6), strict=True):
        encoding = word_pieces.encode("where is it", context)
        logits = squad.tables(np.array([encoding.ids]), np.array([encoding.attention_mask]))[0]
        inside = [sequence == 1 for sequence in encoding.sequence_ids]
        first, last, score = spans_by_definition(logits[:, 0], logits[:, 1], inside, 6)[0]
        words = [encoding.word_to_chars(encoding.token_to_word(index), 1) for index in (first, last)]
        assert (answer.start, answer.end) == (words[0][0], words[1][1])
        assert answer.text == context[answer.start : answer.end]
        assert answer.score == pytest.approx(score, rel=1e-4)


def test_answer_alternatives_are_distinct_and_sorted(squad: Any, sentences: list[str]) -> None:
    best = load(squad.path).answer("what", sentences[0], top_k=5)[0]
    every = [best, *best.alternatives]
    assert len({(a.start, a.end) for a in every}) == len(every) > 1
    assert [a.score for a in every] == sorted((a.score for a in every), reverse=True)


def test_answer_over_windows_is_one_softmax(squad: Any, word_pieces: Tokenizer, sentences: list[str]) -> None:
    context = " ".join(sentences[:4])
    question = "where is the whale"
    answer = load(squad.path).answer(question, context, max_length=40, stride=12, max_answer_length=5)[0]
    oracle = Tokenizer.from_str(word_pieces.to_str())
    oracle.enable_truncation(40, stride=12, strategy="only_second")
    first = oracle.encode(question, context)
    every = [first, *first.overflowing]
    assert len(every) > 3
    starts, ends, inside, spans = [], [], [], []
    for encoding in every:
        logits = squad.tables(np.array([encoding.ids]), np.array([encoding.attention_mask]))[0]
        context_tokens = [sequence == 1 for sequence in encoding.sequence_ids]
        offset = len(inside)
        spans += [(offset + i, offset + j) for i in range(len(logits)) for j in range(i, min(i + 5, len(logits)))]
        starts += list(logits[:, 0])
        ends += list(logits[:, 1])
        inside += context_tokens
    allowed = np.array(inside)
    allowed[[0, *np.cumsum([len(encoding) for encoding in every])[:-1]]] = True
    p = [np.where(allowed, np.exp(np.array(x, np.float64)), 0) for x in (starts, ends)]
    p = [x / x.sum() for x in p]
    best = max((p[0][i] * p[1][j] for i, j in spans if inside[i] and inside[j]), default=0.0)
    assert answer.score == pytest.approx(best, rel=1e-4)
    assert answer.text == context[answer.start : answer.end]


def test_no_answer_may_win(tiny: Callable[..., Any]) -> None:
    def unsure(tables: Any) -> None:
        tables.positions[0] = 50

    model = load(tiny("question-answering", 2, change=unsure).path)
    answer = model.answer("what", "the whale", no_answer=True, top_k=2)[0]
    assert (answer.text, answer.start, answer.end) == ("", 0, 0)
    assert answer.score > 0.99
    assert answer.alternatives[0].text
    assert model.answer("what", "the whale")[0].text


def test_answer_pairs_and_refusals(squad: Any) -> None:
    model = load(squad.path)
    assert len(model.answer(["who", "what"], "the whale")) == 2
    assert len(model.answer("who", ["the whale", "the sea", "the ship"])) == 3
    assert len(model.answer(["who", "what"], ["the whale", "the sea"])) == 2
    with pytest.raises(RequestError, match="as many questions"):
        model.answer(["who", "what"], ["a", "b", "c"])
    with pytest.raises(RequestError, match="shorten the question"):
        model.answer("who " * 100, "the whale")
    for name, value in (("top_k", 0), ("max_answer_length", 0), ("stride", -1), ("max_length", True)):
        with pytest.raises(RequestError, match=name):
            model.answer("who", "the whale", **{name: value})


def test_an_empty_context_has_no_answer(squad: Any) -> None:
    assert load(squad.path).answer("who", "")[0].text == ""


# --- fill


@pytest.fixture(scope="module")
def masked(tiny: Callable[..., Any]) -> Any:
    return tiny("fill-mask", 600, max_length=48)


def test_fill(masked: Any, word_pieces: Tokenizer, sentences: list[str]) -> None:
    oracle = pipeline(
        "fill-mask", model=TableModel(masked.tables, BIO, MaskedLMOutput), tokenizer=fast(word_pieces), device="cpu"
    )
    texts = ["Call me [MASK].", "The [MASK] is white", *(f"{s[:40]} [MASK]" for s in sentences[:10])]
    for text, filled in zip(texts, load(masked.path).fill(texts, top_k=3), strict=True):
        expected = oracle(text, top_k=3)
        assert [item.token_id for item in filled] == [item["token"] for item in expected]
        assert [item.token for item in filled] == [item["token_str"] for item in expected]
        assert [item.score for item in filled] == pytest.approx([item["score"] for item in expected], rel=1e-4)
        assert all(item.mask == 0 and "[MASK]" not in item.text for item in filled)


def test_fill_several_masks(masked: Any) -> None:
    filled = load(masked.path).fill("the [MASK] and the [MASK]", top_k=2)[0]
    assert [item.mask for item in filled] == [0, 0, 1, 1]
    assert all(item.text.count("[MASK]") == 1 for item in filled)


def test_fill_refusals(masked: Any, tiny: Callable[..., Any]) -> None:
    model = load(masked.path)
    with pytest.raises(RequestError, match=r"at least one \[MASK\]"):
        model.fill("the whale")
    with pytest.raises(RequestError, match="the part that fits"):
        model.fill("sea " * 60 + "[MASK]")
    with pytest.raises(RequestError, match=r"every \[MASK\].*\(48 tokens\), got 1 of 2 there"):
        model.fill("[MASK] " + "sea " * 60 + "[MASK]")
    with pytest.raises(RequestError, match="top_k"):
        model.fill("the [MASK]", top_k=0)


def test_fill_cuts_a_long_text_unless_told_not_to(masked: Any) -> None:
    model = load(masked.path)
    long = "the [MASK] " + "sea " * 60
    whole = model.fill("the [MASK] " + "sea " * 44)[0]  # as many tokens as fit
    assert [item.token_id for item in model.fill(long)[0]] == [item.token_id for item in whole]
    with pytest.raises(RequestError, match="at most 48 tokens, got 64 in text 1"):
        model.fill(["the [MASK]", long], truncate=False)


# --- all of them


def test_methods_of_other_tasks(classifier: Any) -> None:
    model: Model = load(classifier.path)
    for method, arguments in (("embed", 1), ("tag", 1), ("answer", 2), ("fill", 1), ("generate", 1), ("score", 1)):
        with pytest.raises(RequestError, match=r"call classify\(\) or run\(\)"):
            getattr(model, method)(*["sea"] * arguments)


def test_options_generate_does_not_have(tiny: Callable[..., Any], classifier: Any) -> None:
    model = load(tiny("text-generation", 600, generation=tiny_decoder.manifest_info()).path)
    with pytest.raises(RequestError, match=r"options of generate\(\), got 'max_tokens'; did you mean 'max_new_tokens'"):
        model.generate("the whale", max_tokens=5)
    with pytest.raises(RequestError, match="max_new_tokens as a whole number"):
        model.generate("the whale", stream=True, max_new_tokens=0)
    with pytest.raises(RequestError, match=r"offers generate\(\)"):
        load(classifier.path).generate("the whale", max_tokens=5)


@pytest.mark.parametrize("texts", [3, None, b"bytes", {"a": 1}, [3], [None]])
def test_what_is_no_text(classifier: Any, texts: Any) -> None:
    with pytest.raises(RequestError):
        load(classifier.path).classify(texts)


@pytest.mark.parametrize("size", [0, -1, True, 2.5])
def test_batch_sizes(classifier: Any, size: Any) -> None:
    with pytest.raises(RequestError, match="batch_size"):
        load(classifier.path).classify(["sea"], batch_size=size)


def test_a_bundle_without_tokenizer_still_runs(tiny: Callable[..., Any]) -> None:
    model = load(tiny("text-classification", 3, tokenizer=None).path)
    ids = np.array([[2, 9, 3]])
    assert model.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})["logits"].shape == (1, 3)
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        model.classify("sea")


def test_numbers_that_are_not_finite_are_refused(tiny: Callable[..., Any]) -> None:
    made = tiny("text-classification", 3, change=lambda tables: tables.context.fill(np.nan))
    with pytest.raises(BundleError, match="finite numbers in logits"):
        load(made.path).classify("sea")
