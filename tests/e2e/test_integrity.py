"""What a bundle promises is true: loosened tolerances show, broken weights do not pass, the base install is bare."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.tiny import tiny_encoder

ROOT = Path(__file__).resolve().parents[2]


def planish(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "planish", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    model = tiny_encoder("bert", "feature-extraction", folder / "model")
    done = planish("compress", model, "-r", "int8", "-o", folder / "checkpoint")
    assert done.returncode == 0, done.stderr
    return folder


def test_loosened_tolerance_is_visible(tiny: Path) -> None:
    done = planish("export", tiny / "checkpoint", "--atol", "5.0", "-o", tiny / "loose")
    assert done.returncode == 0, done.stderr
    parity = json.loads((tiny / "loose" / "manifest.json").read_text())["parity"]["ort"]
    assert parity["loosened"] is True
    assert parity["atol"] == 5.0 > parity["default_atol"]


def test_too_tight_tolerance_fails_and_leaves_nothing(tiny: Path) -> None:
    before = sorted(tiny.iterdir())
    done = planish("export", tiny / "checkpoint", "--atol", "1e-12", "-o", tiny / "tight")
    assert done.returncode == 1, done.stderr
    assert "planish: expected " in done.stderr
    assert sorted(tiny.iterdir()) == before


def test_export_is_deterministic(tiny: Path) -> None:
    digests = []
    for name in ("first", "second"):
        done = planish("export", tiny / "checkpoint", "-o", tiny / name, "--json")
        assert done.returncode == 0, done.stderr
        digests.append(json.loads(done.stdout.splitlines()[-1])["digest"])
    assert digests[0] == digests[1]


def tree_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def test_base_install_is_bare(minilm_bundle: Path, tmp_path: Path) -> None:
    """A wheel in a fresh environment: what `pip install planish` puts on a device, and that it answers there."""
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    venv.create(tmp_path / "env", with_pip=True)
    empty = tree_bytes(tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    install = [
        str(python),
        "-m",
        "pip",
        "install",
        "-q",
        "--no-compile",
        "-c",
        str(ROOT / "constraints.txt"),
        str(next(tmp_path.glob("*.whl"))),
    ]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown = tree_bytes(tmp_path / "env") - empty
    print(f"base install: {grown / 1e6:.0f} MB above an empty environment")
    assert grown <= 215_000_000
    code = (
        "import sys, planish.runtime as r\n"
        f"v = r.load({str(minilm_bundle)!r}).embed(['A planishing hammer.'])\n"
        "heavy = {'torch', 'transformers', 'onnx', 'pydantic'}\n"
        "print(v.shape, sorted({n.split('.')[0] for n in sys.modules} & heavy))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    said = subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip() == "(1, 384) []"
