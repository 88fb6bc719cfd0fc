"""Static input ranges: what is found, that it does not depend on batches, and that the whole range is worth keeping."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from planish.compress.activations import quantize_inputs
from planish.compress.bench import Bench
from planish.compress.input_range import input_magnitudes, static_scale
from planish.errors import DataError, RecipeError

Model = Callable[..., Any]


def no_tick(done: int, total: int) -> None:
    return


@pytest.mark.parametrize("kind", ["bert", "distilbert", "mpnet", "gpt2", "llama"])
def test_finds_what_each_layer_reads(small_model: Model, kind: str) -> None:
    """Against inputs recorded window by window, so in other batches than the 2,048 tokens at a time used inside."""
    model = small_model(kind)
    layers = [layer for layer in Bench.of(model).layers if layer.role == "body"]
    windows = torch.randint(5, 500, (40, 64), generator=torch.Generator().manual_seed(0))
    expected = dict.fromkeys((layer.name for layer in layers), 0.0)
    for layer in layers:
        layer.module.register_forward_pre_hook(
            lambda _, inputs, name=layer.name: expected.update(
                {name: max(expected[name], inputs[0].abs().max().item())}
            )
        )
    with torch.no_grad():
        for window in windows.split(1):
            model(input_ids=window)
        alone = dict(expected)
        found = {name: seen.largest for name, seen in input_magnitudes(model, layers, windows, no_tick).items()}
    assert found == pytest.approx(alone, rel=1e-5)
    assert min(found.values()) > 0


def test_layers_out_of_reach_and_broken_models_are_refused(small_model: Model) -> None:
    model = small_model("bert")
    layers = [layer for layer in Bench.of(model).layers if layer.kind == "linear"]
    windows = torch.full((2, 8), 7)
    model.pooler = None
    with torch.no_grad(), pytest.raises(RecipeError, match="called on calibration text"):
        input_magnitudes(model, layers, windows, no_tick)
    next(layer for layer in layers if "intermediate" in layer.name).module.weight.data[0] = float("nan")
    with torch.no_grad(), pytest.raises(DataError, match="finite inputs"):
        input_magnitudes(model, [layer for layer in layers if layer.role == "body"], windows, no_tick)


@pytest.mark.parametrize(("largest", "scale"), [(127.5, 1.0), (0.0, 2.0**-23), (1e9, 65504.0), (255.0, 2.0)])
def test_scales_are_positive_float16(largest: float, scale: float) -> None:
    assert static_scale(largest) == pytest.approx(scale, rel=1e-3)
    assert torch.tensor(static_scale(largest)).half().item() == static_scale(largest)


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
        layers = [layer for layer in Bench.of(model).layers if layer.role == "body" and "att" in layer.name]
        if factor is not None:
            found = input_magnitudes(model, layers, torch.tensor(calibration["input_ids"]), no_tick)
            for layer in layers:
                quantize_inputs(
                    layer.module, "tensor", torch.tensor([static_scale(found[layer.name].largest * factor)])
                )
        hidden = model(**{key: torch.tensor(value) for key, value in judged.items()}).last_hidden_state
        mask = torch.tensor(judged["attention_mask"])[..., None]
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    with torch.no_grad():
        exact = vectors(None)
        whole, half = (1 - (vectors(factor) * exact).sum(1).mean() for factor in (1.0, 0.5))
    assert whole < 0.006
    assert whole < half / 2
