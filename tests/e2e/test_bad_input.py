"""A user's mistake gets one line on stderr, the right exit code, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def planish(*arguments: str | Path, cwd: Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "planish", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Exit ``code``, no traceback, and one ``planish: expected ..., got ...; ...`` line that has ``words``."""
    assert done.returncode == code, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("planish: expected ")]
    assert len(said) == 1, done.stderr
    for word in ("got", ";", *words):
        assert word in said[0], said[0]


def leftovers(folder: Path, *known: str) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in known)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compress", "nowhere", "-r", "int8", "-o", "out"], ["nowhere"]),
        (["export", "nowhere", "-o", "out"], ["nowhere"]),
        (["verify", "nowhere"], ["nowhere"]),
        (["run", "nowhere", "text"], ["nowhere"]),
        (["inspect", "nowhere"], ["nowhere"]),
        (["gate", "nowhere", "--baseline", "nowhere"], ["nowhere"]),
        (["bench", "nowhere"], ["nowhere"]),
        (["ship", "nowhere", "-r", "int8", "-o", "out"], ["nowhere"]),
        (["profiles", "show", "jetson-orin-nano-9gb"], ["jetson-orin-nano-8gb"]),
    ],
    ids=lambda value: value[0],
)
def test_missing_things(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    refused(planish(*arguments, cwd=tmp_path), 2, *words)
    assert leftovers(tmp_path) == []


def test_unknown_command_names_the_nearest(tmp_path: Path) -> None:
    refused(planish("comprss", cwd=tmp_path), 2, "compress")


def test_unknown_recipe_key_and_name(minilm: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("schema: 1\nname: mine\npasses:\n  - pass: weight-only\n    bitz: 4\n")
    refused(planish("compress", minilm, "-r", "mine.yaml", "-o", "out", cwd=tmp_path), 2, "bitz", "bits")
    refused(planish("compress", minilm, "-r", "int88", "-o", "out", cwd=tmp_path), 2, "int8")
    assert leftovers(tmp_path, "mine.yaml") == []


def test_unknown_profile(minilm: Path, tmp_path: Path) -> None:
    refused(planish("export", minilm, "-p", "h2000", "-o", "out", cwd=tmp_path), 2, "h200")
    assert leftovers(tmp_path) == []


def test_truncated_checkpoint(minilm: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(minilm, broken)
    weights = broken / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    refused(planish("compress", broken, "-r", "int8", "-o", "out", cwd=tmp_path), 2, "model.safetensors")
    refused(planish("export", broken, "-o", "out", cwd=tmp_path), 2, "model.safetensors")
    assert leftovers(tmp_path, "broken") == []


def test_wrong_architecture(minilm: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(minilm, other)
    config = json.loads((other / "config.json").read_text())
    config.update(architectures=["WhisperForConditionalGeneration"], model_type="whisper")
    (other / "config.json").write_text(json.dumps(config))
    for command in (["compress", other, "-r", "int8"], ["export", other]):
        refused(planish(*command, "-o", "out", cwd=tmp_path), 2, "hisper")
    assert leftovers(tmp_path, "other") == []


def test_output_that_exists(minilm: Path, tmp_path: Path) -> None:
    kept = tmp_path / "out"
    kept.mkdir()
    (kept / "mine.txt").write_text("mine")
    for command in (["compress", minilm, "-r", "int8"], ["export", minilm], ["ship", minilm, "-r", "int8"]):
        refused(planish(*command, "-o", "out", cwd=tmp_path), 2, "out")
    assert (kept / "mine.txt").read_text() == "mine"


def test_jsonl_with_a_bad_line(minilm_bundle: Path, minilm_parent: Path, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "good"}\n{"text": \n')
    refused(
        planish("gate", minilm_bundle, "-b", minilm_parent, "--data", "data.jsonl", cwd=tmp_path), 2, "data.jsonl", "2"
    )


def test_json_says_the_error_too(tmp_path: Path) -> None:
    done = planish("verify", "nowhere", "--json", cwd=tmp_path)
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["ok"], told["exit_code"], told["error"]) == (False, 2, "BundleError")
    done = planish("verify", "--nope", "--json", cwd=tmp_path)
    refused(done, 2, "--nope")
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["ok"], told["exit_code"], told["error"]) == (False, 2, "InputError")


@pytest.mark.parametrize("harm", ["changed", "missing", "extra", "linked"])
def test_harmed_bundles(harm: str, minilm_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(minilm_bundle, bundle)
    victim = bundle / "tokenizer.json"
    if harm == "changed":
        data = bytearray(victim.read_bytes())
        data[1000] ^= 1
        victim.write_bytes(data)
    elif harm == "missing":
        victim.unlink()
    elif harm == "extra":
        victim = bundle / "extra.bin"
        victim.write_bytes(b"x")
    else:
        victim.rename(tmp_path / "elsewhere.json")
        victim.symlink_to(tmp_path / "elsewhere.json")
    refused(planish("verify", bundle, cwd=tmp_path), 2, victim.name)
    refused(planish("run", bundle, "text", cwd=tmp_path), 2, victim.name)


def test_full_disk(minilm: Path, tmp_path: Path) -> None:
    """A file-size limit stands in for the full disk: the kernel refuses the write in the same way."""
    limited = f"ulimit -f 4096; exec {sys.executable} -m planish compress {minilm} -r int8 -o out"
    done = subprocess.run(["bash", "-c", limited], cwd=tmp_path, capture_output=True, text=True, check=False)
    refused(done, 4, "disk")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("command", ["compress", "export", "ship"])
def test_control_c_leaves_nothing_half_written(command: str, minilm: Path, tmp_path: Path) -> None:
    """Finished calibration may stay to be continued from, if the message says where."""
    arguments = [command, str(minilm), *([] if command == "export" else ["-r", "int8"])]
    process = subprocess.Popen(
        [sys.executable, "-m", "planish", *arguments, "-o", "out"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_work(process, tmp_path)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "interrupted" in said
    assert "Traceback" not in said
    kept = leftovers(tmp_path)
    assert kept == [] or (kept in ([".out.partial"], [".out.work"]) and kept[0] in said and command != "export")


def wait_for_work(process: subprocess.Popen[str], folder: Path) -> None:
    """Return once the command has begun to write (its partial folder is there)."""
    deadline = time.monotonic() + 300
    while not any(folder.iterdir()):
        assert process.poll() is None, "the command ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.02)
