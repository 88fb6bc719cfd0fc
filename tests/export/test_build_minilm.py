"""The real model: MiniLM in INT8, exported, and built for three GPUs. Built and inspected, not run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tensorrt_rtx", reason="NVIDIA publishes it for Linux on x86-64 only")

from planish import export, runtime
from planish.compress import compress
from planish.export.build_bundle import prepare
from planish.export.quiet import quiet
from tests.export.engine_bundles import make_profile

LAYERS = 6
SHAPES = {"batch": [1, 8, 32], "sequence": [1, 128, 512]}


@pytest.fixture(scope="module")
def bundle(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("minilm-engine")
    with quiet():
        compress(str(minilm), "int8", folder / "checkpoint")
    return export.export(folder / "checkpoint", folder / "bundle", profile="rtx-4090").path


@pytest.mark.parametrize("sm", ["8.6", "8.9", "12.0"])
def test_int8_products_and_fused_attention_in_28_megabytes(bundle: Path, tmp_path: Path, sm: str) -> None:
    profile = str(make_profile(tmp_path, name=f"sm{sm.replace('.', '')}", sm=sm, **SHAPES))
    need = prepare(bundle, profile=profile).estimate
    made = export.build(bundle, profile=profile)
    facts = made.info.build
    assert made.info.diagnostic == {
        "default": {"fused_attentions": LAYERS, "gemms": {"int8 x int8": 4 * LAYERS}, "merged_qkv": LAYERS}
    }
    assert facts["plan_bytes"] <= 28_000_000
    assert facts["activation_bytes"] == pytest.approx(need.activation_bytes, rel=0.5)
    assert facts["weights_bytes"] == pytest.approx(need.weights_bytes, rel=0.1)
    assert facts["plan_bytes"] <= need.disk_bytes <= 1.5 * facts["plan_bytes"]
    assert made.warnings == ()
    assert made.engine_id in runtime.verify(bundle).engines


def test_memory_is_what_was_estimated(bundle: Path, tmp_path: Path) -> None:
    """In a process of its own: this one has held torch."""
    profile = make_profile(tmp_path, name="own", **SHAPES)
    command = [sys.executable, "-m", "planish", "build", str(bundle), "--profile", str(profile), "--json"]
    told = []
    for options in (["--dry-run"], []):
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        told.append(json.loads(done.stdout.splitlines()[-1]))
    expected, facts = told[0]["estimate"], told[1]["info"]["build"]
    assert 0.6 * expected["build_bytes"] <= facts["peak_memory_bytes"] <= 1.2 * expected["build_bytes"]
