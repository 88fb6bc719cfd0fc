"""SmolLM2's byte-level BPE (48,900 merges) trimmed on chapters of Moby Dick."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from planish import recipes
from planish.compress.bench import Bench
from planish.compress.checkpoint import open_checkpoint
from planish.compress.passes import build
from planish.compress.recipe import Data
from planish.compress.trim_corpus import encode, outside, reader, used_ids
from planish.compress.trim_tokenizer import Trimmed, tokens_of, trim
from planish.compress.write import write_checkpoint
from tests.compress.trimming import context_of

STRANGE = [
    "👩‍🚀🚀 ok 🐳",
    "鯨は海に住む。白鯨記",
    "\x00\x01\x1b[0m\x7f\u200b\ufeff",
    "Ünïcödé — “ship”",
    "العربية עברית",
]
Tokenizers = tuple[Any, Any, dict[str, Any], Trimmed]


@pytest.fixture(scope="module")
def corpus() -> str:
    return recipes.text("calibrate")[:150_000]


@pytest.fixture(scope="module")
def tokenizers(smollm2_gguf: Path, corpus: str) -> Tokenizers:
    """Before and after, as libraries and as files."""
    loaded = transformers.AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    parent = json.loads(loaded.backend_tokenizer.to_str())
    used = used_ids(parent, [corpus], encode(reader(parent), [corpus], lambda done, total: None))
    trimmed = trim(parent, used)
    return reader(parent), Tokenizer.from_str(json.dumps(trimmed.json)), parent, trimmed


def test_its_corpus_reads_the_same_with_a_sixth_of_the_tokens(tokenizers: Tokenizers, corpus: str) -> None:
    before, after, parent, trimmed = tokenizers
    assert len(tokens_of(parent)) == 49_152
    assert len(trimmed.keep) < 49_152 / 6
    one, other = before.encode(corpus), after.encode(corpus)
    assert other.tokens == one.tokens
    assert [trimmed.keep[number] for number in other.ids] == one.ids
    assert after.decode(other.ids, skip_special_tokens=False) == corpus


@pytest.mark.parametrize("text", STRANGE)
def test_bytes_are_intact(tokenizers: Tokenizers, text: str) -> None:
    _, after, _, _ = tokenizers
    assert after.decode(after.encode(text).ids, skip_special_tokens=False) == text


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_as_well_as_before(tokenizers: Tokenizers, text: str) -> None:
    """The parent itself lacks 13 of the 256 bytes, most of which UTF-8 never uses; what it loses may be lost."""
    before, after, _, _ = tokenizers
    assert after.decode(after.encode(text).ids) == before.decode(before.encode(text).ids)


def test_text_outside_costs_more_tokens_and_says_so(tokenizers: Tokenizers, judge_text: str) -> None:
    _, _, parent, trimmed = tokenizers
    held_out = [part for part in judge_text.split("\n\n") if part.strip()]
    facts = outside(parent, trimmed.json, trimmed.keep, held_out)
    before, after = facts["tokens_per_word"]
    assert 1.0 < before < after < 1.25 * before
    assert 0 < facts["words_changed"] < 0.2
    assert facts["unknown_share"] == [0.0, 0.0]


def test_fill_makes_text_outside_read_more_alike(tokenizers: Tokenizers, judge_text: str) -> None:
    _, _, parent, trimmed = tokenizers
    held_out = [part for part in judge_text[:60_000].split("\n\n") if part.strip()]
    filled = trim(parent, trimmed.keep, fill=16_000)
    assert len(filled.keep) == 16_000
    shares = [outside(parent, one.json, one.keep, held_out)["words_changed"] for one in (trimmed, filled)]
    assert shares[1] < 0.6 * shares[0]


@pytest.mark.slow
def test_the_whole_model_from_gguf(smollm2_gguf: Path, corpus: str, tmp_path: Path) -> None:
    """Same logits over the tokens kept, table and tied head cut; loads in transformers and writes as before."""
    (tmp_path / "corpus.txt").write_text(corpus + "\nThe capital of France is Paris.\n", encoding="utf-8")
    source = open_checkpoint(smollm2_gguf)
    bench = Bench.of(source.load_model())
    model: Any = bench.model
    context = context_of(bench, source, tmp_path, Data())
    old = context.tokenizer()
    names = [old.convert_ids_to_tokens(number) for number in special_ids(model)]
    ids = old(corpus[:1500], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        before = model(input_ids=ids).logits[0]
        build("trim-vocabulary", {"corpus": "corpus.txt"}, "test").apply(bench, context)
    rows = bench.vocabulary
    assert rows is not None
    assert bench.facts["bytes_saved"] == (49_152 - len(rows)) * 576 * 4
    (tmp_path / "out").mkdir()
    write_checkpoint(bench, source, tmp_path / "out")
    new = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    child = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert child.get_input_embeddings().weight.data_ptr() == child.get_output_embeddings().weight.data_ptr()
    new_ids = new(corpus[:1500], return_tensors="pt")["input_ids"]
    assert torch.equal(rows[new_ids], ids)
    with torch.no_grad():
        after = child(input_ids=new_ids).logits[0]
    torch.testing.assert_close(after, before[:, rows], atol=1e-3, rtol=1e-4)
    written = child.generate(**new("The capital of France is", return_tensors="pt"), max_new_tokens=3, do_sample=False)
    assert "Paris" in new.decode(written[0])
    assert [new.convert_ids_to_tokens(number) for number in special_ids(child)] == names


def special_ids(model: Any) -> list[int]:
    return [getattr(model.config, f"{name}_token_id") for name in ("bos", "eos", "pad")]
