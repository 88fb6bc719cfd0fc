"""encoder-small, shortened: a sentiment classifier cut, distilled and quantized in one command, then judged.

The parent is MiniLM's first three blocks, fine-tuned for seconds; `pytest -m slow` takes the whole recipe on the whole
model and all sentences (45 minutes of processor time, and twelve for the parent if it is not there yet).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from planish.__main__ import main
from planish.compress import load_recipe, open_checkpoint
from planish.compress.bench import Bench
from planish.compress.slicing import cut_blocks
from planish.compress.write import write_checkpoint
from planish.demo import onnx_bytes
from planish.export import export
from planish.export.quiet import quiet
from planish.runtime import load, verify
from tests.sentiment import train_sentiment

ROOT = Path(__file__).resolve().parents[2]
Rows = list[tuple[str, int]]
NAMES = ("negative", "positive")


def jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps({"text": text, "label": NAMES[label]}) + "\n" for text, label in rows))
    return path


def shortened(path: Path) -> Path:
    """The shipped recipe with less data and fewer steps."""
    recipe = load_recipe("encoder-small")
    content = recipe.content
    content["data"] |= {"samples": 8}
    for step in content["passes"]:
        step |= {"prune": {"samples": 96}, "distill": {"steps": 24, "epochs": 1.0}}.get(step["pass"], {})
        step.pop("fill", None)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def parent(minilm: Path, movie_sentences: dict[str, Rows], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sentiment")
    source = open_checkpoint(minilm)
    bench = Bench.of(source.load_model())
    cut_blocks(bench, [0, 1, 2])
    (folder / "short").mkdir()
    write_checkpoint(bench, source, folder / "short")
    with quiet(), torch.enable_grad():
        return train_sentiment(folder / "short", movie_sentences["train"][:1600], folder / "parent", epochs=1)


@pytest.fixture(scope="module")
def shipped(parent: Path, movie_sentences: dict[str, Rows], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shipped")
    train = jsonl(folder / "train.jsonl", movie_sentences["train"][:1600])
    test = jsonl(folder / "test.jsonl", movie_sentences["test"][:400])
    arguments = ["ship", parent, "-r", shortened(folder / "short.yaml"), "-o", folder / "bundle", "--train", train]
    arguments += ["--data", test, "--max-loss", "8", "--no-latency", "--keep-checkpoint", folder / "checkpoint"]
    arguments += ["--json"]
    export(parent, folder / "parent.bundle", dialects=("ort",))
    assert main([str(argument) for argument in arguments]) in (0, 3), "400 sentences may be too few to be sure"
    return folder


def test_one_command_cuts_distills_and_quantizes(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = verify(shipped / "bundle")
    told = bundle.to_json()
    assert [receipt["pass"] for receipt in told["receipts"]] == [
        step.name for step in load_recipe("encoder-small").passes
    ]
    assert onnx_bytes(shipped / "bundle") <= 0.15 * onnx_bytes(shipped / "parent.bundle")
    (gate,) = told["gates"]
    assert gate["verdict"] != "regress"
    assert main(["explain", str(shipped / "bundle")]) == 0
    assert "distill" in capsys.readouterr().out


def test_distillation_wins_back_what_pruning_cost(shipped: Path) -> None:
    receipts = json.loads((shipped / "checkpoint" / "planish.json").read_text())["receipts"]
    quality = {receipt["pass"]: receipt["after"]["quality"] for receipt in receipts}
    before = receipts[0]["before"]["quality"]["accuracy"]
    assert quality["distill"]["accuracy"] >= quality["prune"]["accuracy"]
    assert quality["distill"]["accuracy"] >= before - 0.05
    assert abs(quality["int8-embedding"]["accuracy"] - quality["distill"]["accuracy"]) <= 0.03


def test_the_bundle_is_as_right_as_its_receipt_says(
    shipped: Path, movie_sentences: dict[str, Rows], measure_accuracy: Callable[..., float]
) -> None:
    said = measure_accuracy(shipped / "bundle", movie_sentences["test"][:400])
    receipt = json.loads((shipped / "checkpoint" / "planish.json").read_text())["receipts"][-1]
    assert said == pytest.approx(receipt["after"]["quality"]["accuracy"], abs=0.1)


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_the_whole_recipe_on_the_whole_model(
    minilm: Path, movie_sentences: dict[str, Rows], tmp_path: Path, measure_accuracy: Callable[..., float]
) -> None:
    parent = train_sentiment(minilm, movie_sentences["train"], ROOT / ".cache" / "sentiment-minilm")
    files = {part: jsonl(tmp_path / f"{part}.jsonl", rows) for part, rows in movie_sentences.items()}
    arguments = ["compress", parent, "-r", "encoder-small", "-o", tmp_path / "small", "--train", files["train"]]
    assert main([*map(str, arguments), "--validation", str(files["validation"])]) == 0
    small = export(tmp_path / "small", tmp_path / "small.bundle").path
    whole = export(parent, tmp_path / "parent.bundle").path
    assert onnx_bytes(small) <= 0.15 * onnx_bytes(whole)
    lost = measure_accuracy(whole, movie_sentences["test"]) - measure_accuracy(small, movie_sentences["test"])
    assert lost <= 0.015, "a single seed; benchmarks/encoder_small.py takes the mean of three"


@pytest.fixture
def measure_accuracy() -> Callable[[Path, Rows], float]:
    def measure(bundle: Path, rows: Rows) -> float:
        with load(bundle) as model:
            said = model.classify([text for text, _ in rows])
        return sum(answer.label == NAMES[label] for answer, (_, label) in zip(said, rows, strict=True)) / len(rows)

    return measure
