"""Whole blocks go: the one that does nothing first, and nothing else changes; every family reloads."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from planish.compress import compress
from planish.compress.block_importance import Losses, skipped
from planish.compress.drop_layers import DropLayers, spread
from planish.compress.passes import build
from planish.errors import DataError, RecipeError
from planish.families import block_list, block_parts
from planish.sliced import from_pretrained

from .at_work import OTHERS, WINDOWS, Stop, answers, moved, nothing, pieces, work
from .conftest import SMALL, Maker

Small = Callable[..., Any]


def four(small_model: Small, kind: str, architecture: str | None = None) -> Any:
    """A small model of four blocks."""
    name = {"distilbert": "n_layers", "gpt2": "n_layer"}.get(kind, "num_hidden_layers")
    return small_model(kind, architecture, **{name: 4})


@torch.no_grad()
def silence(model: Any, block: int) -> None:
    """Let a block add nothing to the stream; norms that lie on the stream get a gain of 1."""
    part = block_parts(model)[block]
    for writer in (part.o, part.down):
        writer.weight.zero_()  # type: ignore[operator]
        if getattr(writer, "bias", None) is not None:
            writer.bias.zero_()  # type: ignore[operator,union-attr]
    if model.config.model_type not in DECODERS:
        for norm in part.norms:
            norm.weight.fill_(1.0)  # type: ignore[operator]
            norm.bias.zero_()  # type: ignore[operator,union-attr]


DECODERS = ("gpt2", "gpt_neox", "llama", "opt", "qwen2", "qwen3")


class Few:
    """Examples of one task: as many batches as are asked for, of the windows given."""

    def __init__(self, task: str, batches: list[dict[str, Tensor]], labelled: bool) -> None:
        self.task, self.labelled, self.digest = task, labelled, "sha256:0"
        self._batches = batches

    def batches(self, part: str, size: int, *, seed: int | None = None, epoch: int = 0) -> list[dict[str, Tensor]]:
        assert part == "train"
        return self._batches


def few(task: str, labels: Tensor | None = None) -> Few:
    batches = []
    for rows in torch.split(torch.arange(len(OTHERS)), 4):
        batch = {"input_ids": OTHERS[rows], "attention_mask": torch.ones_like(OTHERS[rows])}
        batches.append(batch if labels is None else {**batch, "labels": labels[rows]})
    return Few(task, batches, labels is not None)


@pytest.mark.parametrize("importance", ["influence", "loss"])
@pytest.mark.parametrize("kind", DECODERS)
def test_a_block_that_adds_nothing_goes_and_nobody_notices(
    kind: str, importance: Any, small_model: Small, tmp_path: Path
) -> None:
    model = four(small_model, kind)
    silence(model, 2)
    expected = answers(model)
    examples = few("text-generation")
    bench = work(DropLayers(count=3, importance=importance), model, tmp_path, examples=lambda: examples)
    assert torch.equal(answers(model), expected)
    assert len(block_list(model)) == 3
    assert bench.facts["kept"] == [0, 1, 3]
    assert bench.facts["dropped"] == [2]
    if importance == "influence":
        assert bench.facts["influence"][2] == pytest.approx(0.0, abs=1e-6)
    else:
        (step,) = bench.facts["steps"]
        assert step["losses"]["2"] == pytest.approx(0.0, abs=1e-6)
        assert min(value for index, value in step["losses"].items() if index != "2") > 1e-3


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "electra", "distilbert", "mpnet"])
def test_in_encoders_too(kind: str, small_model: Small, tmp_path: Path) -> None:
    """Behind a norm a second one of gain 1 is the identity, but for the first norm's own gains."""
    model = four(small_model, kind)
    silence(model, 1)
    for norm in block_parts(model)[0].norms[-1:]:
        norm.weight.data.fill_(1.0)  # type: ignore[operator,union-attr]
        norm.bias.data.zero_()  # type: ignore[operator,union-attr]
    expected = answers(model)
    for importance in ("influence", "loss"):
        again = four(small_model, kind)
        again.load_state_dict(model.state_dict())
        examples = few("feature-extraction")
        bench = work(
            DropLayers(count=3, importance=importance),  # type: ignore[arg-type]
            again,
            tmp_path / importance,
            examples=lambda found=examples: found,
        )
        assert bench.facts["kept"] == [0, 2, 3], importance
        torch.testing.assert_close(answers(again), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_every_family_reloads_with_the_blocks_that_stay(
    kind: str, small_model: Small, small_checkpoint: Maker, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    parent = small_model(kind)
    sizes = [sum(p.numel() for p in block.parameters()) for block in block_list(parent)]
    recipe = recipe_file({"pass": "drop-layers", "keep": [1]})
    receipt = compress(small_checkpoint(kind), recipe, tmp_path / "out").receipts[0]
    found = from_pretrained(tmp_path / "out")
    assert type(found).__name__ == type(parent).__name__
    assert found.config.num_hidden_layers == len(block_list(found)) == 1
    assert receipt["before"]["parameters"] - receipt["after"]["parameters"] == sizes[0]
    assert sum(p.numel() for p in found.parameters()) == receipt["after"]["parameters"]
    assert receipt["facts"] == {"kept": [1], "dropped": [0], "share_left": 0.5}
    with skipped([block_list(parent)[0]], returns_tuple=kind in ("mpnet",)), torch.no_grad():
        assert torch.equal(answers(found), answers(parent))
    assert moved(answers(found), answers(parent)) > 1e-3


@torch.no_grad()
def test_influence_is_one_minus_the_cosine(small_model: Small, tmp_path: Path) -> None:
    model = four(small_model, "llama")
    states = model(WINDOWS, output_hidden_states=True).hidden_states
    found = work(DropLayers(count=1), model, tmp_path).facts["influence"]
    for index in range(3):  # behind the last block comes the final norm
        before, after = states[index].double(), states[index + 1].double()
        cosine = (before * after).sum(-1) / before.norm(dim=-1) / after.norm(dim=-1)
        assert found[index] == pytest.approx(1 - float(cosine.mean()), rel=1e-4)


def loss(model: Any, examples: Few) -> float:
    """Mean over tokens that are predicted; batches weigh as many as they have."""
    with torch.no_grad():
        found = [(float(model(**batch, use_cache=False).loss), batch["labels"].numel()) for batch in examples._batches]
    return sum(value * count for value, count in found) / sum(count for _, count in found)


def test_greedy_takes_the_cheapest_each_time(small_model: Small, tmp_path: Path) -> None:
    examples = few("text-generation", OTHERS)
    model = four(small_model, "gpt2")
    bench = work(DropLayers(count=2, importance="loss"), model, tmp_path, examples=lambda: examples)
    first, second = bench.facts["steps"]

    def without(*dropped: int) -> float:
        other = four(small_model, "gpt2")
        work(DropLayers(keep=[i for i in range(4) if i not in dropped]), other, tmp_path / "x")
        return loss(other, examples)

    singles = {i: without(i) for i in range(4)}
    assert {int(i): value for i, value in first["losses"].items()} == pytest.approx(singles, rel=1e-5)
    assert first["dropped"] == min(singles, key=singles.__getitem__)
    pairs = {i: without(first["dropped"], i) for i in range(4) if i != first["dropped"]}
    assert {int(i): value for i, value in second["losses"].items()} == pytest.approx(pairs, rel=1e-5)
    assert loss(model, examples) == pytest.approx(min(pairs.values()), rel=1e-6)
    every = [without(*dropped) for dropped in itertools.combinations(range(4), 2)]
    assert min(every) <= min(pairs.values()) <= sorted(every)[len(every) // 2]


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        ("bert", "BertForSequenceClassification"),
        ("bert", "BertForQuestionAnswering"),
        ("distilbert", None),
        ("bert", None),
    ],
)
def test_without_labels_the_whole_model_is_the_judge(kind: str, architecture: str | None, small_model: Small) -> None:
    model = four(small_model, kind, architecture)
    losses = Losses(model, block_list(model), few("any")._batches, labelled=False)
    found = [losses.without(list(range(count)), nothing) for count in range(4)]
    assert found[0] == pytest.approx(0.0, abs=1e-6)
    assert found[3] > found[0]
    assert all(value >= -1e-6 for value in found)
    assert torch.equal(answers(model), answers(four(small_model, kind, architecture)))  # left as it was


@torch.no_grad()
def test_padding_does_not_count(small_model: Small) -> None:
    model = four(small_model, "bert")
    plain = {"input_ids": OTHERS[:2], "attention_mask": torch.ones_like(OTHERS[:2])}
    padded = {name: torch.nn.functional.pad(value, (0, 7)) for name, value in plain.items()}
    one, other = (Losses(model, block_list(model), [batch], labelled=False) for batch in (plain, padded))
    assert one.without([1], nothing) == pytest.approx(other.without([1], nothing), rel=1e-3)


def test_loss_beats_the_first_layers(small_model: Small, tmp_path: Path) -> None:
    """Two quiet blocks in front of two loud ones: by loss the quiet ones go, however early they are."""
    examples = few("text-generation")
    expected, distance = None, {}
    for importance in ("loss", "first"):
        model = four(small_model, "llama")
        with torch.no_grad():
            for part in block_parts(model)[:2]:
                part.o.weight *= 0.1  # type: ignore[operator,misc]
                part.down.weight *= 0.1  # type: ignore[operator,misc]
        expected = answers(model)
        step = DropLayers(count=2, importance=importance)  # type: ignore[arg-type]
        work(step, model, tmp_path / importance, examples=lambda: examples)
        distance[importance] = moved(answers(model), expected)
    assert distance["loss"] < 0.65 * distance["first"]


def test_counts_shares_and_layer_selection(small_model: Small, tmp_path: Path) -> None:
    def kept(**settings: Any) -> list[int]:
        folder = tmp_path / str(abs(hash(json.dumps(settings))))
        found: list[int] = work(DropLayers(**settings), four(small_model, "bert"), folder).facts["kept"]
        return found

    assert kept(keep=[3, 0]) == [0, 3]
    assert kept(count=2, importance="first") == [0, 1]
    assert kept(count=2, importance="uniform") == [0, 3]
    assert kept(count=3, importance="uniform") == [0, 2, 3]
    assert kept(share=0.75, importance="first") == [0, 1, 2]
    assert kept(share=0.74, importance="uniform") == [0, 3]
    assert len(kept(share=0.5)) == 2
    assert spread(6, 3) == [0, 2, 5]
    assert spread(5, 1) == [0]
    for layers, count in ((12, 6), (24, 7), (30, 29)):
        assert len(set(spread(layers, count))) == count


@pytest.mark.parametrize("importance", ["influence", "loss"])
def test_a_killed_run_continues(importance: Any, small_model: Small, tmp_path: Path) -> None:
    step = DropLayers(count=2, importance=importance)
    examples = few("text-generation", OTHERS)
    whole, again = four(small_model, "gpt2"), four(small_model, "gpt2")
    ticks: list[int] = []
    expected = work(step, whole, tmp_path / "whole", examples=lambda: examples, progress=lambda *_: ticks.append(1))
    at = len(ticks) - 2
    with pytest.raises(KeyboardInterrupt):
        work(step, four(small_model, "gpt2"), tmp_path / "cut", examples=lambda: examples, progress=Stop(at))
    assert pieces(tmp_path / "cut") == (
        [importance] if importance == "influence" and at > 1 else pieces(tmp_path / "cut")
    )
    fewer: list[int] = []
    found = work(step, again, tmp_path / "cut", examples=lambda: examples, progress=lambda *_: fewer.append(1))
    assert found.facts == expected.facts
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    if importance == "loss":
        assert len(fewer) < len(ticks) / 2


def test_influence_continues_in_the_middle(small_model: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from planish.compress import window_sums

    monkeypatch.setattr(window_sums, "TOKENS_PER_BATCH", 96)  # five batches
    monkeypatch.setattr(window_sums, "_SAVE_EVERY", 0.0)
    step = DropLayers(count=2)
    expected = work(step, four(small_model, "gpt2"), tmp_path / "whole").facts
    with pytest.raises(KeyboardInterrupt):
        work(step, four(small_model, "gpt2"), tmp_path / "cut", progress=Stop(3))
    assert pieces(tmp_path / "cut") == ["influence"]
    seen: list[int] = []
    found = work(step, four(small_model, "gpt2"), tmp_path / "cut", progress=lambda _, done, __: seen.append(done))
    assert found.facts == expected
    assert seen == [3, 4, 5]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"keep": [0, 4]}, "keep to name layers, got 4; write some of 0 to 3"),
        ({"keep": [-1]}, "got -1"),
        ({"keep": [1, 1]}, r"got \[1, 1\]"),
        ({"keep": []}, r"got \[\]"),
        ({"keep": [0, 1, 2, 3]}, "a layer to drop"),
        ({"count": 4}, "count below the model's 4 layers, got 4"),
        ({"share": 0.2}, r"got 0\.2; the nearest possible is 0\.25"),
        ({"share": 0.2, "importance": "uniform"}, r"the nearest possible is 0\.25"),
    ],
)
def test_what_cannot_be_kept(settings: dict[str, Any], match: str, small_model: Small, tmp_path: Path) -> None:
    model = four(small_model, "bert")
    with pytest.raises(RecipeError, match=match):
        work(DropLayers(**settings), model, tmp_path)
    assert len(block_list(model)) == 4


def test_settings_that_cannot_be(small_model: Small, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="one of keep, count and share in pass drop-layers, got none"):
        build("drop-layers", {}, "recipe")
    with pytest.raises(RecipeError, match="got keep, count"):
        build("drop-layers", {"keep": [0], "count": 1}, "recipe")
    with pytest.raises(RecipeError, match="'count'"):
        build("drop-layers", {"count": 0}, "recipe")
    with pytest.raises(RecipeError, match="without include"):
        build("drop-layers", {"count": 1, "include": ["*"]}, "recipe")
    empty = Few("text-classification", [], labelled=True)
    with pytest.raises(DataError, match=r"training examples .* give data\.train"):
        work(DropLayers(count=1, importance="loss"), small_model("bert"), tmp_path, examples=lambda: empty)


def test_real_examples_judge(small_checkpoint: Maker, recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    """From a recipe: a classifier by its labels, a decoder by its text."""
    rows = [
        {"text": f"whale {word} sea", "label": f"LABEL_{number % 2}"} for number, word in enumerate("abcdefghij" * 3)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    step = {"pass": "drop-layers", "count": 1, "importance": "loss", "tokens": 64}
    recipe = recipe_file(step, train="train.jsonl", name="labelled")
    facts = compress(small_checkpoint("distilbert"), recipe, tmp_path / "a").receipts[0]["facts"]
    assert 0.3 < facts["loss_before"] < 2
    assert len(facts["steps"]) == 1
    facts = compress(small_checkpoint("llama"), recipe_file(step, name="text"), tmp_path / "b").receipts[0]["facts"]
    assert 5 < facts["loss_before"] < 9  # ln 512 = 6.2
