"""Importances against gradients of one sample at a time, and a killed run against a whole one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from planish.compress.fisher import (
    Importance,
    input_norms,
    mask_gradients,
    masked,
    measure_importance,
)
from planish.compress.resume import WorkFolder
from planish.compress.sample_loss import sample_losses
from planish.errors import CheckpointError, DataError
from planish.families import block_list, block_parts

from .conftest import SMALL

ENCODERS = ["bert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta"]


def batch_of(model: Any, task: str, *, seed: int = 0, lengths: tuple[int, ...] = (12, 9, 5)) -> dict[str, torch.Tensor]:
    """Random texts, padded, with labels for ``task``."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    mask = torch.stack([(torch.arange(longest) < length).long() for length in lengths])
    ids = torch.randint(5, 500, (len(lengths), longest), generator=generator) * mask
    batch = {"input_ids": ids, "attention_mask": mask}
    if task == "text-classification":
        batch["labels"] = torch.randint(0, model.config.num_labels, (len(lengths),), generator=generator)
    elif task == "question-answering":
        batch |= {"start_positions": torch.tensor([1, 2, 3]), "end_positions": torch.tensor([4, 3, 4])}
    elif task == "text-generation":
        batch["labels"] = torch.where(mask.bool(), ids, -100)
    elif task != "feature-extraction":
        top = model.config.num_labels if task == "token-classification" else 500
        labels = torch.randint(0, top, ids.shape, generator=generator)
        seen = mask.bool() & (torch.rand(ids.shape, generator=generator) < 0.5)
        batch["labels"] = torch.where(seen, labels, -100)
    return batch


def one_by_one(
    model: Any, batch: dict[str, torch.Tensor], scale: Callable[[torch.Tensor], float]
) -> list[torch.Tensor]:
    """Gradients of ``model(**sample).loss`` by shared masks, for each sample alone: ``[b, n]`` a mask."""
    parts = block_parts(model)
    rows: list[list[torch.Tensor]] = []
    for index in range(len(batch["input_ids"])):
        length = int(batch["attention_mask"][index].sum())
        sample = {k: (v[index : index + 1, :length] if v.ndim > 1 else v[index : index + 1]) for k, v in batch.items()}
        heads = [torch.ones(1, part.kv_heads, requires_grad=True) for part in parts]
        neurons = [torch.ones(1, part.ffn, requires_grad=True) for part in parts]
        with torch.enable_grad(), masked(parts, heads, neurons):
            loss = model(**sample).loss * scale(sample.get("labels", torch.zeros(1)))
        rows.append([one[0] for one in torch.autograd.grad(loss, [*heads, *neurons])])
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def tokens(labels: torch.Tensor) -> float:
    """How many tokens transformers' mean is over."""
    return float((labels != -100).sum())


CASES: list[tuple[str, str, str, Callable[[torch.Tensor], float]]] = [
    ("bert", "BertForSequenceClassification", "text-classification", lambda _: 1.0),
    ("distilbert", "DistilBertForTokenClassification", "token-classification", tokens),
    ("electra", "ElectraForQuestionAnswering", "question-answering", lambda _: 2.0),
    ("roberta", "RobertaForMaskedLM", "fill-mask", tokens),
    ("mpnet", "MPNetForSequenceClassification", "text-classification", lambda _: 1.0),
    *[
        (kind, SMALL[kind][0], "text-generation", lambda labels: float((labels[:, 1:] != -100).sum()))
        for kind in ("gpt2", "gpt_neox", "llama", "opt", "qwen2", "qwen3")
    ],
]


@pytest.mark.parametrize(("kind", "architecture", "task", "scale"), CASES, ids=[case[0] for case in CASES])
def test_one_backward_pass_is_as_many_as_samples(
    kind: str, architecture: str, task: str, scale: Callable[[torch.Tensor], float], small_model: Callable[..., Any]
) -> None:
    model = small_model(kind, architecture, **({"num_labels": 3} if "Classification" in architecture else {}))
    model.requires_grad_(False)
    batch = batch_of(model, task)
    found = mask_gradients(model, block_parts(model), batch, task=task, generator=torch.Generator(), labelled=True)
    expected = one_by_one(model, batch, scale)
    for one, other in zip([*found[0], *found[1]], expected, strict=True):
        assert one.shape == other.shape
        assert float(other.abs().max()) > 0
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-5 * float(other.abs().max()) + 1e-6)


def measured(
    model: Any, batches: list[dict[str, torch.Tensor]], task: str, folder: Path, **settings: Any
) -> Importance:
    options: dict[str, Any] = {"method": "fisher", "labelled": True, "seed": 0, "tick": lambda done, total: None}
    work = WorkFolder(folder / "out", {})
    try:
        return measure_importance(
            model, batches, task=task, pieces=work.pieces(0), tag="data", **{**options, **settings}
        )
    finally:
        work.close(keep=True)


def test_fisher_is_the_mean_of_squares(small_model: Callable[..., Any], tmp_path: Path) -> None:
    model = small_model("bert", "BertForSequenceClassification").requires_grad_(False)
    batches = [batch_of(model, "text-classification", seed=seed) for seed in range(3)]
    found = measured(model, batches, "text-classification", tmp_path)
    taylor = measured(model, batches, "text-classification", tmp_path, method="taylor")
    gradients = [
        torch.cat(column) for column in zip(*(one_by_one(model, b, lambda _: 1.0) for b in batches), strict=True)
    ]
    assert found.samples == 9
    for block in range(2):
        heads, neurons = gradients[block].double(), gradients[2 + block].double()
        torch.testing.assert_close(found.heads[block], heads.t() @ heads / 9, rtol=1e-3, atol=1e-9)
        torch.testing.assert_close(found.neurons[block], neurons.square().mean(0), rtol=1e-3, atol=1e-9)
        torch.testing.assert_close(taylor.neurons[block] / 2, neurons.abs().mean(0), rtol=1e-3, atol=1e-7)
        torch.testing.assert_close(taylor.heads[block] / 2, heads.abs().mean(0).diag(), rtol=1e-3, atol=1e-7)


def test_own_labels_give_the_expected_fisher(small_model: Callable[..., Any], tmp_path: Path) -> None:
    """Drawn often enough, the model's own labels give ``sum_c p_c g_c g_c^T``, computed class by class."""
    model = small_model("bert", "BertForSequenceClassification", num_labels=3).requires_grad_(False)
    batch = batch_of(model, "text-classification")
    with torch.no_grad():
        chance = model(**{k: v for k, v in batch.items() if k != "labels"}).logits.softmax(-1)
    expected = torch.zeros(96, dtype=torch.float64)
    for label in range(3):
        with_label = {**batch, "labels": torch.full((3,), label)}
        gradient = one_by_one(model, with_label, lambda _: 1.0)[2].double()
        expected += (chance[:, label : label + 1].double() * gradient.square()).mean(0)
    found = measured(model, [batch] * 400, "text-classification", tmp_path, labelled=False)
    assert float((found.neurons[0] - expected).norm() / expected.norm()) < 0.1
    other = measured(model, [batch] * 2, "text-classification", tmp_path, labelled=False, seed=1)
    again = measured(model, [batch] * 2, "text-classification", tmp_path, labelled=False, seed=1)
    assert torch.equal(other.neurons[0], again.neurons[0])


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_every_family_without_labels(kind: str, small_model: Callable[..., Any], tmp_path: Path) -> None:
    """A head or neuron that writes nothing weighs nothing; all others weigh something."""
    model = small_model(kind).requires_grad_(False)
    names = {"distilbert": "text-classification", "electra": "token-classification", "roberta": "fill-mask"}
    task = names.get(kind, "feature-extraction" if kind in ENCODERS else "text-generation")
    part = block_parts(model)[1]
    span = part.heads // part.kv_heads * part.head_dim
    for layer, cut in ((part.o, slice(span, 2 * span)), (part.down, slice(3, 5))):
        weight = layer.weight.data.t() if hasattr(layer, "nf") else layer.weight.data
        weight[:, cut] = 0
    batch = batch_of(model, task)
    for method in ("fisher", "taylor", "activations"):
        found = measured(model, [batch], task, tmp_path, method=method, labelled=False)
        heads, neurons = found.heads[1].diagonal(), found.neurons[1]
        assert float(heads[1]) == float(neurons[3]) == float(neurons[4]) == 0
        assert int((heads > 0).sum()) == part.kv_heads - 1
        assert int((neurons > 0).sum()) >= (part.ffn - 2) * 0.4  # ReLU leaves some silent
        assert all(bool(torch.isfinite(one).all()) for one in (*found.heads, *found.neurons))


def test_activations_are_shares_of_the_stream(small_model: Callable[..., Any], tmp_path: Path) -> None:
    model = small_model("llama").requires_grad_(False)
    batch = batch_of(model, "text-generation")
    part, block = block_parts(model)[0], block_list(model)[0]
    seen: dict[str, torch.Tensor] = {}
    part.down.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    block.register_forward_hook(lambda _, args, out: seen.update(h=out[0] if isinstance(out, tuple) else out))
    found = measured(model, [batch], "text-generation", tmp_path, method="activations")
    with torch.no_grad():
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    rows = batch["attention_mask"].bool()
    expected = seen["x"][rows].double().square().sum(0) * input_norms(part.down)
    expected /= seen["h"][rows].double().square().sum()
    torch.testing.assert_close(found.neurons[0], expected, rtol=1e-4, atol=1e-12)


def test_a_run_that_was_killed_ends_with_the_same_sums(
    small_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planish.compress.fisher._SAVE_EVERY", 0.0)
    model = small_model("bert", "BertForSequenceClassification").requires_grad_(False)
    batches = [batch_of(model, "text-classification", seed=seed) for seed in range(5)]
    asked: list[int] = []

    def tick(done: int, total: int) -> None:
        asked.append(done)
        if len(asked) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(model, batches, "text-classification", tmp_path, tick=tick, labelled=False)
    resumed = measured(model, batches, "text-classification", tmp_path, tick=tick, labelled=False)
    assert asked == [0, 1, 2, 3, 3, 4, 5]
    (tmp_path / "whole").mkdir()
    whole = measured(model, batches, "text-classification", tmp_path / "whole", labelled=False)
    for one, other in zip((*resumed.heads, *resumed.neurons), (*whole.heads, *whole.neurons), strict=True):
        assert torch.equal(one, other)
    assert resumed.samples == whole.samples == 15


def test_logits_over_a_vocabulary_are_taken_in_parts(
    small_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model("gpt2").requires_grad_(False)
    batch = batch_of(model, "text-generation")
    whole = measured(model, [batch], "text-generation", tmp_path)
    monkeypatch.setattr("planish.compress.fisher._MOST_LOGITS", 12 * 512)
    (tmp_path / "parts").mkdir()
    parts = measured(model, [batch], "text-generation", tmp_path / "parts")
    for one, other in zip(whole.neurons, parts.neurons, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("labelled", [True, False])
def test_several_labels_and_numbers(labelled: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3)
    outputs = type("Outputs", (), {"logits": logits})()
    labels = torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1]])
    loss = sample_losses("text-classification", outputs, {"labels": labels}, generator, labelled=labelled, several=True)
    assert loss.shape == (4,)
    if labelled:
        expected = -(labels * logits.sigmoid().log() + (1 - labels) * (1 - logits.sigmoid()).log()).sum(-1)
        torch.testing.assert_close(loss, expected)
    number = type("Outputs", (), {"logits": logits[:, :1]})()
    loss = sample_losses("text-classification", number, {"labels": torch.ones(4)}, generator, labelled=labelled)
    assert loss.shape == (4,)
    if labelled:
        torch.testing.assert_close(loss, (logits[:, 0] - 1).square() / 2)


def test_bad_input(small_model: Callable[..., Any], tmp_path: Path) -> None:
    model = small_model("bert", "BertForSequenceClassification").requires_grad_(False)
    with pytest.raises(DataError, match="at least one example"):
        measured(model, [], "text-classification", tmp_path)
    with pytest.raises(CheckpointError, match="image"):
        measured(model, [batch_of(model, "feature-extraction")], "image-classification", tmp_path)
    model.classifier.bias.data[0] = torch.nan
    with pytest.raises(DataError, match="finite loss"):
        measured(model, [batch_of(model, "text-classification")], "text-classification", tmp_path)
