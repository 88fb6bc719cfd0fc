"""``ship`` refuses what it cannot use before it compresses, continues where it was stopped, and loses no bundle."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from planish import runtime
from planish.__main__ import main
from planish.compress import open_checkpoint
from planish.errors import DataError, HostError
from planish.export.quiet import quiet
from planish.outputs import move
from planish.ship import read_samples
from tests.tiny import tiny_decoder, tiny_encoder

RECIPE = """schema: 1
name: quick
data: {samples: 2, sequence_length: 32}
passes: [{pass: weight-only, bits: 4, group_size: 32, method: gptq}]
"""
INTERRUPTED = """
import signal, sys
from planish import say
from planish.__main__ import main
stop = sys.argv[1]
def progress(quiet):
    def advance(stage, done, total):
        if stage == "weight-only" and done >= 5 or stage == stop:
            signal.raise_signal(signal.SIGINT)
    return advance
say.plain_progress = progress
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with quiet():
        return tiny_encoder("bert", "text-classification", tmp_path_factory.mktemp("models") / "bert", steps=0)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with quiet():
        return tiny_decoder("gpt2", tmp_path_factory.mktemp("models") / "gpt2", steps=1)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory in which nothing may compress."""

    def compress(*arguments: object, **options: object) -> None:
        pytest.fail("it compresses before it has checked")

    monkeypatch.setattr("planish.compress.driver.compress", compress)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "."], "something already there"),
        (["-o", "file/out"], "got a file at"),
        (["-o", "new/deep/out"], "mkdir -p"),
        (["-o", "a" * 300], "File name too long"),
        (["-o", "out", "--keep-checkpoint", "out"], "--keep-checkpoint outside --output"),
        (["-o", "out", "--keep-checkpoint", "out/ck"], "--keep-checkpoint outside --output"),
        (["-o", "out", "--keep-checkpoint", "link/out"], "--keep-checkpoint outside --output"),
        (["-o", "out", "--keep-checkpoint", "out.rejected/ck"], "outside the rejected bundle"),
        (["-o", "empty/out", "--keep-checkpoint", "empty"], "--output outside --keep-checkpoint"),
        (["-o", "out", "--keep-checkpoint", "new/ck"], "mkdir -p"),
        (["-o", "out", "-p", "h2000"], "did you mean 'h200'?"),
        (["-o", "out", "-r", "int88"], "int8"),
        (["-o", "out", "--opset", "7"], "opset 21"),
        (["-o", "out", "--task", "nope"], "a task planish exports"),
        (["-o", "out", "--task", "fill-mask"], "all weights of a model for fill-mask"),
        (["-o", "out", "--atol", "nan"], "a tolerance above 0"),
        (["-o", "out", "--max-loss", "nan"], "max_loss_points"),
        (["-o", "out", "--seconds", "0"], "seconds as a finite number above 0"),
        (["-o", "out", "--data", "nowhere.jsonl"], "a readable file nowhere.jsonl"),
        (["-o", "out", "--data", "bad.jsonl"], "bad.jsonl line 2: a label of the model"),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, list) else "",
)
def test_refused_before_it_compresses(
    arguments: list[str], words: str, classifier: Path, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (place / "file").touch()
    (place / "empty").mkdir()
    (place / "link").symlink_to(place)
    (place / "bad.jsonl").write_text('{"text": "a", "label": "short"}\n{"text": "b", "label": "shrt"}\n')
    before = sorted(place.rglob("*"))
    recipe = [] if "-r" in arguments else ["-r", "int8"]
    assert main(["ship", str(classifier), *recipe, *arguments]) == 2
    (said,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("planish: expected ")]
    assert words in said
    assert sorted(place.rglob("*")) == before


def interrupted(stop: str, model: Path, folder: Path) -> str:
    """Ship in a process that presses Ctrl-C in the second block (or at a stage); what it said."""
    (folder / "quick.yaml").write_text(RECIPE)
    command = ["ship", str(model), "-r", "quick.yaml", "-o", "out", "--no-latency"]
    arguments = [sys.executable, "-c", INTERRUPTED, stop, *command]
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_lists_of_labels_are_data_of_models_that_say_several(classifier: Path, tmp_path: Path) -> None:
    data, several = tmp_path / "data.jsonl", tmp_path / "several"
    data.write_text('{"text": "a", "label": ["short", "long"]}\n{"text": "b", "label": []}\n')
    shutil.copytree(classifier, several)
    config = json.loads((several / "config.json").read_text())
    (several / "config.json").write_text(json.dumps(config | {"problem_type": "multi_label_classification"}))
    opened = open_checkpoint(several)
    (several / "model.safetensors").unlink()  # labels stand in config.json: no weight is read for them
    samples = read_samples(opened, None, data)
    assert samples is not None
    assert [len(sample.label) for sample in samples.samples] == [2, 0]
    with pytest.raises(DataError, match=r"data\.jsonl line 1"):
        read_samples(open_checkpoint(classifier), None, data)


def test_control_c_names_what_is_kept_and_ship_continues(
    decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from planish.compress import weight_only

    work = tmp_path / ".out.work"
    pieces = work / ".checkpoint.partial"
    assert f"interrupted; finished layers are kept in {pieces}; the same command" in interrupted("", decoder, tmp_path)
    assert sorted(item.name for item in work.iterdir()) == [".checkpoint.partial", "lock"]
    # stopped again before compress is reached: nothing is lost, and that is said
    assert f"finished layers are kept in {pieces}" in interrupted("parity", decoder, tmp_path)
    assert len(list(pieces.glob("*.safetensors"))) == 1
    monkeypatch.chdir(tmp_path)
    assert main(["ship", str(decoder), "-r", "quick.yaml", "-o", "out", "--opset", "7"]) == 2  # a slip costs nothing
    calls = []
    real = weight_only.gptq
    monkeypatch.setattr(weight_only, "gptq", lambda *given, **more: [calls.append(1), real(*given, **more)][1])
    assert main(["ship", str(decoder), "-r", "quick.yaml", "-o", "out", "--no-latency"]) in (0, 1, 3)
    assert len(calls) == 4  # the second block of GPT-2 alone
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("out")]) == 1
    assert not work.exists()


def test_control_c_before_a_layer_is_finished_leaves_nothing(decoder: Path, tmp_path: Path) -> None:
    assert "interrupted; nothing half-written was left" in interrupted("parity", decoder, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["quick.yaml"]


def test_a_work_folder_that_is_busy_or_foreign(
    classifier: Path, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    work = place / ".out.work"
    work.mkdir()
    (work / "diary.txt").write_text("mine")
    command = ["ship", str(classifier), "-r", "int8", "-o", "out"]
    assert main(command) == 2
    assert "did not write" in capfd.readouterr().err
    (work / "diary.txt").unlink()
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(command) == 2
    assert "another run" in capfd.readouterr().err
    assert (work / "lock").exists()


def test_outputs_stand_and_leftovers_of_a_killed_run_go(classifier: Path, tmp_path: Path) -> None:
    leftover = tmp_path / ".out.work" / "bundle" / "onnx"
    leftover.mkdir(parents=True)
    (tmp_path / "out").mkdir()  # an empty folder gives way
    paths = [str(tmp_path / name) for name in ("out", "kept")]
    command = ["ship", str(classifier), "-r", "int8", "--no-latency", "-o", paths[0], "--keep-checkpoint", paths[1]]
    assert main(command) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "out"]
    assert runtime.verify(tmp_path / "out").to_json()["gates"]
    assert (tmp_path / "kept" / "model.safetensors").is_file()


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EACCES])
def test_moving_to_another_file_system_is_whole_or_not_at_all(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, kept = tmp_path / "made", tmp_path / "kept"
    (made / "deep").mkdir(parents=True)
    (made / "deep" / "file").write_text("x")
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if source == made:
            raise OSError(code, os.strerror(code))
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    if code == errno.EXDEV:
        move(made, kept)
        assert (kept / "deep" / "file").read_text() == "x"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "made"]
    else:
        with pytest.raises(HostError):
            move(made, kept)
        assert [path.name for path in tmp_path.iterdir()] == ["made"]
