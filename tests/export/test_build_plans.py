"""Real plans: built with TensorRT-RTX for three GPUs in three precisions, and looked into; never run."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest

pytest.importorskip("tensorrt_rtx", reason="NVIDIA publishes it for Linux on x86-64 only")

from planish import export, runtime
from planish.export.build_bundle import prepare
from planish.export.plan_report import programs, report
from tests.export.engine_bundles import make_bundle, make_profile
from tests.export.engine_graphs import LAYERS

LINEARS = 6 * LAYERS
GEMMS = {
    "int8": "int8 x int8",
    "int8-weight": "half x int8",
    "int4-weight": "half x int4",
    "fp8": "fp8_e4m3 x fp8_e4m3",
    "fp16": "half x half",
}
BUILDS = [(sm, linear) for sm in ("8.6", "8.9", "12.0") for linear in GEMMS if (sm, linear) != ("8.6", "fp8")]


@pytest.mark.parametrize(("sm", "linear"), BUILDS)
def test_an_encoder_is_built_fused_and_named_in_the_manifest(tmp_path: Path, sm: str, linear: str) -> None:
    bundle = make_bundle(tmp_path / "bundle", linear=linear)
    before = runtime.read_manifest(bundle)
    made = export.build(bundle, profile=str(make_profile(tmp_path, sm=sm)))
    manifest = runtime.verify(bundle)
    entry = manifest.engines[made.engine_id]
    assert made.engine_id == f"tensorrt_rtx-1.7.1.116-sm{sm.replace('.', '')}-small"
    assert (entry.dialect, entry.proved) == ("qdq", None)
    assert sorted(path.name for path in made.path.iterdir()) == ["engine.json", "model.plan"]
    assert {name: manifest.files[name] for name in before.files} == before.files, "a build changes no file"
    assert made.info.targets == (sm,)
    assert made.info.device is None
    assert made.info.diagnostic is not None
    (counts,) = made.info.diagnostic.values()
    assert counts["fused_attentions"] == LAYERS
    assert set(counts["gemms"]) == {GEMMS[linear]}
    products = counts["gemms"][GEMMS[linear]]
    assert products + 2 * counts["merged_qkv"] == LINEARS, "three products merged into one, or each on its own"


def test_a_decoder_gets_a_prefill_and_a_decode_profile(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", "decoder", external=True)
    assert (bundle / "onnx" / "qdq" / "model.onnx.data").is_file()
    made = export.build(bundle, profile=str(make_profile(tmp_path)))
    info = runtime.read_engine_info(made.path / "engine.json")
    prefill, decode = info.profiles
    assert [prefill.name, decode.name] == ["prefill", "decode"]
    assert prefill.shapes["input_ids"].max == (4, 16)
    assert prefill.shapes["logits_index"].max == (4, 16)
    assert prefill.shapes["past_key_values.0.key"].min[2] == 0
    assert decode.shapes["input_ids"].max == (4, 1)
    assert decode.shapes["logits_index"].max == (4, 1)
    assert decode.shapes["attention_mask"].max == (4, 25)
    assert set(info.onnx_sha256) == {"model.onnx", "model.onnx.data"}
    assert info.diagnostic is not None
    for name in ("prefill", "decode"):
        assert info.diagnostic[name]["fused_attentions"] == LAYERS
        assert info.diagnostic[name]["gemms"] == {"half x int8": LINEARS + 1}


def test_engine_json_holds_the_report(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    made = export.build(bundle, profile=str(make_profile(tmp_path)), optimization_level=2)
    told = json.loads((made.path / "engine.json").read_bytes())
    facts = told["build"]
    plan = (made.path / "model.plan").read_bytes()
    graph = (bundle / "onnx" / "qdq" / "model.onnx").read_bytes()
    assert told["onnx_sha256"] == {"model.onnx": hashlib.sha256(graph).hexdigest()}
    assert [item["name"] for item in told["inputs"]] == ["input_ids", "attention_mask"]
    assert told["profiles"][0]["shapes"]["input_ids"] == {"min": [1, 1], "opt": [2, 8], "max": [4, 16]}
    assert facts["plan_bytes"] == len(plan)
    assert facts["optimization_level"] == 2
    assert facts["timing_cache"] is None, "TensorRT-RTX has no use for one"
    assert 0 < facts["seconds"] < 600
    assert prepare(bundle, profile=str(tmp_path / "small.yaml")).facts.weights_bytes <= facts["weights_bytes"]
    assert facts["activation_bytes"] >= facts["scratch_bytes"] > 0
    assert facts["peak_memory_bytes"] > len(plan)
    assert all(isinstance(flag, str) for flag in facts["flags"])


def test_two_builds_are_one_plan_and_the_second_replaces_the_first(tmp_path: Path) -> None:
    bundle, profile = make_bundle(tmp_path / "bundle"), str(make_profile(tmp_path))
    first = export.build(bundle, profile=profile)
    digest = first.manifest.files[f"engines/{first.engine_id}/model.plan"].sha256
    second = export.build(bundle, profile=profile)
    assert second.manifest.files[f"engines/{second.engine_id}/model.plan"].sha256 == digest
    assert list(runtime.verify(bundle).engines) == [first.engine_id]
    other = export.build(bundle, profile=str(make_profile(tmp_path, name="other", sm="12.0")))
    assert sorted(runtime.verify(bundle).engines) == sorted([first.engine_id, other.engine_id])


def test_progress_counts_seconds_and_ends(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    bundle = make_bundle(tmp_path / "bundle")
    export.build(bundle, profile=str(make_profile(tmp_path)), progress=lambda *step: told.append(step))
    assert told
    assert {stage for stage, _, _ in told} == {"engine (seconds)"}
    assert all(0 <= done <= total for _, done, total in told)


def test_the_plan_report_reads_its_own_version_only(tmp_path: Path) -> None:
    made = export.build(make_bundle(tmp_path / "bundle"), profile=str(make_profile(tmp_path)))
    plan = (made.path / "model.plan").read_bytes()
    assert report(plan, "tensorrt_rtx", "1.7.1.116", ["default"], []) is not None
    assert report(plan, "tensorrt_rtx", "1.7.2.1", ["default"], []) is None
    assert report(plan, "tensorrt", "1.7.1.116", ["default"], []) is None
    assert report(plan, "tensorrt_rtx", "1.7.1.116", ["prefill", "decode"], []) is None, "another number of programs"
    assert report(b"no plan", "tensorrt_rtx", "1.7.1.116", ["default"], []) is None
    for cut in range(0, len(plan), math.ceil(len(plan) / 40)):
        list(programs(plan[:cut]))
