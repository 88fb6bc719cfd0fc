"""What planish exports for TensorRT keeps the linter's rules, and the bundle's own profile is what it is judged for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planish import profiles
from planish.__main__ import main
from planish.errors import BundleError
from planish.export import export
from planish.export.decoder import build_decoder
from planish.export.lint import lint_bundle, lint_model
from planish.export.quiet import quiet
from tests.export.small_decoders import FAMILIES, quantized, random_decoder
from tests.export.small_encoders import small_int8

LAYERS = 2
QUANTIZED = [name for name in FAMILIES if name != "mistral"]  # which is only exported as it is
WEIGHTS: dict[str, dict[str, Any]] = {
    "int8-weight": {"bits": 8, "symmetric": True, "group_size": None},
    "int4-weight": {"bits": 4, "symmetric": True, "group_size": 32},
}


@pytest.mark.parametrize(
    ("family", "kind"), [(family, "int8-weight") for family in QUANTIZED] + [("llama", "int4-weight")]
)
def test_decoders(family: str, kind: str, tmp_path: Path) -> None:
    """Weights in 8 or 4 bits, all attentions to be fused, every product counted in both phases."""
    checkpoint = quantized(random_decoder(family, tmp_path / "float"), tmp_path / "quantized", **WEIGHTS[kind])
    built = build_decoder(checkpoint, tmp_path / "qdq", dialect="qdq")
    told = lint_model(built.folder / built.files[0], profiles.load("rtx-4090"), max_length=96)
    assert told.broken == [], told.lines()
    assert (told.audit.fusible, told.audit.attentions) == (LAYERS, LAYERS)
    assert told.audit.residuals == (LAYERS if family == "neox" else 2 * LAYERS), (
        "one where both halves run side by side"
    )
    prefill, decode = told.audit.phases
    for phase in (prefill, decode):
        assert phase.unknown == ()
        assert phase.shares[kind] > 0.3
        assert set(phase.shares) <= {kind, "int8-weight", "fp16"}
    assert prefill.total > decode.total


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    with quiet():
        return export(
            small_int8("bert", "feature-extraction", folder), folder / "bundle", profile="jetson-orin-nano-8gb"
        ).path


def test_a_bundle_is_judged_for_its_profile(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Heads 8 wide are too narrow to fuse: the one warning a random, tiny BERT deserves."""
    assert main(["inspect", str(bundle), "--lint", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])["lint"]
    assert told["profile"] == "jetson-orin-nano-8gb"
    assert {finding["rule"] for finding in told["findings"]} == {"attention-head-width"}
    (phase,) = told["audit"]["phases"].values()
    assert phase["at"].endswith("40 tokens"), "the model takes no more"
    assert phase["shares"]["int8"] > 0.5
    assert told["audit"]["int8"].startswith("INT8 on jetson-orin-nano-8gb: encoder: it ca")
    assert lint_bundle(bundle, profiles.load("t4")).profile == "t4"


def test_a_bundle_without_a_qdq_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with quiet():
        made = export(small_int8("bert", "feature-extraction", tmp_path), tmp_path / "bundle").path
    with pytest.raises(BundleError, match="a qdq graph"):
        lint_bundle(made)
    assert main(["inspect", str(made), "--lint"]) == 2
    assert "export with a profile that has TensorRT" in capsys.readouterr().err


def test_a_damaged_bundle_is_refused_first(bundle: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    graph = copy / "onnx" / "qdq" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError):
        lint_bundle(copy)
