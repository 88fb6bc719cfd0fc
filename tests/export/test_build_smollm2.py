"""The real decoder: SmolLM2 with INT8 weights, exported, and built with both optimization profiles. Not run."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("tensorrt_rtx", reason="NVIDIA publishes it for Linux on x86-64 only")

from planish import export, runtime
from planish.compress import compress
from planish.export.build_bundle import prepare
from planish.export.quiet import quiet

LAYERS = 30


@pytest.mark.slow
def test_thirty_fused_attentions_in_both_profiles(smollm2_gguf: Path, tmp_path: Path) -> None:
    with quiet():
        compress(str(smollm2_gguf), "int8-weight-only", tmp_path / "checkpoint")
    bundle = export.export(tmp_path / "checkpoint", tmp_path / "bundle", profile="rtx-4090").path
    need = prepare(bundle).estimate
    made = export.build(bundle)
    assert made.info.diagnostic is not None
    assert set(made.info.diagnostic) == {"prefill", "decode"}
    for counts in made.info.diagnostic.values():
        assert counts["fused_attentions"] == LAYERS
        assert set(counts["gemms"]) == {"half x int8"}
    assert made.info.build["activation_bytes"] == pytest.approx(need.activation_bytes, rel=0.2)
    assert made.info.build["plan_bytes"] == pytest.approx(need.disk_bytes, rel=0.2)
    assert made.warnings == ()
    assert made.engine_id in runtime.verify(bundle).engines
