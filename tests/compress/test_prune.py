"""The pass as a whole: budgets held, every family, better than chance, and a killed run ends the same."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from planish.compress.bench import Bench, Context
from planish.compress.checkpoint import open_checkpoint
from planish.compress.cut_and_tune import Kept, cut_and_tune
from planish.compress.fisher import model_inputs
from planish.compress.flops import costs
from planish.compress.latency_table import LatencyTable
from planish.compress.material import Material
from planish.compress.passes import run
from planish.compress.prune import Prune
from planish.compress.recipe import Data
from planish.compress.resume import WorkFolder
from planish.errors import DataError, PlanishError, RecipeError
from planish.families import block_parts
from planish.sliced import shapes_of

from .conftest import SMALL, Maker

DATA = Data(samples=24, sequence_length=32, max_length=32)


def pruned(source: Path, folder: Path, data: Data = DATA, **settings: Any) -> Bench:
    """``source`` after a prune pass with these settings."""
    checkpoint = open_checkpoint(source)
    bench = Bench.of(checkpoint.load_model())
    material = Material(data, folder, checkpoint, bench)
    work = WorkFolder(folder / "out", {})
    context = Context(
        windows=material.windows,
        pieces=work.pieces(0),
        progress=lambda stage, done, total: None,
        seed=data.seed,
        source=checkpoint,
        tokenizer=material.tokenizer,
        examples=material.examples,
        data=data,
        folder=folder,
    )
    with torch.no_grad():
        found = run(Prune(**{"samples": 24, "batch_size": 8, "length": 32, **settings}), bench, context)
    work.close(keep=False)
    return found


def outputs(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found = model(**model_inputs(batch))[0]
    return found[batch["attention_mask"].bool()] if found.ndim == 3 else found


def table_file(path: Path, **changes: Any) -> Path:
    content = {
        "schema": 1, "profile": "test", "recipe": "none", "batch": 8, "length": 32, "hidden": 64, "layers": 2,
        "base_ms": 1.0, "attention_ms": {"heads": [1, 2, 4], "ms": [0.5, 0.6, 1.0]},
        "ffn_ms": {"neurons": [16, 48, 96], "ms": [0.2, 0.5, 1.4]}, "device": {},
    }  # fmt: skip
    path.write_text(json.dumps(content | changes), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_every_family_is_cut_to_its_budget_and_runs(kind: str, small_checkpoint: Maker, tmp_path: Path) -> None:
    source = small_checkpoint(kind)
    before = costs(open_checkpoint(source).load_model(), 32)
    bench = pruned(source, tmp_path, flops=0.7)
    after = costs(bench.model, 32)
    facts = bench.facts
    assert after.block_flops <= 0.7 * before.block_flops
    assert after.block_flops > 0.5 * before.block_flops
    assert facts["block_flops_left"] == pytest.approx(after.block_flops / before.block_flops, rel=1e-5)
    assert facts["parameters_left"] == pytest.approx(after.parameters / before.parameters, rel=1e-5)
    assert facts["budget"]["spent"] == pytest.approx(after.block_flops, rel=1e-5)
    assert facts["kept"]["heads"] == [block.groups for block in after.blocks]
    assert facts["kept"]["neurons"] == [block.neurons for block in after.blocks]
    assert facts["samples"] > 0
    assert facts["heads_cut"] == (kind != "mpnet")
    if kind in ("gpt2", "gpt_neox", "llama", "opt", "qwen2", "qwen3"):
        assert len(set(facts["kept"]["heads"])) == 1
    ids = torch.randint(5, 500, (2, 9))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert bool(torch.isfinite(outputs(bench.model, batch)).all())
    json.dumps(facts, allow_nan=False)


@pytest.mark.parametrize(
    ("settings", "measure"),
    [
        ({"parameters": 0.6}, lambda cost: cost.block_parameters),
        ({"flops": 0.75, "heads": False}, lambda cost: cost.block_flops),
        ({"parameters": 0.9, "neurons": False}, lambda cost: cost.block_parameters),
        ({"flops": 0.6, "uniform": True, "multiple": 8}, lambda cost: cost.block_flops),
    ],
)
def test_budgets(
    settings: dict[str, Any], measure: Callable[[Any], int], small_checkpoint: Maker, tmp_path: Path
) -> None:
    source = small_checkpoint("bert")
    before = costs(open_checkpoint(source).load_model(), 32)
    bench = pruned(source, tmp_path, tuning="none", **settings)
    after = costs(bench.model, 32)
    share = settings.get("flops", settings.get("parameters"))
    assert 0.5 * share * measure(before) < measure(after) <= share * measure(before)
    heads, neurons = ({getattr(one, name) for one in shapes_of(bench.model)} for name in ("heads", "ffn"))
    assert (heads == {4}) == ("heads" in settings)
    assert (neurons == {96}) == ("neurons" in settings)
    if "uniform" in settings:
        assert len(heads) == len(neurons) == 1
        assert not next(iter(neurons)) % 8


def test_bytes_are_those_of_the_whole_model(small_checkpoint: Maker, tmp_path: Path) -> None:
    source = small_checkpoint("bert")
    whole = costs(open_checkpoint(source).load_model()).bytes
    bench = pruned(source, tmp_path, bytes=whole - 100_000, tuning="none")
    assert whole - 150_000 < bench.bytes() <= whole - 100_000


def test_milliseconds_of_a_table(small_checkpoint: Maker, tmp_path: Path) -> None:
    source, path = small_checkpoint("bert"), table_file(tmp_path / "table.json")
    table = LatencyTable.load(path)
    assert table.attention(3) == pytest.approx(0.8)
    assert table.attention(8) == pytest.approx(1.8)  # along the last two points
    assert table.ffn(8) == 0.2
    whole = table.predict(shapes_of(open_checkpoint(source).load_model()))
    assert whole == pytest.approx(1 + 2 * (1.0 + 1.4))
    for settings, limit in (({"milliseconds": 4.0}, 4.0), ({"latency": 0.5}, whole / 2)):
        bench = pruned(source, tmp_path, table="table.json", tuning="none", **settings)
        predicted = table.predict(shapes_of(bench.model))
        assert limit * 0.8 < predicted <= limit
        assert bench.facts["predicted_ms"] == bench.facts["budget"]["spent"] == pytest.approx(predicted, rel=1e-5)


@pytest.mark.parametrize(
    "settings", [{"flops": 0.1}, {"parameters": 0.1}, {"bytes": 1000}, {"latency": 0.2}, {"milliseconds": 0.5}]
)
def test_an_impossible_budget_says_the_nearest(
    settings: dict[str, Any], small_checkpoint: Maker, tmp_path: Path
) -> None:
    source = small_checkpoint("bert")
    table_file(tmp_path / "table.json")
    timed = {"table": "table.json"} if {"latency", "milliseconds"} & set(settings) else {}
    with pytest.raises(RecipeError) as error:
        pruned(source, tmp_path, **settings, **timed)
    unit = next(iter(settings))
    assert f"write {unit}: " in error.value.fix
    possible = error.value.fix.split(": ")[1].split(",")[0]
    value = int(possible) if unit == "bytes" else float(possible)
    bench = pruned(source, tmp_path, tuning="none", **{unit: value}, **timed)
    assert {one.heads for one in shapes_of(bench.model)} == {1}
    assert {one.ffn for one in shapes_of(bench.model)} == {16}


def test_importance_beats_chance_and_magnitude(small_checkpoint: Maker, tmp_path: Path) -> None:
    """At the same counts in every block, what Fisher keeps changes the outputs least."""
    source = small_checkpoint("bert", num_hidden_layers=3)
    errors: dict[str, float] = {}
    parent = open_checkpoint(source).load_model()
    whole = Bench.of(open_checkpoint(source).load_model())
    checkpoint = open_checkpoint(source)
    material = Material(DATA, tmp_path, checkpoint, whole)
    batch = material.examples().batches("validation", 64)[0]
    expected = outputs(parent, batch)
    generator = torch.Generator().manual_seed(0)
    for name in ("fisher", "activations", "magnitude", *[f"chance {number}" for number in range(8)]):
        if name in ("fisher", "activations"):
            model = pruned(source, tmp_path, flops=0.6, uniform=True, tuning="none", importance=name).model
            counts = shapes_of(model)
        else:
            bench = Bench.of(open_checkpoint(source).load_model())
            kept = []
            for part, shape in zip(block_parts(bench.model), counts, strict=True):
                if name == "magnitude":
                    heads = part.o.weight.view(64, 4, 16).square().sum((0, 2)).topk(shape.heads).indices
                    neurons = part.down.weight.square().sum(0).topk(shape.ffn).indices
                else:
                    heads = torch.randperm(4, generator=generator)[: shape.heads]
                    neurons = torch.randperm(96, generator=generator)[: shape.ffn]
                kept.append(Kept(tuple(sorted(heads.tolist())), tuple(sorted(neurons.tolist()))))
            cut_and_tune(bench, kept, [], method="none", tick=lambda *_: None, pieces=None, tag="")  # type: ignore[arg-type]
            model = bench.model
        errors[name] = float((outputs(model, batch) - expected).square().mean())
    chance = [error for name, error in errors.items() if name.startswith("chance")]
    assert errors["fisher"] < min(chance)
    assert errors["fisher"] < errors["magnitude"]
    assert errors["activations"] < sum(chance) / len(chance)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "opt", "gpt_neox", "llama"])
def test_tuning_brings_the_outputs_back(kind: str, small_checkpoint: Maker, tmp_path: Path) -> None:
    """On examples not seen: weights do better than factors, factors better than nothing."""
    source = small_checkpoint(kind)
    data = Data(samples=96, sequence_length=32, max_length=32)
    errors = {}
    checkpoint = open_checkpoint(source)
    parent = checkpoint.load_model()
    batch = Material(data, tmp_path, checkpoint, Bench.of(parent)).examples().batches("validation", 64)[0]
    expected = outputs(parent, batch)
    for method in ("none", "factors", "weights"):
        bench = pruned(source, tmp_path, data, flops=0.6, tuning=method, samples=96)
        errors[method] = float((outputs(bench.model, batch) - expected).square().mean())
        for block in bench.facts["tuning"]:
            assert block["attention_after"] <= block["attention_before"]
            assert block["ffn_after"] <= block["ffn_before"]
        assert len(bench.facts["tuning"]) == (0 if method == "none" else 2)
    assert errors["factors"] < errors["none"]
    assert errors["weights"] < 0.95 * errors["none"]


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_tuning_a_whole_model_changes_nothing(kind: str, small_checkpoint: Maker, tmp_path: Path) -> None:
    """Both streams are the same then, so the target of every projection is what it gives: this checks the residuals."""
    source = small_checkpoint(kind)
    bench = pruned(source, tmp_path, bytes=1 << 40)
    assert all(value < 1e-6 for block in bench.facts["tuning"] for value in block.values())
    parent = open_checkpoint(source).load_model()
    ids = torch.randint(5, 500, (2, 9))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(outputs(bench.model, batch), outputs(parent, batch))


KILLED = """
import os, signal, sys, torch
from planish.compress import compress, fisher
torch.set_num_threads(1)
fisher._SAVE_EVERY = 0.0
def progress(stage, done, total):
    if stage == sys.argv[4] and done == 2:
        os.kill(os.getpid(), signal.SIGKILL)
compress(sys.argv[1], sys.argv[2], sys.argv[3], progress=progress)
"""


def test_kill_9_twice_and_again(recipe_file: Callable[..., Path], small_checkpoint: Maker, tmp_path: Path) -> None:
    """Killed while importance is measured, then while blocks are tuned."""
    from planish.compress import compress

    source = small_checkpoint("bert", num_hidden_layers=3)
    step = {"pass": "prune", "flops": 0.6, "samples": 24, "batch_size": 6, "length": 32}
    recipe = recipe_file(step, samples=32, max_length=32)
    for stage, blocks in (("prune: importance", 0), ("prune: tuning", 2)):
        arguments = [sys.executable, "-c", KILLED, str(source), str(recipe), str(tmp_path / "out"), stage]
        child = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
        assert child.returncode == -signal.SIGKILL, child.stderr
        left = {path.name for path in (tmp_path / ".out.partial").glob("pass-0-*.safetensors")}
        tuned = {f"pass-0-tuned-{number:04d}.safetensors" for number in range(blocks)}
        assert left == {"pass-0-importance.safetensors"} | tuned
    compress(source, recipe, tmp_path / "out")
    compress(source, recipe, tmp_path / "whole")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    receipts = [json.loads((tmp_path / name / "planish.json").read_text())["receipts"][0] for name in ("out", "whole")]
    assert receipts[0]["facts"] == receipts[1]["facts"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "one of flops"),
        ({"flops": 0.5, "bytes": 100}, "flops and bytes"),
        ({"latency": 0.5}, "without a table"),
        ({"flops": 0.5, "table": "x.json"}, "remove table"),
        ({"flops": 0.5, "heads": False, "neurons": False}, "neither"),
        ({"flops": 0.5, "exclude": ["*"]}, "include / exclude"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Prune(**settings)


def test_bad_input(small_checkpoint: Maker, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="MPNet"):
        pruned(small_checkpoint("mpnet"), tmp_path, flops=0.9, neurons=False)
    bench = Bench.of(open_checkpoint(small_checkpoint("bert")).load_model())
    bench.stored["x"] = None  # type: ignore[assignment]
    with pytest.raises(RecipeError, match="change their order"):
        Prune(flops=0.5).apply(bench, None)  # type: ignore[arg-type]
    source = small_checkpoint("bert")
    table_file(tmp_path / "other.json", hidden=128)
    with pytest.raises(RecipeError, match="width 64"):
        pruned(source, tmp_path, latency=0.5, table="other.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "schema 1"),
        ({"base_ms": "1"}, "base_ms"),
        ({"batch": 0}, "batch"),
        ({"attention_ms": {"heads": [2, 1], "ms": [1, 2]}}, "attention_ms"),
        ({"attention_ms": {"heads": [1, 2], "ms": [1]}}, "attention_ms"),
        ({"ffn_ms": {"neurons": [1], "ms": [-1]}}, "ffn_ms"),
        ({"ffn_ms": None}, "ffn_ms"),
    ],
)
def test_bad_tables(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        LatencyTable.load(table_file(tmp_path / "t.json", **changes))
    for content in (b"\xff", b"[1", b"[]"):
        (tmp_path / "t.json").write_bytes(content)
        with pytest.raises(PlanishError, match="latency table"):
            LatencyTable.load(tmp_path / "t.json")
    with pytest.raises(DataError, match="no such file"):
        LatencyTable.load(tmp_path / "none.json")
