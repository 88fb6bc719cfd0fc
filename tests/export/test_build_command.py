"""`planish build` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("tensorrt_rtx", reason="NVIDIA publishes it for Linux on x86-64 only")

from planish.__main__ import main
from planish.runtime import verify
from tests.export.engine_bundles import make_bundle, make_profile


def test_it_says_what_it_takes_then_builds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, profile = make_bundle(tmp_path / "bundle"), make_profile(tmp_path)
    assert main(["build", str(bundle), "-p", str(profile)]) == 0
    said = capsys.readouterr()
    assert "planish: device memory: about" in said.err
    assert "planish: time: about" in said.err
    assert "2 fused attentions, products: 8 int8 x int8" in said.out
    assert "not run here" in said.out
    assert len(verify(bundle).engines) == 1


def test_json_is_the_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, profile = make_bundle(tmp_path / "bundle"), make_profile(tmp_path)
    assert main(["build", str(bundle), "-p", str(profile), "--optimization-level", "1", "--json"]) == 0
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert told["info"] == json.loads((bundle / "engines" / told["engine"] / "engine.json").read_bytes())
    assert told["info"]["build"]["optimization_level"] == 1
    assert told["proved"] is None
    assert said.err == ""


def test_a_dry_run_builds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, profile = make_bundle(tmp_path / "bundle"), make_profile(tmp_path)
    assert main(["build", str(bundle), "-p", str(profile), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "engine: tensorrt_rtx-1.7.1.116-sm89-small" in said
    assert "attention: 2 of 2 can be fused" in said
    assert not (bundle / "engines").exists()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--module", "tensorflow"], 2, "--module tensorrt or tensorrt_rtx"),
        (["--optimization-level", "9"], 2, "from 0 to 5"),
        (["--profile", "jetson-orin-nano-8gb"], 4, "compute capability 8.7"),
        (["--profile", "cpu-arm64"], 2, "a TensorRT engine"),
    ],
)
def test_refusals_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, words: str
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    assert main(["build", str(bundle), *options]) == code
    said = capsys.readouterr()
    assert words in said.err
    assert said.out == ""
    assert "Traceback" not in said.err
    assert not (bundle / "engines").exists()
