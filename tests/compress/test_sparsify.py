"""The pass that sets weights to zero: in every family as asked, better with each importance, resumable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from planish import recipes
from planish.compress import compress, sparsify
from planish.compress.bench import Bench
from planish.compress.passes import build
from planish.compress.sparse_importance import Pattern
from planish.compress.sparsify import Sparsify
from planish.compress.walk import walk
from planish.errors import RecipeError
from planish.sliced import from_pretrained

from .at_work import OTHERS, WINDOWS, Stop, answers, moved, pieces, work
from .conftest import SMALL, Maker

Small = Callable[..., Any]


def body(model: Any) -> dict[str, torch.Tensor]:
    return {layer.name: layer.weight for layer in walk(model) if layer.role == "body"}


@pytest.mark.parametrize("kind", sorted(SMALL))
@pytest.mark.parametrize(
    "step",
    [Sparsify(sparsity=0.6), Sparsify(pattern="2:4"), Sparsify(pattern="1:4", method="wanda")],
    ids=["share", "2:4", "1:4"],
)
def test_every_family_gets_the_zeros_asked_for(kind: str, step: Sparsify, small_model: Small, tmp_path: Path) -> None:
    model, parent = small_model(kind), small_model(kind)
    bench = work(step, model, tmp_path)
    found, before = body(model), body(parent)
    for name, weight in found.items():
        zeros = weight == 0
        if isinstance(step.kind, Pattern):
            groups = zeros.reshape(len(zeros), -1, step.kind.group).sum(-1)
            assert bool((groups == step.kind.group - step.kind.kept).all()), name
        else:
            assert int(zeros.sum()) == round(0.6 * zeros.numel()), name
        same = torch.equal(weight[~zeros], before[name][~zeros])
        assert same == (step.method != "sparsegpt"), name
    touched = {f"{name}.weight" for name in found}
    for name, value in parent.state_dict().items():
        assert name in touched or torch.equal(value, model.state_dict()[name]), name
    facts = bench.facts
    assert facts["zeros"] == sum(int((weight == 0).sum()) for weight in found.values())
    assert facts["weights"] == sum(weight.numel() for weight in found.values())
    assert set(facts["layers"]) == set(found)
    assert all(0 < report["output_error"] < report["weight_error"] * 1.2 for report in facts["layers"].values())
    assert "no speed by themselves in ONNX Runtime" in facts["note"]
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(answers(from_pretrained(tmp_path / "saved")), answers(model))


@pytest.mark.slow
def test_each_importance_moves_a_real_model_less(minilm: Path, tmp_path: Path) -> None:
    """MiniLM's sentence vectors on text it was not calibrated on."""
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    calibrate, judge = text_windows(tokenizer, "calibrate", 40), text_windows(tokenizer, "judge", 6)
    expected = vectors(AutoModel.from_pretrained(minilm).eval(), judge)
    found = {}
    for name, step in {
        "magnitude": Sparsify(pattern="2:4", method="magnitude"),
        "wanda": Sparsify(pattern="2:4", method="wanda"),
        "paper": Sparsify(pattern="2:4", refine=0),
        "sparsegpt": Sparsify(pattern="2:4"),
    }.items():
        model = AutoModel.from_pretrained(minilm).eval()
        work(step, model, tmp_path / name, windows=calibrate)
        found[name] = float((1 - (vectors(model, judge) * expected).sum(-1)).mean())
    assert found["wanda"] < 0.9 * found["magnitude"]
    assert found["paper"] < 0.9 * found["wanda"]
    assert found["sparsegpt"] < 0.97 * found["paper"], found


def text_windows(tokenizer: Any, name: str, count: int) -> torch.Tensor:
    ids = tokenizer(recipes.text(name)[:60_000], add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids[: count * 96]).view(count, 96)


@torch.no_grad()
def vectors(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(model(ids)[0].mean(1), dim=-1)


def test_magnitude_reads_no_text(small_model: Small, tmp_path: Path) -> None:
    def no_text() -> tuple[torch.Tensor, ...]:
        raise AssertionError("no text is needed")

    model = small_model("bert")
    bench = work(Sparsify(sparsity=0.5, method="magnitude"), model, tmp_path, windows=no_text)
    for weight in body(model).values():
        kept = weight[weight != 0].abs()
        assert kept.numel() * 2 == weight.numel()
    assert "mean_output_error" not in bench.facts
    assert 0 < bench.facts["mean_weight_error"] < 0.2


def test_later_blocks_are_fitted_to_the_sparse_ones_before(small_model: Small, tmp_path: Path) -> None:
    """The block alone, calibrated on the parent, comes out different from the block after a sparse one."""
    whole, alone = small_model("llama"), small_model("llama")
    work(Sparsify(sparsity=0.5), whole, tmp_path / "whole")
    work(Sparsify(sparsity=0.5, include=["model.layers.1.*"]), alone, tmp_path / "alone")
    last = "model.layers.1.mlp.down_proj"
    assert not torch.equal(body(whole)[last], body(alone)[last])
    assert not bool((body(alone)["model.layers.0.mlp.down_proj"] == 0).any())


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts calls of SparseGPT: how much work a run really did."""
    calls: list[int] = []
    real = sparsify.sparse_gpt

    def counting(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(sparsify, "sparse_gpt", counting)
    return calls


def test_a_killed_run_continues_at_the_last_block(small_model: Small, tmp_path: Path, counted: list[int]) -> None:
    step = Sparsify(sparsity=0.5)
    whole, again = small_model("llama", num_hidden_layers=3), small_model("llama", num_hidden_layers=3)
    expected = work(step, whole, tmp_path / "whole").facts
    ticks: list[int] = []
    work(step, small_model("llama", num_hidden_layers=3), tmp_path / "count", progress=lambda *_: ticks.append(1))
    with pytest.raises(KeyboardInterrupt):
        work(step, small_model("llama", num_hidden_layers=3), tmp_path / "cut", progress=Stop(len(ticks) - 3))
    assert pieces(tmp_path / "cut") == ["block-0000", "block-0001"]
    counted.clear()
    found = work(step, again, tmp_path / "cut").facts
    assert len(counted) == 7
    assert found == expected
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    counted.clear()
    work(step, small_model("llama", num_hidden_layers=3), tmp_path / "cut", windows=OTHERS)
    assert len(counted) == 21  # other text: nothing saved is used


def test_the_receipt_says_it(recipe_file: Callable[..., Path], small_checkpoint: Maker, tmp_path: Path) -> None:
    recipe = recipe_file({"pass": "sparsify", "pattern": "2:4", "refine": 4})
    result = compress(small_checkpoint("gpt2"), recipe, tmp_path / "out")
    receipt = result.receipts[0]
    assert receipt["settings"]["pattern"] == "2:4"
    assert receipt["facts"]["asked"] == "2:4"
    assert receipt["facts"]["sparsity"] == 0.5
    assert receipt["before"]["parameters"] == receipt["after"]["parameters"]
    assert receipt["before"]["bytes"] == receipt["after"]["bytes"]  # zeros are stored as any number
    for weight in body(from_pretrained(tmp_path / "out")).values():
        assert bool(((weight == 0).reshape(len(weight), -1, 4).sum(-1) == 2).all())


def refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        build("sparsify", settings, "recipe")


def test_settings_that_cannot_be() -> None:
    refused({}, "one of sparsity and pattern in pass sparsify, got none")
    refused({"sparsity": 0.5, "pattern": "2:4"}, "got both")
    refused({"pattern": "4:2"}, "0 < n < m, got '4:2'")
    refused({"sparsity": 1.0}, "'sparsity'")
    refused({"sparsity": 0}, "'sparsity'")
    refused({"sparsity": 0.5, "method": "wanda2"}, "'method'")
    refused({"sparsty": 0.5}, "did you mean 'sparsity'")
    assert isinstance(build("sparsify", {"pattern": "4:8"}, "recipe"), Sparsify)


def test_layers_it_cannot_take(small_model: Small, tmp_path: Path) -> None:
    def run(match: str, kind: str, **settings: Any) -> None:
        model = small_model(kind)
        with pytest.raises(RecipeError, match=match):
            work(Sparsify(**settings), model, tmp_path, windows=settings.pop("windows", WINDOWS))
        before = small_model(kind).state_dict()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    run("groups of 5, got 64 inputs of model.layers.0.self_attn.q_proj", "llama", pattern="2:5")
    run("weights of their own, got lm_head, tied", "llama", sparsity=0.5, include=["lm_head"], method="magnitude")
    run("layers in blocks, got classifier; use method: magnitude", "distilbert", sparsity=0.5, include=["classifier"])
    bench = Bench.of(small_model("llama"))
    assert bench.tied
    two = (WINDOWS, OTHERS[:, :16])
    with pytest.raises(RecipeError, match=r"one data\.sequence_length .* got 2 of them"):
        work(Sparsify(sparsity=0.5), small_model("bert"), tmp_path, windows=lambda: two)


def test_zeros_move_the_model_and_more_zeros_more(small_model: Small, tmp_path: Path) -> None:
    expected = answers(small_model("opt"))
    found = []
    for share in (0.2, 0.5, 0.8):
        model = small_model("opt")
        work(Sparsify(sparsity=share), model, tmp_path / str(share))
        found.append(moved(answers(model), expected))
    assert found == sorted(found)
    assert 0 < found[0] < 0.5 * found[2]
