"""The pass trim-vocabulary on checkpoints: same tokens, same outputs, fewer rows; ids follow everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from planish import recipes
from planish.compress import compress
from planish.compress.bench import Bench
from planish.compress.checkpoint import open_checkpoint
from planish.compress.examples import Part
from planish.compress.passes import build
from planish.compress.recipe import Data
from planish.compress.trim_files import named_ids, renamed
from planish.compress.trim_tokenizer import tokens_of
from planish.errors import CheckpointError, DataError, RecipeError
from tests.compress.trimming import context_of, trimmed
from tests.tiny import byte_level_tokenizer

Maker = Callable[..., Path]
TEXTS = ["The whale rose out of the sea.", "Call me Ishmael, said the captain.", "a white whale, and the boats"]
BYTE_LEVEL = {"roberta", "xlm-roberta", "gpt2", "llama", "qwen2", "qwen3", "opt", "gpt_neox"}


def outputs(folder: Path, texts: list[str], architecture: str) -> tuple[list[list[str]], list[np.ndarray]]:
    """Tokens and outputs of a checkpoint as transformers loads it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = getattr(transformers, architecture).from_pretrained(folder).eval()
    tokens, found = [], []
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt", truncation=True)
        tokens.append(tokenizer.convert_ids_to_tokens(inputs["input_ids"][0]))
        with torch.no_grad():
            found.append(model(**inputs)[0][0].numpy())
    return tokens, found


def with_byte_level(checkpoint: Path, kind: str) -> Path:
    """The checkpoint with a byte-level tokenizer (fewer tokens than the table has rows)."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (checkpoint / name).unlink()
    byte_level_tokenizer(kind).save_pretrained(checkpoint)
    return checkpoint


PARTS: tuple[Part, ...] = ("train", "validation")
FAMILIES = ("bert", "distilbert", "roberta", "xlm-roberta", "mpnet", "electra")
FAMILIES += ("gpt2", "llama", "qwen2", "qwen3", "opt", "gpt_neox")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_the_same_on_its_corpus(family: str, small_checkpoint: Maker, tmp_path: Path) -> None:
    rows = 1100 if family in BYTE_LEVEL else 512
    parent = small_checkpoint(family, vocab_size=rows, **({"pad_token_id": 1} if "roberta" in family else {}))
    if family in BYTE_LEVEL:
        with_byte_level(parent, "roberta" if "roberta" in family else "gpt")
    architecture = json.loads((parent / "config.json").read_text())["architectures"][0]
    bench, child = trimmed(parent, tmp_path, TEXTS)
    assert bench.vocabulary is not None
    kept = bench.vocabulary.tolist()
    assert len(kept) < rows * 0.75
    table = bench.model.get_input_embeddings().weight  # type: ignore[operator,union-attr]
    assert table.shape[0] == len(kept) == json.loads((child / "config.json").read_text())["vocab_size"]
    tokens, before = outputs(parent, TEXTS, architecture)
    same, after = outputs(child, TEXTS, architecture)
    assert same == tokens
    for old, new in zip(before, after, strict=True):
        wide = old.shape[-1] == rows  # logits: of the tokens kept
        np.testing.assert_allclose(new, old[..., kept] if wide else old, atol=2e-5)
    assert bench.facts["identical"] is True
    assert bench.facts["tokens"] == {"before": rows, "used": bench.facts["tokens"]["used"], "after": len(kept)}
    shapes = [tuple(tensor.shape) for tensor in load_file(child / "model.safetensors").values()]
    assert not any(rows in shape for shape in shapes)
    saved = sum(p.numel() for p in open_checkpoint(parent).load_model().parameters()) - bench.parameters()
    assert bench.facts["bytes_saved"] == 4 * saved > 0


def test_padding_must_not_move_where_positions_are_counted_from_it(small_checkpoint: Maker, tmp_path: Path) -> None:
    """The padding token of this RoBERTa stands behind words that the corpus does not use."""
    parent = small_checkpoint("roberta", pad_token_id=9)
    bench, child = trimmed(parent, tmp_path, TEXTS)
    assert bench.vocabulary is not None
    assert bench.vocabulary[:10].tolist() == list(range(10))
    assert bench.config["pad_token_id"] == 9
    assert outputs(child, TEXTS, "RobertaForMaskedLM")[0] == outputs(parent, TEXTS, "RobertaForMaskedLM")[0]


def test_ids_follow_into_every_file(small_checkpoint: Maker, tmp_path: Path) -> None:
    """Special tokens that stand at the end of the vocabulary, in all files that name them by id."""
    parent = small_checkpoint("gpt2", vocab_size=1100, bos_token_id=0, eos_token_id=0)
    with_byte_level(parent, "gpt")
    tokenizer = transformers.AutoTokenizer.from_pretrained(parent)
    tokenizer.add_special_tokens({"pad_token": "<pad>", "eos_token": "<end>"})
    tokenizer.save_pretrained(parent)
    vocabulary = tokenizer.get_vocab()
    pad, end = vocabulary["<pad>"], vocabulary["<end>"]
    rare = vocabulary.get("Ġthemselves", 1000)
    for name, changes in {
        "config.json": {"pad_token_id": pad, "eos_token_id": end},
        "generation_config.json": {
            "pad_token_id": pad,
            "eos_token_id": [end, 0],
            "suppress_tokens": [rare, end],
            "bad_words_ids": [[rare], [end]],
        },
        "added_tokens.json": {"<pad>": pad, "<end>": end},
        "vocab.json": {},
    }.items():
        path = parent / name
        path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | changes))
    (parent / "merges.txt").write_text("#version: 0.2\n")
    bench, child = trimmed(parent, tmp_path, TEXTS)
    read = {path.name: json.loads(path.read_text()) for path in child.glob("*.json")}
    assert bench.vocabulary is not None
    kept = bench.vocabulary.tolist()
    new_pad, new_end = kept.index(pad), kept.index(end)
    assert rare not in kept
    assert (read["config.json"]["pad_token_id"], read["config.json"]["eos_token_id"]) == (new_pad, new_end)
    assert read["config.json"]["bos_token_id"] == 0
    generation = read["generation_config.json"]
    assert (generation["pad_token_id"], generation["eos_token_id"]) == (new_pad, [new_end, 0])
    assert (generation["suppress_tokens"], generation["bad_words_ids"]) == ([new_end], [[new_end]])
    assert read["added_tokens.json"] == {"<pad>": new_pad, "<end>": new_end}
    assert not (child / "vocab.json").exists()
    assert not (child / "merges.txt").exists()
    loaded = transformers.AutoTokenizer.from_pretrained(child)
    assert (loaded.pad_token_id, loaded.eos_token_id, len(loaded)) == (new_pad, new_end, len(kept))
    model: Any = bench.model
    assert (model.config.pad_token_id, model.generation_config.eos_token_id) == (new_pad, [new_end, 0])


def test_wordpiece_vocab_txt_is_rewritten(small_checkpoint: Maker, tmp_path: Path) -> None:
    parent = small_checkpoint("bert")
    tokens = tokens_of(json.loads((parent / "tokenizer.json").read_text()))
    (parent / "vocab.txt").write_text("".join(f"{token}\n" for token in sorted(tokens, key=tokens.__getitem__)))
    _, child = trimmed(parent, tmp_path, TEXTS)
    lines = (child / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert {token: number for number, token in enumerate(lines)} == tokens_of(
        json.loads((child / "tokenizer.json").read_text())
    )


def test_a_missing_id_in_config_json_is_written_where_the_default_would_be_wrong(
    small_checkpoint: Maker, tmp_path: Path
) -> None:
    """Llama's defaults are bos 1 and eos 2, whether config.json says so or not; here 2 moves."""
    parent = with_byte_level(small_checkpoint("llama", vocab_size=1100), "gpt")
    config = json.loads((parent / "config.json").read_text())
    for key in ("bos_token_id", "eos_token_id"):
        config.pop(key, None)
    (parent / "config.json").write_text(json.dumps(config))
    _, child = trimmed(parent, tmp_path, TEXTS)
    before, after = (transformers.AutoConfig.from_pretrained(folder) for folder in (parent, child))
    old, new = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (parent, child))
    for key in ("bos_token_id", "eos_token_id"):
        number = getattr(before, key)
        assert new.convert_ids_to_tokens(getattr(after, key)) == old.convert_ids_to_tokens(number)


def test_twice_is_the_same_as_at_once(small_checkpoint: Maker, tmp_path: Path) -> None:
    """Trimming for three texts and then for one of them leaves the rows of trimming for that one."""
    parent = small_checkpoint("bert")
    source, data = open_checkpoint(parent), Data()
    bench = Bench.of(source.load_model())
    context = context_of(bench, source, tmp_path, data)
    for number, corpus in enumerate((TEXTS, TEXTS[:1])):
        (tmp_path / f"{number}.txt").write_text("\n".join(corpus), encoding="utf-8")
        build("trim-vocabulary", {"corpus": f"{number}.txt"}, "test").apply(bench, context)
    (tmp_path / "once").mkdir()
    once, _ = trimmed(parent, tmp_path / "once", TEXTS[:1])
    assert bench.vocabulary is not None
    assert once.vocabulary is not None
    assert bench.vocabulary.tolist() == once.vocabulary.tolist()
    assert bench.files == once.files
    for one, other in zip(bench.model.parameters(), once.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_keep_fill_and_multiple(small_checkpoint: Maker, tmp_path: Path) -> None:
    parent = small_checkpoint("bert")
    tokens = tokens_of(json.loads((parent / "tokenizer.json").read_text()))
    least, _ = trimmed(parent, tmp_path, TEXTS[:1])
    assert least.vocabulary is not None
    missing = next(token for token in reversed(tokens) if tokens[token] not in least.vocabulary)
    (tmp_path / "more").mkdir()
    more, child = trimmed(parent, tmp_path / "more", TEXTS[:1], keep=[missing], fill=210, multiple=16)
    assert more.vocabulary is not None
    assert len(more.vocabulary) == 224
    assert tokens[missing] in more.vocabulary
    assert missing in tokens_of(json.loads((child / "tokenizer.json").read_text()))


def test_question_and_context_are_both_the_corpus(small_checkpoint: Maker, tmp_path: Path) -> None:
    parent = small_checkpoint("bert", "BertForQuestionAnswering")
    rows = [
        {"question": f"where is the whale number {i}?", "context": f"in the sea, {i} miles away", "answers": ["sea"]}
        for i in range(20)
    ]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    bench, child = trimmed(parent, tmp_path, data=Data(train="qa.jsonl"))
    assert bench.facts["corpus_texts"] == 18
    assert bench.facts["outside"]["validation"]["texts"] == 2
    pairs = [(row["question"], row["context"]) for row in rows]
    old, new = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (parent, child))
    assert [new(*pair).tokens() for pair in pairs[:3]] == [old(*pair).tokens() for pair in pairs[:3]]


def test_windows_of_a_stream_stay_where_they_are(small_checkpoint: Maker, tmp_path: Path) -> None:
    """Windows are held out of one stream; a word that only a held one has must not shift those after it."""
    parent = with_byte_level(small_checkpoint("gpt2", vocab_size=1100), "gpt")
    text = recipes.text("calibrate")[:6000]
    (tmp_path / "train.txt").write_text(text, encoding="utf-8")
    data = Data(train="train.txt", sequence_length=32, max_length=32)
    source = open_checkpoint(parent)
    bench = Bench.of(source.load_model())
    context = context_of(bench, source, tmp_path, data)
    before = {part: context.examples().rows(part) for part in PARTS}
    build("trim-vocabulary", {}, "test").apply(bench, context)
    after = {part: context.examples().rows(part) for part in PARTS}
    assert bench.vocabulary is not None
    assert len(bench.vocabulary) < 1024
    assert list(bench.facts["outside"]) == ["judge"]
    for part in PARTS:
        assert [row.text for row in after[part]] == [row.text for row in before[part]]
        for old, new in zip(before[part], after[part], strict=True):
            assert torch.equal(bench.vocabulary[new.ids], old.ids)


def test_minilm_on_the_movie_corpus(
    minilm: Path, movie_sentences: dict[str, list[tuple[str, int]]], tmp_path: Path
) -> None:
    """Its table loses 49.7 % of its bytes; 44 % of its tokens are used by the corpus, 6 % are the alphabet."""
    check_minilm(minilm, movie_sentences, tmp_path, every=200)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_minilm_on_all_of_the_movie_corpus(
    minilm: Path, movie_sentences: dict[str, list[tuple[str, int]]], tmp_path: Path
) -> None:
    check_minilm(minilm, movie_sentences, tmp_path, every=1)


def check_minilm(minilm: Path, sentences: dict[str, list[tuple[str, int]]], folder: Path, every: int) -> None:
    texts = [text for part in sentences.values() for text, _ in part]
    bench, child = trimmed(minilm, folder, texts)
    facts = bench.facts
    assert facts["corpus_texts"] == len(texts) == 10_072
    assert facts["tokens"]["before"] - facts["tokens"]["after"] >= 0.49 * facts["tokens"]["before"]
    assert facts["share_saved"] >= 0.25
    on_disk = [(path / "model.safetensors").stat().st_size for path in (child, minilm)]
    assert on_disk[0] <= 0.75 * on_disk[1]
    old, new = (transformers.AutoTokenizer.from_pretrained(path) for path in (minilm, child))
    read = texts[:: max(1, every // 40)]
    ids = [tokenizer(read, truncation=False, padding=False)["input_ids"] for tokenizer in (old, new)]
    assert bench.vocabulary is not None
    rows = bench.vocabulary.tolist()
    assert ids[0] == [[rows[number] for number in row] for row in ids[1]]
    models = [transformers.AutoModel.from_pretrained(path).eval() for path in (minilm, child)]
    chosen = sorted(texts[::every], key=len)
    for start in range(0, len(chosen), 32):
        batch = chosen[start : start + 32]
        hidden, pooled = [], []
        for tokenizer, model in zip((old, new), models, strict=True):
            inputs = tokenizer(batch, padding=True, truncation=True, max_length=128, return_tensors="pt")
            with torch.no_grad():
                states = model(**inputs).last_hidden_state
            mask = inputs["attention_mask"][:, :, None]
            hidden.append(states * mask)
            pooled.append((states * mask).sum(1) / mask.sum(1))
        assert (hidden[0] - hidden[1]).abs().max() <= 1e-5
        assert (torch.cosine_similarity(*pooled) - 1).abs().max() <= 1e-5


def test_a_recipe_trims_and_then_quantizes(
    small_checkpoint: Maker, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    parent = small_checkpoint("bert", "BertForSequenceClassification")
    rows = [{"text": f"{TEXTS[i % 3]} {i}", "label": i % 2} for i in range(24)]
    parts = {"train": rows, "validation": [{**row, "text": "said a white whale: " + row["text"]} for row in rows[:8]]}
    for part, found in parts.items():
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    files = {part: f"{part}.jsonl" for part in parts}
    recipe = recipe_file({"pass": "trim-vocabulary"}, {"pass": "int8-embedding"}, source="train", **files)
    result = compress(parent, recipe, tmp_path / "out")
    facts = result.receipts[0]["facts"]
    assert facts["identical"] is True
    assert facts["outside"]["validation"]["words_changed"] == 0
    table = load_file(tmp_path / "out" / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    assert (table.shape[0], table.dtype) == (facts["tokens"]["after"], torch.int8)
    assert result.receipts[0]["before"]["quality"] == result.receipts[0]["after"]["quality"]


def test_quantized_tables_are_refused(
    small_checkpoint: Maker, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = recipe_file({"pass": "int8-embedding"}, {"pass": "trim-vocabulary", "corpus": "builtin"})
    with pytest.raises(RecipeError, match="change their order"):
        compress(small_checkpoint("bert"), recipe, tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({}, RecipeError, "data.train"),
        ({"corpus": "empty.txt"}, DataError, "empty.txt"),
        ({"corpus": "latin.txt"}, DataError, "UTF-8"),
        ({"corpus": "none.txt"}, DataError, "nothing there"),
        ({"corpus": "builtin", "keep": ["wha"]}, RecipeError, "did you mean"),
        ({"corpus": "builtin", "keep": ["鯨鯨"]}, RecipeError, "tokenizer.json spells"),
        ({"corpus": "builtin", "include": ["*"]}, RecipeError, "include or exclude"),
        ({"corpus": "builtin", "fill": 0}, RecipeError, "fill"),
        ({"corpus": "builtin", "multiple": 0}, RecipeError, "multiple"),
    ],
)
def test_bad_settings_and_corpora(
    settings: dict[str, Any], error: type[Exception], says: str, small_checkpoint: Maker, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("Wal und Bär".encode("latin-1"))
    with pytest.raises(error, match=says) as caught:
        trimmed(small_checkpoint("bert"), tmp_path, **settings)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_is_not_fast_is_refused(small_checkpoint: Maker, tmp_path: Path) -> None:
    source = open_checkpoint(small_checkpoint("bert"))
    bench = Bench.of(source.load_model())
    context = replace(context_of(bench, source, tmp_path, Data()), tokenizer=object)
    with pytest.raises(CheckpointError, match="fast tokenizer"):
        build("trim-vocabulary", {"corpus": "builtin"}, "test").apply(bench, context)


def test_more_tokens_than_rows_is_refused(small_checkpoint: Maker, tmp_path: Path) -> None:
    parent = small_checkpoint("bert")
    tokenizer = transformers.AutoTokenizer.from_pretrained(parent)
    tokenizer.add_tokens(["planishing"])
    tokenizer.save_pretrained(parent)
    with pytest.raises(CheckpointError, match="a row for every token"):
        trimmed(parent, tmp_path, TEXTS)


def test_a_tokenizer_that_reads_differently_after_loading_is_caught(
    small_checkpoint: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof's own test: the rewritten file loses its lower-casing, and nothing else."""
    from planish.compress import trim_vocabulary

    def careless(parent: Any, *rest: Any) -> Any:
        made = honest(parent, *rest)
        return replace(made, json={**made.json, "normalizer": None})

    honest = trim_vocabulary.trim
    monkeypatch.setattr(trim_vocabulary, "trim", careless)
    with pytest.raises(CheckpointError, match="same tokens"):
        trimmed(small_checkpoint("bert"), tmp_path, TEXTS)


def test_ids_in_configs() -> None:
    config = {
        "pad_token_id": 7,
        "eos_token_id": [5, 900],
        "bos_token_id": None,
        "decoder_start_token_id": 3,
        "use_cache": True,
        "num_labels": 5,
        "suppress_tokens": [5, 6],
        "bad_words_ids": [[5, 6], [7]],
        "forced_decoder_ids": [[1, 5], [2, None]],
        "sequence_bias": [[[5], 1.0], [[6], 2.0]],
    }
    assert named_ids(config) == {7, 5, 900, 3}
    new = {3: 0, 5: 1, 7: 2}
    assert renamed(config, lambda number: new.get(number, number if number > 800 else None)) == {
        "pad_token_id": 2,
        "eos_token_id": [1, 900],
        "decoder_start_token_id": 0,
        "suppress_tokens": [1],
        "bad_words_ids": [[2]],
        "forced_decoder_ids": [[1, 1], [2, None]],
        "sequence_bias": [[[1], 1.0]],
    }
