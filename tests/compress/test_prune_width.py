"""The residual stream gets narrower: exact where channels are empty, refitted norms err less, every family reloads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from planish.compress import compress
from planish.compress.channel_importance import fit, plain_norm, stream_norms
from planish.compress.passes import build
from planish.compress.prune_width import PruneWidth
from planish.errors import RecipeError
from planish.families import block_parts
from planish.sliced import from_pretrained

from .at_work import WINDOWS, Stop, answers, moved, pieces, work
from .conftest import SMALL, Maker

Small = Callable[..., Any]
HEADS = {"bert": "BertForMaskedLM", "xlm-roberta": "XLMRobertaForSequenceClassification", "mpnet": "MPNetForMaskedLM"}
RMS = ["llama", "qwen2", "qwen3"]


def shrunk(kind: str, parent: Any, width: int) -> int:
    """Parameters with ``width`` of 64 channels: every axis of a weight that is the stream's, cut."""
    attention = {id(part.o.weight) for part in block_parts(parent)}
    conv1d = kind == "gpt2"
    total = 0
    for name, parameter in parent.named_parameters():
        axes = [size == 64 for size in parameter.shape]
        if id(parameter) in attention:  # o: [64, heads * head_dim], of which only the outputs are the stream's
            axes = [False, True] if conv1d else [True, False]
        elif _reads_stream(name):  # q, k, v: of [heads * head_dim, 64] only the inputs
            axes = [False] if parameter.ndim == 1 else ([True, False] if conv1d else [False, True])
        size = 1
        for length, cut in zip(parameter.shape, axes, strict=True):
            size *= width if cut else length
        total += size
    return total


def _reads_stream(name: str) -> bool:
    leaf = name.rsplit(".", 2)[-2]
    known = ("query", "key", "value", "q", "k", "v", "c_attn", "query_key_value", "q_norm", "k_norm")
    return leaf in known or leaf in ("q_lin", "k_lin", "v_lin", "q_proj", "k_proj", "v_proj")


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_every_family_gets_narrower_and_reloads(
    kind: str, small_model: Small, small_checkpoint: Maker, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    head = HEADS.get(kind)
    source = small_checkpoint(kind, head)
    recipe = recipe_file({"pass": "prune-width", "width": 48, "multiple": 16})
    receipt = compress(source, recipe, tmp_path / "out").receipts[0]
    model = from_pretrained(tmp_path / "out")
    assert model.config.hidden_size == 48
    assert sum(p.numel() for p in model.parameters()) == receipt["after"]["parameters"]
    assert receipt["after"]["parameters"] == shrunk(kind, small_model(kind, head), 48)
    assert [part.ffn for part in block_parts(model)] == [part.ffn for part in block_parts(small_model(kind))]
    assert [part.heads for part in block_parts(model)] == [part.heads for part in block_parts(small_model(kind))]
    facts = receipt["facts"]
    assert (facts["width_before"], facts["width"], len(facts["kept"])) == (64, 48, 48)
    again = small_model(kind, head)
    work(PruneWidth(width=48, multiple=16), again, tmp_path / "w", windows=WINDOWS)
    again.save_pretrained(tmp_path / "saved")
    if kind != "gpt_neox":  # transformers renames its head when it saves a model of the plain class
        assert torch.equal(answers(from_pretrained(tmp_path / "saved")), answers(again))
    assert bool(torch.isfinite(answers(model)).all())


def scale_channels(model: Any, channels: Tensor, factor: float) -> None:
    """Multiply what token table and blocks write to these channels of the stream; norms still read them."""
    model.get_input_embeddings().weight[:, channels] *= factor
    for part in block_parts(model):
        for writer in (part.o, part.down):
            weight: Any = writer.weight
            (weight.t() if hasattr(writer, "nf") else weight)[channels] *= factor
            if getattr(writer, "bias", None) is not None:
                writer.bias[channels] *= factor  # type: ignore[index,operator]


@pytest.mark.parametrize("kind", RMS)
@torch.no_grad()
def test_empty_channels_can_go(kind: str, small_model: Small, tmp_path: Path) -> None:
    """An RMS norm of fewer channels is a constant factor off, which the refitted gains take back: exact."""
    model = small_model(kind, rms_norm_eps=1e-12)
    channels = torch.arange(3, 64, 4)
    scale_channels(model, channels, 0.0)
    expected = answers(model)
    bench = work(PruneWidth(width=48, multiple=16), model, tmp_path)
    assert not set(bench.facts["kept"]) & set(channels.tolist())
    assert bench.facts["importance_left"] == 1.0
    torch.testing.assert_close(answers(model), expected, rtol=1e-4, atol=1e-5)
    other = small_model(kind, rms_norm_eps=1e-12)
    scale_channels(other, channels, 0.0)
    work(PruneWidth(width=48, multiple=16, refit=False), other, tmp_path / "plain")
    assert moved(answers(other), expected) > 0.05


@pytest.mark.parametrize("kind", ["bert", "distilbert", "llama", "gpt2", "opt", "gpt_neox"])
@torch.no_grad()
def test_the_loudest_channels_stay_and_refitting_helps(kind: str, small_model: Small, tmp_path: Path) -> None:
    """With half of the channels quiet, they go; with the norms refitted the logits move less."""

    def make() -> Any:
        model = small_model(kind, "BertForMaskedLM" if kind == "bert" else None)
        for norm in stream_norms(model).values():
            norm.weight[::2] *= 0.05
            if getattr(norm, "bias", None) is not None:
                norm.bias[::2] *= 0.05  # type: ignore[index,operator]
        scale_channels(model, torch.arange(0, 64, 2), 0.05)
        return model

    expected, distance = answers(make()), {}
    for refit in (False, True):
        model = make()
        bench = work(PruneWidth(share=0.5, refit=refit), model, tmp_path / str(refit))
        assert bench.facts["kept"] == list(range(1, 64, 2))
        assert bench.facts["importance_left"] > 0.9
        distance[refit] = moved(answers(model), expected)
    assert distance[True] < 0.95 * distance[False]


def test_norms_are_found(small_model: Small) -> None:
    for kind, before, behind in (("bert", 1, 0), ("llama", 0, 1), ("gpt2", 0, 1), ("electra", 0, 0), ("qwen3", 0, 1)):
        assert len(stream_norms(small_model(kind))) == 2 * 2 + before + behind, kind
    assert len(stream_norms(small_model("bert", "BertForMaskedLM"))) == 6


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_the_fit_is_least_squares(bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator).double() + 0.5
    y = 3 * x + torch.randn(200, 6, generator=generator)
    x[:, 5] = 2.0  # never moves
    norm = torch.nn.LayerNorm(8) if bias else torch.nn.RMSNorm(8)
    norm.weight.copy_(torch.arange(8.0))
    keep = torch.tensor([0, 1, 2, 4, 6, 7])
    moments = torch.stack([x.mean(0), y.mean(0), (x * x).mean(0), (x * y).mean(0)])
    gain, shift = fit(moments, norm, keep)
    for column in range(5):
        ones = torch.ones(200, 1 if bias else 0, dtype=torch.float64)
        best = torch.linalg.lstsq(torch.cat([x[:, column : column + 1], ones], 1), y[:, column]).solution
        assert float(gain[column]) == pytest.approx(float(best[0]), rel=1e-4)
        if bias:
            assert shift is not None
            assert float(shift[column]) == pytest.approx(float(best[1]), rel=1e-3, abs=1e-4)
    if bias:
        assert shift is not None
        assert (float(gain[5]), float(shift[5])) == pytest.approx((7.0, float(y[:, 5].mean()) - 14.0), rel=1e-5)
    else:
        assert shift is None
        assert float(gain[5]) == pytest.approx(float(y[:, 5].mean()) / 2, rel=1e-5)


@torch.no_grad()
def test_a_norm_without_gain_is_the_modules_own(small_model: Small) -> None:
    hidden = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0))
    for kind in ("bert", "llama"):
        norm: Any = next(iter(stream_norms(small_model(kind)).values()))
        expected = plain_norm(norm, hidden) * norm.weight + getattr(norm, "bias", torch.zeros(64))
        torch.testing.assert_close(norm(hidden), expected)


def test_a_killed_run_continues(small_model: Small, tmp_path: Path) -> None:
    step = PruneWidth(width=32)
    whole, again = small_model("bert"), small_model("bert")
    expected = work(step, whole, tmp_path / "whole").facts
    with pytest.raises(KeyboardInterrupt):
        work(step, small_model("bert"), tmp_path / "cut", progress=Stop(2))
    assert pieces(tmp_path / "cut") == ["channels"]
    assert work(step, again, tmp_path / "cut").facts == expected
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"width": 40}, r"a multiple of 32, got 40; 32"),
        ({"width": 64}, "below 64 that is a multiple of 32, got 64"),
        ({"width": 96}, "below 64"),
        ({"width": 0}, "got 0"),
        ({"width": -32}, "got -32"),
        ({"width": 20, "multiple": 16}, r"possible: 16, 32, \.\.\. 48"),
        ({"share": 0.5, "multiple": 64}, "a multiple below the model's width 64"),
    ],
)
def test_widths_that_cannot_be(settings: dict[str, Any], match: str, small_model: Small, tmp_path: Path) -> None:
    model = small_model("bert")
    with pytest.raises(RecipeError, match=match):
        work(PruneWidth(**settings), model, tmp_path)
    assert model.config.hidden_size == 64


def test_settings_that_cannot_be(small_model: Small, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="one of width and share in pass prune-width, got none"):
        build("prune-width", {}, "recipe")
    with pytest.raises(RecipeError, match="got both"):
        build("prune-width", {"width": 32, "share": 0.5}, "recipe")
    with pytest.raises(RecipeError, match="a stream has one width"):
        build("prune-width", {"width": 32, "exclude": ["*"]}, "recipe")
    with pytest.raises(RecipeError, match="other than the tables"):
        work(PruneWidth(width=32), small_model("electra"), tmp_path)


def test_shares_round_to_the_multiple(small_model: Small, tmp_path: Path) -> None:
    for share, multiple, width in ((0.6, 8, 40), (0.99, 16, 48), (0.01, 16, 16), (0.5, 1, 32)):
        bench = work(PruneWidth(share=share, multiple=multiple), small_model("bert"), tmp_path / f"{share}")
        assert bench.facts["width"] == width


def test_vectors_of_another_width_are_compared_by_their_similarities(
    small_checkpoint: Maker, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = recipe_file({"pass": "prune-width", "width": 48, "multiple": 16}, samples=24)
    receipt = compress(small_checkpoint("bert"), recipe, tmp_path / "out").receipts[0]
    assert receipt["before"]["quality"]["cosine_mean"] == pytest.approx(1.0, abs=1e-6)
    assert set(receipt["after"]["quality"]) <= {"similarity_correlation"}
