"""Quality against scikit-learn, hand-made models and direct computation; agreement across vocabularies."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from sklearn.metrics import accuracy_score, f1_score
from tokenizers import Tokenizer, processors
from torch import nn

from planish.compress import quality_read, quality_reference
from planish.compress.examples import Examples, read_examples
from planish.compress.quality import Reference, evaluate, headline
from planish.compress.recipe import Data
from planish.errors import CheckpointError, DataError, InputError

from .conftest import _tokenizer

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
NOUNS = ["whale", "sea", "ship", "island", "captain", "mate", "boat", "land"]
TOKENIZER = _tokenizer()
TOKENIZER.backend_tokenizer.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]",
    pair="[CLS] $A [SEP] $B:1 [SEP]:1",
    special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
)
HEADS = {
    "text-classification": "BertForSequenceClassification",
    "token-classification": "BertForTokenClassification",
    "question-answering": "BertForQuestionAnswering",
    "fill-mask": "BertForMaskedLM",
    "feature-extraction": "BertModel",
    "text-generation": "GPT2LMHeadModel",
}


class Scripted(nn.Module):
    """A model that says of each token (and of a text, by its second token) what a table holds for its id."""

    def __init__(self, table: torch.Tensor, kind: str) -> None:
        super().__init__()
        self.table, self.kind = nn.Parameter(table), kind
        self.config = SimpleNamespace(type_vocab_size=0, max_position_embeddings=None, pad_token_id=0)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.table[input_ids]
        if self.kind == "question-answering":
            return {"start_logits": found[..., 0], "end_logits": found[..., 1]}
        return {"logits": found[:, 1] if self.kind == "text-classification" else found}


def read(
    folder: Path,
    task: str,
    rows: Sequence[dict[str, Any]],
    names: Sequence[str] = (),
    config: dict[str, Any] | None = None,
    tokenizer: Any = TOKENIZER,
    **data: Any,
) -> Examples:
    """Examples of rows; the last third is for validation, in the order of the rows."""
    cut = len(rows) * 2 // 3
    for name, part in (("train", rows[:cut]), ("validation", rows[cut:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    raw = {**({"id2label": dict(enumerate(names))} if names else {}), **(config or {})}
    files = {"train": "train.jsonl", "validation": "validation.jsonl"}
    model = Scripted(torch.zeros(512, 2), task)
    return read_examples(Data(**files, **data), folder, tokenizer, model, task, raw)


def sentences(count: int) -> list[str]:
    return [f"the {NOUNS[n % 8]} {n} and the " + " ".join(NOUNS[: n % 5 + 1]) for n in range(count)]


def classifier(make: Callable[..., Any], names: Sequence[str], texts: Sequence[str]) -> Any:
    """A random classifier whose answers differ between the texts (a random one says the same of all)."""
    model = make("bert", HEADS["text-classification"], num_labels=len(names))
    with torch.no_grad():
        logits = torch.cat([model(**TOKENIZER(text, return_tensors="pt")).logits for text in texts])
        model.classifier.bias -= logits.mean(0)
        model.classifier.weight *= 20
        model.classifier.bias *= 20
    return model


# The task's metrics


def test_classification_is_what_scikit_learn_says(tmp_path: Path, small_model: Callable[..., Any]) -> None:
    rows = [{"text": text, "label": n * 7 % 3} for n, text in enumerate(sentences(120))]
    examples = read(tmp_path, "text-classification", rows, ["a", "b", "c"])
    model = classifier(small_model, "abc", examples.texts("validation"))
    truth = [row["label"] for row in rows[80:]]
    said = [int(model(**TOKENIZER(row["text"], return_tensors="pt")).logits.argmax()) for row in rows[80:]]
    assert len(set(said)) > 1, "else macro F1 says little"
    found = evaluate(model, examples)
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, said))
    assert found["macro_f1"] == pytest.approx(f1_score(truth, said, average="macro"))
    assert model.config.problem_type is None, "transformers would set it if it computed a loss"
    limited = evaluate(model, examples, limit=10)
    assert limited["accuracy"] == pytest.approx(accuracy_score(truth[::4], said[::4])), "evenly spread"


def test_several_labels_are_what_scikit_learn_says(tmp_path: Path, small_model: Callable[..., Any]) -> None:
    rows = [{"text": text, "label": [k for k in range(3) if (n >> k) % 2]} for n, text in enumerate(sentences(90))]
    config = {"problem_type": "multi_label_classification"}
    examples = read(tmp_path, "text-classification", rows, ["a", "b", "c"], config)
    model = classifier(small_model, "abc", examples.texts("validation"))
    logits = torch.cat([model(**TOKENIZER(row["text"], return_tensors="pt")).logits for row in rows[60:]])
    truth = [[int(k in row["label"]) for k in range(3)] for row in rows[60:]]
    found = evaluate(model, examples)
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, (logits > 0).int().numpy()))
    assert found["macro_f1"] == pytest.approx(f1_score(truth, (logits > 0).int().numpy(), average="macro"))
    assert Reference.of(model, examples).compare(model, examples) == {"agreement": 1.0, "kl": 0.0}


def test_entities_by_hand(tmp_path: Path) -> None:
    rows = [{"text": f"the whale {n}", "spans": [[4, 9, "PER"]]} for n in range(4)]
    rows += [
        {"text": "the whale swam", "spans": [[4, 9, "PER"]]},  # found
        {"text": "captain whale left", "spans": [[0, 13, "PER"]]},  # found whole
        {"text": "the ship", "spans": [[4, 8, "LOC"]]},  # missed
        {"text": "sea sea", "spans": [[0, 3, "LOC"]]},  # found as one entity of two words: wrong and missed
        {"text": "the sea " + "and " * 40 + "the ship", "spans": [[4, 7, "LOC"], [172, 176, "LOC"]]},  # one cut off
    ]
    rows = [*rows[:4], *[{"text": f"filler whale {n}", "spans": [[7, 12, "PER"]]} for n in range(6)], *rows[4:]]
    examples = read(tmp_path, "token-classification", rows, TAGS, max_length=32)
    table = torch.zeros(512, 5)
    table[:, 0] = 1.0
    for word, tag in (("captain", 1), ("whale", 2), ("sea", 4)):
        table[TOKENIZER(word, add_special_tokens=False)["input_ids"][0], tag] = 2.0
    # 3 found (one begins with I-, which begins an entity where none is open), 1 false, 2 missed
    assert evaluate(Scripted(table, "token-classification"), examples)["span_f1"] == pytest.approx(
        2 * 3 / (2 * 3 + 1 + 2)
    )


def test_answers_by_hand(tmp_path: Path) -> None:
    contexts = ["the whale and the ship", "a sea and a mate", "the land is far", "the boat is near", "no captain"]
    answers: list[list[str]] = [["ship"], ["sea and a mate"], ["the land"], ["near"], []]
    rows = [{"question": "who", "context": f"a whale {n}", "answers": ["whale"]} for n in range(10)]
    rows += [{"question": "what", "context": c, "answers": a} for c, a in zip(contexts, answers, strict=True)]
    examples = read(tmp_path, "question-answering", rows)
    table = torch.full((512, 2), -9.0)

    def says(word: str, start: float, end: float) -> None:
        ids = TOKENIZER(word, add_special_tokens=False)["input_ids"]
        table[ids[0], 0] = start
        table[ids[-1], 1] = end

    for word in ("ship", "sea", "land"):
        says(word, 5.0, 5.0)
    says("near", -9.0, -9.0)
    table[2] = 1.0  # [CLS]: no answer
    found = evaluate(Scripted(table, "question-answering"), examples)
    # ship: right. sea: 1 of 3 words (the article does not count). land: right. near: said nothing. captain: right.
    assert found["exact_match"] == pytest.approx(3 / 5)
    assert found["answer_f1"] == pytest.approx((1 + 2 * 1 * (1 / 3) / (1 + 1 / 3) + 1 + 0 + 1) / 5)


def test_masked_tokens_are_what_the_model_loses(tmp_path: Path, small_model: Callable[..., Any]) -> None:
    examples = read(tmp_path, "fill-mask", [{"text": text} for text in sentences(60)])
    model = small_model("bert", HEADS["fill-mask"])
    (batch,) = examples.batches("validation", 100)
    with torch.no_grad():
        out = model(**batch)
    at = batch["labels"] != -100
    found = evaluate(model, examples)
    assert found["loss"] == pytest.approx(float(out.loss), rel=1e-5)
    assert found["accuracy"] == pytest.approx(float((out.logits.argmax(-1)[at] == batch["labels"][at]).float().mean()))


def test_perplexity_is_what_the_model_loses(tmp_path: Path, small_model: Callable[..., Any], judge_text: str) -> None:
    (tmp_path / "book.txt").write_text(judge_text[:12_000], encoding="utf-8")
    model = small_model("gpt2")
    data = Data(train="book.txt", sequence_length=32, holdout=0.3)
    examples = read_examples(data, tmp_path, TOKENIZER, model, "text-generation", {})
    (batch,) = examples.batches("validation", 1000)
    with torch.no_grad():
        loss = float(model(**batch).loss)
    found = evaluate(model, examples)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)


def test_the_model_is_left_as_it_was(tmp_path: Path, small_model: Callable[..., Any]) -> None:
    rows = [{"text": text, "label": n % 2} for n, text in enumerate(sentences(120))]
    examples = read(tmp_path, "text-classification", rows, ["a", "b"])
    model = small_model("bert", HEADS["text-classification"]).train()
    seen: list[tuple[str, int, int]] = []
    first = evaluate(model, examples, progress=lambda *at: seen.append(at))
    assert model.training
    assert evaluate(model, examples) == first, "dropout is off"
    assert evaluate(model.eval(), examples) == first
    assert all(parameter.grad is None for parameter in model.parameters())
    assert seen == [("evaluate", 32, 40), ("evaluate", 40, 40)]


def test_what_cannot_be_judged(tmp_path: Path, small_model: Callable[..., Any]) -> None:
    bare = read(tmp_path, "text-classification", [{"text": text} for text in sentences(12)], ["a", "b"])
    model = small_model("bert", HEADS["text-classification"])
    assert evaluate(model, bare) == {}
    embedded = read(tmp_path, "feature-extraction", [{"text": text} for text in sentences(12)])
    assert evaluate(small_model("bert"), embedded) == {}
    with pytest.raises(DataError, match="limit 0"):
        evaluate(model, bare, limit=0)
    with torch.no_grad():
        model.classifier.bias[0] = torch.nan
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        Reference.of(model, bare)
    asked = [{"question": "who", "context": f"the {text}"} for text in sentences(12)]
    answering = small_model("bert", HEADS["question-answering"])
    with torch.no_grad():
        answering.qa_outputs.bias[0] = torch.inf
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        Reference.of(answering, read(tmp_path, "question-answering", asked))


def test_headline() -> None:
    assert headline({"agreement": 0.9, "kl": 0.2}, "text-classification") == ("agreement", 0.9, True)
    assert headline({"span_f1": 0.8, "agreement": 0.9}, "token-classification") == ("span_f1", 0.8, True)
    assert headline({"exact_match": 0.7, "answer_f1": 0.8}, "question-answering") == ("answer_f1", 0.8, True)
    assert headline({"kl": 0.2}, "text-generation") == ("kl", 0.2, False)
    assert headline({"cosine_mean": 0.98, "cosine_min": 0.9}, "feature-extraction") == ("cosine_mean", 0.98, True)
    with pytest.raises(InputError, match="nothing measured"):
        headline({}, "text-classification")


# Agreement with the parent


def damaged(model: Any, share: float = 0.3) -> Any:
    """The model with noise on all weights."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * share * parameter.std(correction=0))
    return model


def sharp(model: Any) -> Any:
    """The model as sure of its tokens as trained ones are; a random one finds all alike."""
    norm = model.cls.predictions.transform.LayerNorm if hasattr(model, "cls") else model.transformer.ln_f
    with torch.no_grad():
        norm.weight *= 6
        norm.bias *= 6
    return model


def rows_for(task: str, count: int = 60) -> list[dict[str, Any]]:
    if task == "question-answering":
        return [{"question": "who swam", "context": text} for text in sentences(count)]
    return [{"text": text} for text in sentences(count)]


def test_classes_agree_as_computed_directly(tmp_path: Path, small_model: Callable[..., Any]) -> None:
    examples = read(tmp_path, "text-classification", rows_for("text-classification"), ["a", "b", "c"])
    parent, child = (classifier(small_model, "abc", examples.texts("validation")) for _ in range(2))
    reference = Reference.of(parent, examples)
    damaged(child)
    inputs = [TOKENIZER(text, return_tensors="pt") for text in examples.texts("validation")]
    with torch.no_grad():
        one, other = (torch.cat([model(**i).logits for i in inputs]).log_softmax(-1) for model in (child, parent))
    found = reference.compare(child)
    assert found["agreement"] == pytest.approx(float((one.argmax(-1) == other.argmax(-1)).float().mean()))
    expected = nn.functional.kl_div(one, other, log_target=True, reduction="batchmean")
    assert found["kl"] == pytest.approx(float(expected), rel=1e-4)
    assert found["kl"] > 0
    with pytest.raises(InputError, match="texts the parent was run on"):
        reference.compare(child, read(tmp_path, "text-classification", rows_for("", 30), ["a", "b", "c"]))


def test_embeddings_agree_as_computed_directly(tmp_path: Path, small_model: Callable[..., Any]) -> None:
    examples = read(tmp_path, "feature-extraction", rows_for("feature-extraction"))
    reference = Reference.of(small_model("bert"), examples)
    child = damaged(small_model("bert"))
    inputs = [TOKENIZER(text, return_tensors="pt") for text in examples.texts("validation")]
    with torch.no_grad():
        pooled = [[m(**i).last_hidden_state[0].mean(0) for i in inputs] for m in (child, small_model("bert"))]
    cosines = [float(torch.cosine_similarity(a, b, 0)) for a, b in zip(*pooled, strict=True)]
    found = reference.compare(child, examples)
    assert found["cosine_mean"] == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)
    assert found["cosine_min"] == pytest.approx(min(cosines), abs=1e-5)


@pytest.mark.parametrize("task", ["fill-mask", "text-generation"])
def test_the_divergence_over_a_vocabulary(
    task: str, tmp_path: Path, small_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = "gpt2" if task == "text-generation" else "bert"
    parent, child = sharp(small_model(kind, HEADS[task])), damaged(sharp(small_model(kind, HEADS[task])))
    data = {"sequence_length": 16} if task == "text-generation" else {}
    examples = read(tmp_path, task, rows_for(task, 150), **data)
    (batch,) = examples.batches("validation", 1000)
    at = batch["labels"] != -100
    with torch.no_grad():
        logs = [model(**batch).logits.double().log_softmax(-1) for model in (child, parent)]
    if task == "text-generation":
        logs, at = [log[:, :-1] for log in logs], at[:, 1:]
    one, other = (log[at] for log in logs)
    exact = float(nn.functional.kl_div(one, other, log_target=True, reduction="batchmean"))
    monkeypatch.setattr(quality_read, "KEPT", 256)
    kept = Reference.of(parent, examples).compare(child)
    assert kept["agreement"] == pytest.approx(float((one.argmax(-1) == other.argmax(-1)).double().mean()))
    assert 0.97 * exact < kept["kl"] <= exact * 1.0001, "a lower bound, and near"
    monkeypatch.setattr(quality_read, "KEPT", 1024)
    assert Reference.of(parent, examples).compare(child)["kl"] == pytest.approx(exact, rel=1e-4)
    monkeypatch.setattr(quality_reference, "_PLACES", 64)
    few = Reference.of(parent, examples)
    assert 0 < len(few._readings) < examples.count("validation")
    assert few.compare(parent)["agreement"] == 1.0


@pytest.mark.parametrize("task", list(HEADS))
def test_a_model_agrees_with_itself_and_less_when_damaged(
    task: str, tmp_path: Path, small_model: Callable[..., Any]
) -> None:
    kind = "gpt2" if task == "text-generation" else "bert"
    names = TAGS if task == "token-classification" else ["a", "b"]
    examples = read(tmp_path, task, rows_for(task, 90), names, **({"sequence_length": 16} if kind == "gpt2" else {}))
    labels = {"num_labels": 5} if task == "token-classification" else {}
    parent = small_model(kind, HEADS[task], **labels)
    if task == "text-classification":
        parent = classifier(small_model, names, examples.texts("validation"))
    reference = Reference.of(parent, examples)
    same, other = reference.compare(parent, examples), reference.compare(damaged(parent, 0.6), examples)
    for name, value in same.items():
        assert value == pytest.approx(0.0 if name == "kl" else 1.0, abs=1e-6)
    assert all(other[name] > value if name == "kl" else other[name] < value for name, value in same.items())


def in_other_words(model: Any, task: str) -> tuple[Any, Any]:
    """The same model with its tokens numbered otherwise, and the tokenizer that goes with it."""
    content = json.loads(TOKENIZER.backend_tokenizer.to_str())
    size = len(content["model"]["vocab"])
    moved = list(range(5)) + torch.randperm(size - 5, generator=torch.Generator().manual_seed(0)).add(5).tolist()
    content["model"]["vocab"] = {token: moved[number] for token, number in content["model"]["vocab"].items()}
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    raw = Tokenizer.from_str(json.dumps(content))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, mask_token="[MASK]", **names)
    with torch.no_grad():
        tables = [model.get_input_embeddings().weight]
        if task == "fill-mask":
            tables.append(model.cls.predictions.decoder.bias)
        for table in tables:
            table[moved] = table.clone()[: len(moved)]
    return model, tokenizer


@pytest.mark.parametrize("task", [task for task in HEADS if task != "text-generation"])
def test_agreement_is_by_text_not_by_token_number(task: str, tmp_path: Path, small_model: Callable[..., Any]) -> None:
    names = TAGS if task == "token-classification" else ["a", "b"]
    rows = rows_for(task, 90)
    ours = read(tmp_path, task, rows, names)

    def make() -> Any:
        if task == "text-classification":
            return classifier(small_model, names, ours.texts("validation"))
        return small_model("bert", HEADS[task], num_labels=len(names) if task == "token-classification" else 2)

    reference = Reference.of(make(), ours)
    model, tokenizer = in_other_words(make(), task)
    theirs = read(tmp_path, task, rows, names, tokenizer=tokenizer)
    found = reference.compare(model, theirs)
    assert found
    for name, value in found.items():
        assert value == pytest.approx(0.0 if name == "kl" else 1.0, abs=1e-6)
    wrong = reference.compare(model)  # the parent's numbers for a model that means others
    assert any(abs(wrong[name] - found[name]) > 0.01 for name in found)


def test_decoders_of_other_vocabularies_are_not_compared(tmp_path: Path, small_model: Callable[..., Any]) -> None:
    rows = rows_for("text-generation", 90)
    ours = read(tmp_path, "text-generation", rows, sequence_length=16)
    _, tokenizer = in_other_words(small_model("gpt2"), "text-generation")
    theirs = read(tmp_path, "text-generation", rows, tokenizer=tokenizer, sequence_length=16)
    assert Reference.of(small_model("gpt2"), ours).compare(small_model("gpt2"), theirs) == {}


def test_words_that_fall_into_other_tokens(tmp_path: Path, small_model: Callable[..., Any]) -> None:
    """Tags are compared word by word, also where one side has a word in pieces and the other as one unknown token."""
    content = json.loads(TOKENIZER.backend_tokenizer.to_str())
    lost = [token for token in content["model"]["vocab"] if token in ("sh", "ship", "is", "##ip", "wh")]
    content["model"]["vocab"] = {k if k not in lost else f"unused{v}": v for k, v in content["model"]["vocab"].items()}
    raw = Tokenizer.from_str(json.dumps(content))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    other = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, mask_token="[MASK]", **names)
    rows = rows_for("token-classification", 60)
    ours = read(tmp_path, "token-classification", rows, TAGS)
    theirs = read(tmp_path, "token-classification", rows, TAGS, tokenizer=other)
    pairs = list(zip(ours.rows("validation"), theirs.rows("validation"), strict=True))
    assert any(len(a.ids) != len(b.ids) for a, b in pairs)
    assert all(int(a.open.sum()) == int(b.open.sum()) for a, b in pairs if a.open is not None and b.open is not None)
    constant = Scripted(torch.tensor([[0.0, 3.0, 0.0, 0.0, 0.0]]).expand(512, 5).clone(), "token-classification")
    found = Reference.of(constant, ours).compare(constant, theirs)
    assert found == {"agreement": 1.0, "entity_agreement": 1.0, "kl": 0.0}
