"""A distillation that was killed ends with the bits of one that was not; a loss that is no number ends it in order."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from planish.compress import distill_loop, distill_objective, distill_state, teacher_cache
from planish.compress.distill_state import History, Keeper
from planish.compress.quality import evaluate
from planish.compress.recipe import Data
from planish.compress.slicing import cut_width
from planish.errors import RecipeError

from .conftest import Maker
from .distilling import Workshop, text_file, train_teacher, write_rows

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import json, os, signal, sys, torch
from pathlib import Path
from planish.compress import distill_state, teacher_cache
from planish.compress.recipe import Data
from planish.compress.slicing import cut_width
from tests.compress.distilling import Workshop
torch.set_num_threads(1)
distill_state.EVERY = distill_state._SHARE = 0
teacher_cache._TOKENS_PER_SHARD = 256
parent, work, data, settings, later, width, stage, at = json.loads(sys.argv[1])
def progress(name, done, total):
    if (name, done) == (stage, at):
        os.kill(os.getpid(), signal.SIGKILL)
shop = Workshop(Path(parent), Data(**data), Path(work))
if width:
    cut_width(shop.bench, range(width))
shop.run(settings, *later, progress=progress)
"""
QUICK: dict[str, Any] = {"steps": 9, "batch_size": 16, "learning_rate": 2e-3, "evaluate_every": 4}
INT8 = [{"pass": "int8-linear", "activations": "static", "smoothing": 0.5}, {"pass": "int8-embedding"}]
CASES: dict[str, dict[str, Any]] = {
    # dropout and altered texts draw random numbers, a projection is trained, inputs have moving ranges;
    # 40 examples in batches of 16, two a step, are two steps an epoch
    "encoder": {
        "settings": {
            **QUICK,
            "accumulate": 2,
            "dropout": 0.2,
            "weights": {"hidden": 1.0},
            "augment": {},
            "quantization_aware": True,
        },
        "later": INT8,
        "width": 48,
        "at": ("distill", 7),
    },
    "decoder": {"settings": {**QUICK, "top_k": 8}, "at": ("distill", 5)},
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("rows")
    train, validation = write_rows(folder / "train.jsonl", 40, 1), write_rows(folder / "validation.jsonl", 20, 2)
    return {"train": str(train), "validation": str(validation), "max_length": 32}


@pytest.mark.parametrize("name", CASES)
def test_kill_9_and_again(
    name: str, rows: dict[str, Any], small_checkpoint: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = {"later": [], "width": None, **CASES[name]}
    decoder = name == "decoder"
    parent = small_checkpoint("llama") if decoder else small_checkpoint("bert", "BertForSequenceClassification")
    data = {"train": str(text_file(tmp_path / "text.txt")), "sequence_length": 32} if decoder else rows
    work = tmp_path / "killed"
    arguments = [str(parent), str(work), data, case["settings"], case["later"], case["width"], *case["at"]]
    command = [sys.executable, "-c", CHILD, json.dumps(arguments)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)
    assert child.returncode == -signal.SIGKILL, child.stderr
    monkeypatch.setattr(teacher_cache, "_TOKENS_PER_SHARD", 256)
    steps: list[tuple[str, int]] = []
    ends = []
    for folder in (work, tmp_path / "whole"):
        shop = Workshop(parent, Data(**data), folder)
        if case["width"]:
            cut_width(shop.bench, range(case["width"]))
        steps.clear()
        facts = shop.run(case["settings"], *case["later"], progress=lambda stage, done, _: steps.append((stage, done)))
        weights = {key: value.clone() for key, value in shop.bench.model.named_parameters()}
        ends.append((weights, {**facts, "training_seconds": 0}, list(steps)))
        shop.folder.close(keep=False)
    (resumed, told, redone), (whole, expected, done) = ends
    assert all(torch.equal(value, whole[key]) for key, value in resumed.items())
    assert told == expected
    assert ("distill", 1) in done
    assert ("distill", case["at"][1] - 1) not in redone  # what was finished is not done again


class Stop:
    """Interrupts at a point, and remembers the points before."""

    def __init__(self, stage: str, at: int) -> None:
        self.stage, self.at, self.seen = stage, at, list[int]()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage == self.stage:
            self.seen.append(done)
            if done == self.at:
                raise KeyboardInterrupt


def test_another_setting_does_not_continue(rows: dict[str, Any], small_checkpoint: Maker, tmp_path: Path) -> None:
    parent = small_checkpoint("bert", "BertForSequenceClassification")
    starts = []
    for rate in (2e-3, 2e-3, 1e-3):
        shop, stop = Workshop(parent, Data(**rows), tmp_path / "out"), Stop("distill", 7)
        with pytest.raises(KeyboardInterrupt):
            shop.run({**QUICK, "learning_rate": rate}, progress=stop)
        assert not any(parameter.requires_grad for parameter in shop.bench.model.parameters())
        starts.append(stop.seen[0])
        shop.folder.close(keep=True)
    assert starts == [0, 6, 0]  # an epoch is 3 steps, and ends with a state


def test_a_cache_is_computed_once(
    rows: dict[str, Any], small_checkpoint: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a run that continues; and it is asked in the same order whichever batch comes first."""
    monkeypatch.setattr(teacher_cache, "_TOKENS_PER_SHARD", 1)
    computed, real = [0], distill_objective.Objective.target

    def target(self: Any, *args: Any) -> Any:
        computed[0] += 1
        return real(self, *args)

    monkeypatch.setattr(distill_objective.Objective, "target", target)
    parent = small_checkpoint("bert", "BertForSequenceClassification")
    counts = []
    for stop in (Stop("teacher", 2), Stop("distill", 8), None):
        shop = Workshop(parent, Data(**rows), tmp_path / "out")
        if stop is None:
            shop.run(QUICK)
        else:
            with pytest.raises(KeyboardInterrupt):
                shop.run(QUICK, progress=stop)
        counts.append(computed[0])
        shop.folder.close(keep=True)
    assert counts == [2, 4, 4]  # three batches, the second not finished at first


def poison(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Make the loss of the step ``at`` (from 1) NaN."""
    real, count = distill_loop.Loop._losses, [0]

    def losses(self: Any, batch: Any) -> Any:
        count[0] += 1
        total, parts = real(self, batch)
        return (total * float("nan") if count[0] == at else total), parts

    monkeypatch.setattr(distill_loop.Loop, "_losses", losses)


def test_nan_keeps_the_last_good_weights(
    rows: dict[str, Any], small_checkpoint: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = train_teacher(
        small_checkpoint("bert", "BertForSequenceClassification", num_labels=2), Data(**rows), steps=30
    )
    poison(monkeypatch, 6)
    shop = Workshop(parent, Data(**rows), tmp_path / "out")
    facts = shop.run(QUICK)
    assert facts["stopped"] == "NaN loss at step 6 (epoch 2)"
    assert facts["steps"] == 5
    kept = next(one for one in facts["evaluations"] if one["step"] == facts["best_step"])
    assert evaluate(shop.bench.model, shop.examples())["accuracy"] == pytest.approx(kept["accuracy"], abs=1e-6)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in shop.bench.model.parameters())


def test_nan_before_anything_is_good(
    rows: dict[str, Any], small_checkpoint: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 2)
    shop = Workshop(small_checkpoint("bert", "BertForSequenceClassification"), Data(**rows), tmp_path / "out")
    with pytest.raises(RecipeError, match=r"a finite loss.*NaN or infinity at step 2 of 9; lower its learning_rate"):
        shop.run(QUICK)
    assert not any(parameter.requires_grad for parameter in shop.bench.model.parameters())


def test_a_rate_that_blows_up_is_told(rows: dict[str, Any], small_checkpoint: Maker, tmp_path: Path) -> None:
    shop = Workshop(small_checkpoint("bert", "BertForSequenceClassification"), Data(**rows), tmp_path / "out")
    with pytest.raises(RecipeError, match="lower its learning_rate"):
        shop.run({**QUICK, "learning_rate": 1e38, "warmup": 0.0, "clip": 0.0, "evaluate_every": 1})


def test_states_are_written_when_it_is_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        def save_state(self, *_: Any) -> None:
            now[0] += 10.0

    now = [100.0]
    monkeypatch.setattr(distill_state.time, "monotonic", lambda: now[0])
    keeper = Keeper(Slow(), "tag")  # type: ignore[arg-type]
    now[0] += distill_state.EVERY - 1
    assert not keeper.due()
    now[0] += 1
    assert keeper.due()
    keeper.save({}, History())
    now[0] += 199.0  # writing took 10 s: not again before 20 times that
    assert not keeper.due()
    now[0] += 1.0
    assert keeper.due()


def test_the_best_is_the_later_of_two_alike_and_never_nan() -> None:
    history = History()
    kept = []
    for step, value in enumerate((0.5, 0.5, 0.4, float("nan"), 0.6)):
        history.step = step
        kept.append(history.judge("accuracy", value, higher=True))
    assert kept == [True, True, False, False, True]
    assert history.best_step == 4
    assert history.stale == 0
    lower = History()
    assert [lower.judge("loss", value, higher=False) for value in (2.0, 3.0, 1.0)] == [True, False, True]


def test_moments_are_put_back() -> None:
    torch.manual_seed(0)
    net, other = nn.Linear(3, 3), nn.Linear(3, 3)
    other.load_state_dict(net.state_dict())
    one = torch.optim.AdamW(net.parameters(), lr=0.1, fused=True)
    two = torch.optim.AdamW(other.parameters(), lr=0.1, fused=True)
    x = torch.randn(4, 3)
    net(x).square().sum().backward()
    one.step()
    distill_state.write_back(other, distill_state.snapshot(net))
    distill_state.restore_moments(other, two, distill_state.moments(net, one))
    for model, optimizer in ((net, one), (other, two)):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
