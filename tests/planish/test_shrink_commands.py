"""compress with training data and a measured latency, explain, leave-one-out and the latency table, on a tiny BERT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planish import latency, measure_steps
from planish.__main__ import main
from planish.compress.latency_table import LatencyTable
from planish.errors import CheckpointError, InputError
from planish.explain import explain
from planish.export.quiet import quiet
from planish.sliced import Shape
from tests.tiny import text, tiny_encoder

RECIPE: dict[str, Any] = {
    "schema": 1,
    "name": "tiny-small",
    "data": {"source": "train", "samples": 4, "sequence_length": 32, "max_length": 64},
    "passes": [
        {"pass": "trim-vocabulary"},
        {"pass": "prune", "flops": 0.6, "samples": 32, "length": 64, "multiple": 32},
        {"pass": "distill", "steps": 4, "batch_size": 8, "weights": {"logits": 1.0, "labels": 0.5}},
        {"pass": "int8-linear"},
        {"pass": "int8-embedding"},
    ],
}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with quiet():
        return tiny_encoder("bert", "text-classification", tmp_path_factory.mktemp("models") / "bert", steps=10)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled lines, long and short."""
    lines = [line for line in text().splitlines() if len(line) > 40][:80]
    made = [
        {"text": line[:40] if i % 2 else line, "label": "short" if i % 2 else "long"} for i, line in enumerate(lines)
    ]
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    path.write_text(json.dumps(RECIPE), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def shrunk(classifier: Path, rows: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("out") / "small"
    arguments = ["compress", str(classifier), "-r", str(recipe), "-o", str(output), "--train", str(rows)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure_steps, "SECONDS_EACH", 0.3)
        assert main([*arguments, "--measure", "2x16", "--json"]) == 0
    return output


def test_receipts_say_what_each_pass_did(shrunk: Path) -> None:
    receipts = json.loads((shrunk / "planish.json").read_text())["receipts"]
    assert [receipt["pass"] for receipt in receipts] == [step["pass"] for step in RECIPE["passes"]]
    for receipt in receipts:
        for side in (receipt["before"], receipt["after"]):
            assert side["latency"]["ms"] > 0
            assert side["flops"] > 0
            assert 0 <= side["quality"]["accuracy"] <= 1
            assert 0 <= side["quality"]["agreement"] <= 1
    trim, prune, distill, linear, _ = receipts
    assert trim["after"]["bytes"] < trim["before"]["bytes"]
    assert trim["after"]["flops"] == trim["before"]["flops"]
    assert trim["after"]["quality"]["agreement"] == 1.0, "on texts of the corpus nothing changes"
    assert prune["after"]["flops"] < 0.75 * prune["before"]["flops"]
    assert distill["after"]["parameters"] == distill["before"]["parameters"]
    assert linear["after"]["bytes"] < linear["before"]["bytes"]


def test_explain_prints_a_row_a_pass(shrunk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(shrunk)]) == 0
    told = capsys.readouterr().out
    for word in ("parent", "trim-vocabulary", "prune", "distill", "int8-linear", "accuracy", "2x16"):
        assert word in told
    assert main(["explain", str(shrunk), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(answer["explained"]["receipts"]) == 5
    assert answer["left_out"] == []


def test_leave_one_out_runs_the_recipe_without_each_pass(
    shrunk: Path, classifier: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["explain", str(shrunk), "--leave-one-out", "-m", str(classifier), "--train", str(rows), "--json"]
    assert main(arguments) == 0
    left = json.loads(capsys.readouterr().out.splitlines()[-1])["left_out"]
    assert [row["without"] for row in left] == ["nothing", *(step["pass"] for step in RECIPE["passes"])]
    sizes = {row["without"]: float(row["MB"]) for row in left}
    assert sizes["int8-linear"] > sizes["nothing"]
    assert sizes["prune"] > sizes["nothing"]


def test_explain_refuses_what_has_no_receipts(classifier: Path, shrunk: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="compressed checkpoint"):
        explain(classifier)
    facts = json.loads((shrunk / "planish.json").read_text())
    del facts["receipts"][0]["before"]
    (tmp_path / "planish.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="receipts with pass"):
        explain(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["explain", "SHRUNK", "--leave-one-out"], "--model"),
        (["latency", "MODEL"], "-o TABLE or --probes"),
        (["latency", "MODEL", "-o", "t.json", "--shape", "8"], "BATCHxLENGTH"),
        (["compress", "MODEL", "-r", "int8", "-o", "x", "--measure", "fast"], "BATCHxLENGTH"),
        (["compress", "MODEL", "-r", "int8", "-o", "x", "--validation", "v.jsonl"], "training data beside"),
        (["compress", "MODEL", "-r", "encoder-small", "-o", "x"], "training data"),
    ],
)
def test_usage(
    arguments: list[str],
    words: str,
    classifier: Path,
    shrunk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"SHRUNK": str(shrunk), "MODEL": str(classifier)}
    assert main([places.get(word, word) for word in arguments]) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_latency_table_is_measured_and_read(classifier: Path, tmp_path: Path) -> None:
    probes, table = tmp_path / "probes", tmp_path / "latency.json"
    with quiet():
        latency.prepare(str(classifier), "int8-dynamic", probes, points=2)
    assert main(["latency", str(probes), "-o", str(table), "--shape", "1x16", "--seconds", "2"]) == 0
    read = LatencyTable.load(table)
    assert (read.batch, read.length, read.layers, read.recipe) == (1, 16, 2, "int8-dynamic")
    assert read.heads[-1] == 4
    assert read.neurons[-1] == 256
    whole = read.predict([Shape(4, 4, 32, 256)] * 2)
    assert 0 < read.predict([Shape(1, 1, 32, 32)] * 2) < 1.5 * whole


def test_the_table_adds_up_for_times_that_are_linear() -> None:
    """Blocks that cost 1 + heads / 4 + neurons / 64 ms, on a base of 2."""
    probes = latency.probes_of(8, 256, 6, 32)
    times = [2 + probe.layers * (1 + probe.heads / 4 + probe.neurons / 64) for probe in probes]
    made = latency.table_of(probes, times, 6)
    assert made["base_ms"] == pytest.approx(2)
    attention = dict(zip(made["attention_ms"]["heads"], made["attention_ms"]["ms"], strict=True))
    ffn = dict(zip(made["ffn_ms"]["neurons"], made["ffn_ms"]["ms"], strict=True))
    for heads in attention:
        for neurons in ffn:
            assert attention[heads] + ffn[neurons] == pytest.approx(1 + heads / 4 + neurons / 64, abs=1e-3)


def test_a_noisy_probe_moves_the_table_by_its_share() -> None:
    """The least probe 20 % too slow: extrapolating from it alone, six blocks would be off by as much again."""
    probes = latency.probes_of(8, 256, 6, 32)
    times = [2 + probe.layers * (1 + probe.heads / 4 + probe.neurons / 64) for probe in probes]
    times[0] *= 1.2
    made = latency.table_of(probes, times, 6)
    whole = made["base_ms"] + 6 * (made["attention_ms"]["ms"][-1] + made["ffn_ms"]["ms"][-1])
    assert whole == pytest.approx(2 + 6 * (1 + 2 + 4), rel=0.05)


def test_probes_of_one_depth_have_no_base() -> None:
    probes = [latency.Probe(f"p{n}", 1, 4, n) for n in (32, 64)]
    made = latency.table_of(probes, [2.0, 3.0], 1)
    assert made["base_ms"] == 0
    assert made["attention_ms"]["ms"][0] + made["ffn_ms"]["ms"][1] == pytest.approx(3.0, abs=1e-4)


def test_probes_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    (tmp_path / "probes.json").write_text('{"probes": [{"name": "../x", "layers": 1, "heads": 1, "neurons": 1}]}')
    with pytest.raises(InputError, match="probes"):
        latency.measure(tmp_path, (1, 8))
    with pytest.raises(InputError, match="folder of probes"):
        latency.measure(tmp_path / "none", (1, 8))
