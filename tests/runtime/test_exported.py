"""Bundles that `planish.export` made of real architectures, against transformers on the same checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast, pipeline

from planish.errors import RequestError
from planish.export import export
from planish.runtime import Model, load

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
ROLES = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
BIO = {0: "I-PER", 1: "O", 2: "B-PER", 3: "B-LOC"}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Model]]:
    """A random checkpoint of an architecture, and its exported bundle, loaded."""

    def build(kind: str, config: Any, tokenizer: Tokenizer, names: tuple[str, ...] = ()) -> tuple[Path, Model]:
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(kind)
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            model_max_length=config.max_position_embeddings,
            model_input_names=["input_ids", "attention_mask", *names],
            **ROLES,
        )
        model = getattr(transformers, kind)(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 2:  # the usual initialization gives the same label to every token
                    parameter.add_(torch.randn_like(parameter) * (0.5 if "embeddings" in name else 0.2))
        model.save_pretrained(folder / "checkpoint")
        fast.save_pretrained(folder / "checkpoint")
        return folder / "checkpoint", load(export(folder / "checkpoint", folder / "bundle").path)

    return build


def test_minilm_embeddings_are_those_of_torch(minilm: Path, tmp_path: Path, sentences: list[str]) -> None:
    model = load(export(minilm, tmp_path / "bundle").path)
    texts = [*sentences[:12], "", "x", "¿dónde está la ballena?", "word " * 400]
    got = model.embed(texts, batch_size=5)
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    reference = AutoModel.from_pretrained(minilm, attn_implementation="eager").eval()
    limit = model.manifest.max_length
    assert limit == 256
    for text, vector in zip(texts, got, strict=True):
        batch = tokenizer(text, return_tensors="pt", truncation=True, max_length=limit, padding=False)
        with torch.no_grad():
            tokens = reference(**batch).last_hidden_state[0]
        expected = torch.nn.functional.normalize(tokens.mean(0), dim=0).numpy()
        np.testing.assert_allclose(vector, expected, atol=2e-5)
    with pytest.raises(RequestError, match="got 402"):
        model.embed("word " * 400, truncate=False)


def test_bert_tags(make: Callable[..., Any], word_pieces: Tokenizer, sentences: list[str]) -> None:
    config = transformers.BertConfig(vocab_size=600, max_position_embeddings=128, id2label=BIO, **SIZE)
    checkpoint, model = make("BertForTokenClassification", config, word_pieces)
    oracle = pipeline("token-classification", model=str(checkpoint), aggregation_strategy="first", device="cpu")
    found = model.tag(sentences[:30], aggregation="first")
    for entities, expected in zip(found, oracle(sentences[:30]), strict=True):
        wanted = [(item["entity_group"], item["start"], item["end"]) for item in expected]
        assert [(entity.label, entity.start, entity.end) for entity in entities] == wanted
        assert [entity.score for entity in entities] == pytest.approx([float(e["score"]) for e in expected], abs=1e-4)
    assert sum(map(len, found)) > 30


@pytest.mark.parametrize("names", [("token_type_ids",), ()])
def test_bert_classifies_pairs(
    make: Callable[..., Any], word_pieces: Tokenizer, sentences: list[str], names: tuple[str, ...]
) -> None:
    """With token types and without, as the tokenizer's configuration says."""
    config = transformers.BertConfig(vocab_size=600, max_position_embeddings=128, id2label={0: "no", 1: "yes"}, **SIZE)
    checkpoint, model = make("BertForSequenceClassification", config, word_pieces, names)
    oracle = pipeline("text-classification", model=str(checkpoint), top_k=None, device="cpu")
    pairs = list(zip(sentences[:10], sentences[20:30], strict=True))
    expected = oracle([{"text": first, "text_pair": second} for first, second in pairs], truncation=True)
    for result, scores in zip(model.classify(pairs), expected, strict=True):
        assert list(result.labels) == [item["label"] for item in scores]
        assert list(result.scores) == pytest.approx([item["score"] for item in scores], abs=1e-4)


def test_roberta_fills(make: Callable[..., Any], byte_pieces: Tokenizer) -> None:
    config = transformers.RobertaConfig(
        vocab_size=600, max_position_embeddings=65, pad_token_id=0, bos_token_id=2, eos_token_id=3, **SIZE
    )
    checkpoint, model = make("RobertaForMaskedLM", config, byte_pieces)
    oracle = pipeline("fill-mask", model=str(checkpoint), device="cpu")
    texts = ["Call me[MASK].", "The[MASK] is white, and the sea is dark and cold", "[MASK]"]
    for filled, text in zip(model.fill(texts, top_k=4), texts, strict=True):
        expected = oracle(text, top_k=4)
        assert [item.token_id for item in filled] == [item["token"] for item in expected]
        assert [item.score for item in filled] == pytest.approx([item["score"] for item in expected], abs=1e-4)


def test_distilbert_answers(make: Callable[..., Any], word_pieces: Tokenizer, sentences: list[str]) -> None:
    size = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48}
    config = transformers.DistilBertConfig(vocab_size=600, max_position_embeddings=128, **size)
    checkpoint, model = make("DistilBertForQuestionAnswering", config, word_pieces)
    reference = transformers.AutoModelForQuestionAnswering.from_pretrained(checkpoint).eval()
    for context, answer in zip(sentences[:10], model.answer("where is it", sentences[:10]), strict=True):
        encoding = word_pieces.encode("where is it", context)
        with torch.no_grad():
            logits = reference(torch.tensor([encoding.ids]), attention_mask=torch.ones(1, len(encoding), dtype=int))
        outside = torch.tensor([sequence != 1 for sequence in encoding.sequence_ids])
        outside[0] = False
        start, end = (x[0].masked_fill(outside, -1e9).softmax(0) for x in (logits.start_logits, logits.end_logits))
        start[0] = end[0] = 0
        best = torch.tril(torch.triu(start[:, None] * end[None]), 14).max()
        assert answer.score == pytest.approx(float(best), rel=1e-3)
