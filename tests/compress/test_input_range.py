"""Static input scales: what is found in whatever batches, and what smoothing and the whole range gain."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from planish.compress import input_range
from planish.compress.activations import fake_quantize, quantize_inputs
from planish.compress.bench import Bench
from planish.compress.grid import round_to_grid
from planish.compress.input_range import InputScale, input_scales, pre_quant_scale, static_scale
from planish.compress.walk import Layer
from planish.errors import DataError, RecipeError

Model = Callable[..., Any]


class NoPieces:
    """Nothing to resume from."""

    def load_state(self, piece: str, tag: str) -> None:
        return None

    def save_state(self, *_: Any) -> None:
        return


def scales(model: Any, layers: list[Layer], *windows: torch.Tensor, **settings: Any) -> dict[str, InputScale]:
    told = {"method": "absmax", "percentile": 99.99, "smoothing": None, **settings}
    return input_scales(model, layers, windows, tick=lambda *_: None, pieces=NoPieces(), **told)  # type: ignore[arg-type]


def body(model: Any) -> list[Layer]:
    return [layer for layer in Bench.of(model).layers if layer.role == "body"]


@pytest.mark.parametrize("kind", ["bert", "distilbert", "mpnet", "gpt2", "llama"])
def test_finds_what_each_layer_reads(small_model: Model, kind: str) -> None:
    """Against inputs recorded window by window, so in other batches than the 2,048 tokens at a time used inside."""
    model = small_model(kind)
    layers = body(model)
    generator = torch.Generator().manual_seed(0)
    windows = [torch.randint(5, 500, (40, length), generator=generator) for length in (64, 16)]
    expected = dict.fromkeys((layer.name for layer in layers), 0.0)
    for layer in layers:
        layer.module.register_forward_pre_hook(
            lambda _, inputs, name=layer.name: expected.update(
                {name: max(expected[name], inputs[0].abs().max().item())}
            )
        )
    with torch.no_grad():
        for window in itertools.chain(*(one.split(1) for one in windows)):
            model(input_ids=window)
        alone = dict(expected)
        found = scales(model, layers, *windows)
    assert {name: how.scale for name, how in found.items()} == pytest.approx(
        {name: static_scale(largest) for name, largest in alone.items()}, rel=2e-3
    )
    assert all(how.pre_quant_scale is None for how in found.values())


def test_layers_out_of_reach_and_broken_models_are_refused(small_model: Model) -> None:
    model = small_model("bert")
    layers = [layer for layer in Bench.of(model).layers if layer.kind == "linear"]
    windows = torch.full((2, 8), 7)
    model.pooler = None
    with torch.no_grad(), pytest.raises(RecipeError, match="called on calibration text"):
        scales(model, layers, windows)
    next(layer for layer in layers if "intermediate" in layer.name).module.weight.data[0] = float("nan")
    for method in ("absmax", "percentile"):
        with torch.no_grad(), pytest.raises(DataError, match="finite inputs"):
            scales(model, body(model), windows, method=method)


@pytest.mark.parametrize(("largest", "scale"), [(127.5, 1.0), (0.0, 2.0**-23), (1e9, 65504.0), (255.0, 2.0)])
def test_scales_are_positive_float16(largest: float, scale: float) -> None:
    assert static_scale(largest) == pytest.approx(scale, rel=1e-3)
    assert torch.tensor(static_scale(largest)).half().item() == static_scale(largest)


def test_smoothing_is_equation_4() -> None:
    """SmoothQuant, equation 4, on numbers worked out by hand: s = 8^0.5 / 2^0.5 = 2 and 0.5^0.5 / 2^0.5 = 0.5."""
    weights = [torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 2.0]])]
    factor = pre_quant_scale(torch.tensor([8.0, 0.5]), weights, 0.5)
    assert factor.tolist() == [0.5, 2.0]


def test_smoothing_changes_no_function_and_beats_one_range_on_uneven_channels() -> None:
    """Oracle: x * f times w / f is x times w. Must beat: a tenth of the error where a channel is 30 times the rest."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(256, 64, generator=generator), torch.randn(32, 64, generator=generator)
    x[:, 5] *= 30
    factor = pre_quant_scale(x.abs().amax(0), [weight], 0.5)
    exact = x @ weight.T
    torch.testing.assert_close((x * factor) @ (weight / factor).T, exact, atol=2e-3, rtol=1e-3)

    def error(f: torch.Tensor) -> float:
        scale = torch.tensor(static_scale(float((x * f).abs().max())))
        q = round_to_grid(weight / f, bits=8, group_size=None, symmetric=True).dequantize()
        return float((fake_quantize(x * f, "tensor", scale) @ q.T - exact).square().mean())

    assert error(factor) < error(torch.ones(64)) / 10


def test_layers_that_read_the_same_share_their_factors(small_model: Model) -> None:
    model = small_model("bert")
    windows = torch.randint(5, 500, (8, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = scales(model, body(model), windows, smoothing=0.9, plain={"encoder.layer.1.output.dense"})
    query, key = (found[f"encoder.layer.0.attention.self.{part}"] for part in ("query", "key"))
    assert query.pre_quant_scale is key.pre_quant_scale
    assert query.scale == key.scale
    assert found["encoder.layer.1.output.dense"].pre_quant_scale is None
    assert found["encoder.layer.0.output.dense"].pre_quant_scale is not None


@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_histograms_see_smoothed_inputs(small_model: Model, method: str) -> None:
    model = small_model("bert")
    windows = torch.randint(5, 500, (8, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = scales(model, body(model), windows, smoothing=0.9)
        cut = scales(model, body(model), windows, smoothing=0.9, method=method, percentile=99.0)
    assert all(cut[name].scale <= how.scale for name, how in whole.items())
    assert any(cut[name].scale < how.scale for name, how in whole.items())


def test_percentile_of_everything_is_the_largest_value(small_model: Model) -> None:
    model = small_model("bert")
    windows = torch.randint(5, 500, (8, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, all_of_it = (
            scales(model, body(model), windows, **told) for told in ({}, {"method": "percentile", "percentile": 100.0})
        )
    assert {name: how.scale for name, how in whole.items()} == {name: how.scale for name, how in all_of_it.items()}


def test_the_whole_range_beats_half_of_it_on_minilm(minilm: Path, judge_text: str) -> None:
    """Half the range has less rounding error for nearly all tokens, and still loses: large values steer the model."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, lines = (
        AutoTokenizer.from_pretrained(minilm),
        [line for line in judge_text.split(". ") if len(line) > 40],
    )
    calibration, judged = (
        tokenizer(part, padding=True, truncation=True, max_length=32) for part in (lines[:64], lines[64:80])
    )

    def vectors(factor: float | None) -> torch.Tensor:
        model = AutoModel.from_pretrained(minilm).eval()
        layers = [layer for layer in body(model) if "att" in layer.name]
        if factor is not None:
            found = scales(model, layers, torch.tensor(calibration["input_ids"]))
            for layer in layers:
                quantize_inputs(layer.module, "tensor", torch.tensor([found[layer.name].scale * factor]))
        hidden = model(**{key: torch.tensor(value) for key, value in judged.items()}).last_hidden_state
        mask = torch.tensor(judged["attention_mask"])[..., None]
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    with torch.no_grad():
        exact = vectors(None)
        whole, half = (1 - (vectors(factor) * exact).sum(1).mean() for factor in (1.0, 0.5))
    assert whole < 0.006
    assert whole < half / 2


def test_a_state_restores_to_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(4, 8, generator=generator) for _ in range(2)]
    for make in (input_range.ChannelLimits, lambda: input_range.Histograms({"a": torch.full((8,), 0.5)})):
        whole, first, second = make(), make(), make()
        for part in parts:
            whole.add("a", part)
        first.add("a", parts[0])
        second.restore(first.state())
        second.add("a", parts[1])
        assert {key: value.tolist() for key, value in second.state().items()} == {
            key: value.tolist() for key, value in whole.state().items()
        }
