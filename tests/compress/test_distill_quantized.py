"""Quantization-aware training computes what will be stored, and its gradients pass the rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from planish.compress.activations import quantize_inputs
from planish.compress.bench import Bench
from planish.compress.fake_quantize_training import FakeQuantization, Spec, fit_rows, plan, straight
from planish.compress.grid import round_to_grid
from planish.compress.passes import build, run
from planish.compress.quality import Reference
from planish.compress.recipe import Data
from planish.errors import RecipeError

from .conftest import Maker
from .distilling import Workshop, train_teacher, write_rows

IDS = torch.randint(5, 512, (2, 11), generator=torch.Generator().manual_seed(1))
INT4: dict[str, Any] = {"pass": "weight-only", "method": "round", "group_size": 32}
RECIPES: dict[str, list[dict[str, Any]]] = {
    "int8": [{"pass": "int8-linear"}, {"pass": "int8-embedding"}],
    "int8 absmax": [{"pass": "int8-linear", "range": "absmax", "activations": "tensor"}],
    "int4": [INT4, {"pass": "int8-embedding", "group_size": 32}],
    "int4 symmetric": [{**INT4, "symmetric": True, "group_size": None}],
    "int8 weights": [{**INT4, "bits": 8, "group_size": 16}],
    "positions": [{"pass": "int8-embedding", "positions": True}],
}
KINDS = {"bert": "BertForSequenceClassification", "gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}
STORED = [(recipe, kind) for recipe in RECIPES for kind in KINDS if (recipe, kind) != ("positions", "llama")]
"""All but the table of positions of a model that has none (rotary)."""


def steps(recipe: list[dict[str, Any]]) -> tuple[Any, ...]:
    return tuple(build(one["pass"], {k: v for k, v in one.items() if k != "pass"}, "test") for one in recipe)


def quantized(bench: Bench, passes: tuple[Any, ...], workshop: Workshop) -> nn.Module:
    """The model as it will be served: passes applied, inputs rounded by hooks as the loader sets them."""
    for step in passes:
        run(step, bench, workshop.context())
    for name, stored in bench.stored.items():
        if stored.activations is not None:
            scale = None if stored.input_scale is None else torch.tensor([stored.input_scale])
            quantize_inputs(bench.model.get_submodule(name), stored.activations, scale, stored.pre_quant_scale)
            next(layer for layer in bench.layers if layer.name == name).set_weight(stored.quantized.dequantize())
    return bench.model


@torch.no_grad()
@pytest.mark.parametrize(("recipe", "kind"), STORED)
def test_forward_is_what_is_stored(recipe: str, kind: str, small_checkpoint: Maker, tmp_path: Path) -> None:
    workshop = Workshop(small_checkpoint(kind, KINDS[kind]), Data(), tmp_path / "out")
    bench, passes = workshop.bench, steps(RECIPES[recipe])
    plain = bench.model(IDS).logits
    fakes = FakeQuantization(bench, plan(passes, bench))
    fakes.attach()
    trained = bench.model(IDS).logits
    for layer in bench.layers:
        if layer.name in fakes.specs and layer.kind != "embedding":
            inputs = torch.randn(3, layer.weight.shape[1])
            spec = fakes.specs[layer.name]
            stored = round_to_grid(
                layer.weight, bits=spec.bits, group_size=spec.group_size, symmetric=spec.symmetric, range=spec.range
            )
            assert torch.equal(fakes.weight(layer.name), stored.dequantize()), layer.name
            assert inputs.isfinite().all()
    fakes.detach()
    assert torch.equal(bench.model(IDS).logits, plain)  # nothing is left behind
    served = quantized(bench, passes, workshop)(IDS).logits
    torch.testing.assert_close(trained, served, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(trained, plain, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_static_inputs_are_served_as_trained(small_checkpoint: Maker, tmp_path: Path) -> None:
    """On the text the pass calibrates on, training finds the same range and factors (of first layers)."""
    workshop = Workshop(small_checkpoint("bert", "BertForSequenceClassification"), Data(), tmp_path / "out")
    bench, first = workshop.bench, ["*layer.0.attention.self.*"]
    passes = steps([{"pass": "int8-linear", "activations": "static", "smoothing": 0.5, "include": first}])
    windows = workshop.context().windows()[0]
    fakes = FakeQuantization(bench, plan(passes, bench))
    fakes.attach()
    bench.model(windows)  # no ranges yet: inputs are float
    fakes.refresh()
    trained, state = bench.model(windows).logits, fakes.state()
    weights = {name: fakes.weight(name) for name in fakes.specs}
    fakes.detach()
    served = quantized(bench, passes, workshop)(windows).logits
    assert len(bench.stored) == 3
    for name, stored in bench.stored.items():
        assert stored.pre_quant_scale is not None
        assert float(state[f"{name}:input_scale"]) == stored.input_scale
        assert torch.equal(state[f"{name}:factor"], stored.pre_quant_scale)
        assert torch.equal(weights[name], stored.quantized.dequantize())
    torch.testing.assert_close(trained, served, rtol=1e-5, atol=1e-6)


def test_moving_ranges_rise_at_once_and_fall_slowly(small_checkpoint: Maker, tmp_path: Path) -> None:
    workshop = Workshop(small_checkpoint("bert", "BertForSequenceClassification"), Data(), tmp_path / "out")
    bench = workshop.bench
    layer = next(layer for layer in bench.layers if layer.role == "body")
    fakes = FakeQuantization(bench, {layer.name: Spec(8, None, True, "mse", "static")})
    fakes.attach()
    bench.model.train()
    x = torch.rand(1, 4, 64) + 0.5
    for factor, expected in ((1.0, 1.0), (3.0, 3.0), (1.0, 3.0 - 2.0 * 0.01)):
        layer.module(x * factor)
        fakes.refresh()
        scale = float(fakes.state()[f"{layer.name}:input_scale"])
        assert scale == pytest.approx(float(x.max()) * expected / 127.5, rel=2e-3)
    fakes.detach()


@pytest.mark.parametrize("activations", ["token", "static"])
def test_gradients_are_straight_through(activations: str, small_checkpoint: Maker, tmp_path: Path) -> None:
    """Weights get the gradient a float layer with the rounded input would give them; inputs that of rounded weights."""
    workshop = Workshop(small_checkpoint("bert", "BertForSequenceClassification"), Data(), tmp_path / "out")
    layer = next(layer for layer in workshop.bench.layers if layer.role == "body")
    fakes = FakeQuantization(workshop.bench, {layer.name: Spec(8, None, True, "mse", activations)})
    fakes.attach()
    module: Any = layer.module
    module.weight.requires_grad_(True)
    x = torch.randn(2, 3, 64).requires_grad_()
    if activations == "static":
        module(x)
        fakes.refresh()
    above = torch.randn(2, 3, 64)
    (module(x) * above).sum().backward()
    rounded = fakes.inputs(layer.name, x.detach())
    assert not torch.equal(rounded, x)
    expected = above.reshape(-1, 64).t() @ rounded.reshape(-1, 64)
    torch.testing.assert_close(module.weight.grad, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(x.grad, above @ fakes.weight(layer.name).detach(), rtol=1e-4, atol=1e-5)
    fakes.detach()


def test_straight_is_exact() -> None:
    x = torch.tensor([0.1, 1e8]).requires_grad_()
    y = straight(x, torch.tensor([3.0, 1.0]))
    assert y.tolist() == [3.0, 1.0]
    (y * torch.tensor([2.0, 5.0])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2.0, 5.0]


def test_grids_are_those_of_the_passes() -> None:
    weight = torch.randn(70, 64, generator=torch.Generator().manual_seed(0))
    for spec in (Spec(4, 16, False, "mse"), Spec(8, None, True, "absmax"), Spec(4, 32, True, "mse")):
        scale, zero = fit_rows(weight, spec)
        stored = round_to_grid(
            weight, bits=spec.bits, group_size=spec.group_size, symmetric=spec.symmetric, range=spec.range
        )
        assert torch.equal(scale, stored.scale)
        assert torch.equal(zero, torch.zeros_like(zero) if stored.zero_point is None else stored.zero_point.float())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("rows")
    train, validation = write_rows(folder / "train.jsonl", 320, 1), write_rows(folder / "validation.jsonl", 300, 2)
    return Data(train=str(train), validation=str(validation), max_length=32)


def test_trained_for_4_bits_beats_rounding_afterwards(small_checkpoint: Maker, data: Data, tmp_path: Path) -> None:
    """Rounding to 4 bits, one scale a row, costs a model agreement; training for it wins most of that back."""
    parent = train_teacher(small_checkpoint("bert", "BertForSequenceClassification", num_labels=2), data)
    recipe = [{**INT4, "group_size": None, "symmetric": True, "range": "absmax"}]
    untouched = Workshop(parent, data, tmp_path / "parent")
    reference, loss = Reference.of(untouched.bench.model, untouched.examples()), {}
    for aware in (False, True):
        workshop = Workshop(parent, data, tmp_path / f"out-{aware}")
        for layer in workshop.bench.layers:  # one large weight a row makes its grid coarse
            if layer.role == "body":
                layer.weight[:, 0] = 1.5
        settings = {
            "steps": 240,
            "batch_size": 16,
            "learning_rate": 2e-3,
            "judge": "teacher",
            "quantization_aware": aware,
        }
        facts = workshop.run(settings, *recipe)
        assert (facts["fake_quantized_layers"] > 0) == aware
        assert not any("forward" in module.__dict__ for module in workshop.bench.model.modules())
        with torch.no_grad():
            served = quantized(workshop.bench, steps(recipe), workshop)
        loss[aware] = reference.compare(served)["kl"]
    assert loss[True] < 0.8 * loss[False], loss


def test_nothing_to_train_for(small_checkpoint: Maker, data: Data, tmp_path: Path) -> None:
    workshop = Workshop(small_checkpoint("bert", "BertForSequenceClassification"), data, tmp_path / "out")
    with pytest.raises(RecipeError, match="int8-linear, int8-embedding or weight-only after distill"):
        workshop.run({"steps": 1, "quantization_aware": True})
