"""Engines of emitted decoders, built with TensorRT-RTX and looked into, never run: what is fused, what stays small."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

pytest.importorskip("tensorrt_rtx", reason="NVIDIA publishes it for Linux on x86-64 only")

import tensorrt_rtx as trt

from planish.export.decoder import build_decoder
from planish.export.graph import Built
from planish.export.plan_report import report
from tests.export.small_decoders import quantized, random_decoder

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2},
    "gpt2": {"n_embd": 256, "n_head": 4},
}
KINDS: dict[str, dict[str, Any] | None] = {
    "fp16": None,
    "int8": {"bits": 8, "symmetric": True, "group_size": None},
    "int4": {"bits": 4, "symmetric": True, "group_size": 64},
}
LAYERS = 2
PROFILES = {"prefill": ((1, 0), (16, 0), (64, 16)), "decode": ((1, 0), (1, 32), (1, 80))}
"""New and past positions: least, usual, most."""


def make(family: str, kind: str, folder: Path) -> Built:
    checkpoint = random_decoder(family, folder / "float", **SHAPES[family])
    settings = KINDS[kind]
    if settings is not None:
        checkpoint = quantized(checkpoint, folder / "q", **settings)
    return build_decoder(checkpoint, folder / "qdq", dialect="qdq")


def shape(name: str, of: Any, batch: int, new: int, past: int) -> tuple[int, ...]:
    if name.startswith("past_key_values"):
        return (batch, of[1], past, of[3])
    return {"attention_mask": (batch, new + past), "logits_index": (batch, 1)}.get(name, (batch, new))


def plan(path: Path) -> bytes:
    """Built for SM 8.9, strongly typed, a prefill and a decode profile."""
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    assert parser.parse_from_file(str(path)), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    for sizes in PROFILES.values():
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            value = network.get_input(index)
            shapes = [
                shape(value.name, value.shape, batch, *size) for batch, size in zip((1, 1, 4), sizes, strict=True)
            ]
            profile.set_shape(value.name, *shapes)
        config.add_optimization_profile(profile)
    data = builder.build_serialized_network(network, config)
    assert data is not None
    return bytes(data)


@pytest.mark.parametrize(
    ("family", "kind"), [("llama", "fp16"), ("llama", "int8"), ("llama", "int4"), ("gpt2", "int8")]
)
def test_attention_is_fused_and_integers_stay(family: str, kind: str, tmp_path: Path) -> None:
    built = make(family, kind, tmp_path)
    path = built.folder / built.files[0]
    products = [str(node.name) for node in ir.load(path).graph if node.op_type == "MatMul"]
    data = plan(path)
    counts = report(data, "tensorrt_rtx", trt.__version__, list(PROFILES), products)
    assert counts is not None
    for found in counts.values():
        assert found["fused_attentions"] == LAYERS, counts
        if kind != "int4":  # of which the report says less
            assert set(found["gemms"]) == {"half x half" if kind == "fp16" else "half x int8"}, counts
    large = {kind for size, kind in re.findall(rb"const_payload_size=(\d+) .*? type=(\w+)", data) if int(size) > 50_000}
    expected = {"fp16": {b"half"}, "int8": {b"int8"}, "int4": {b"int4", b"int8"}}
    assert large == expected[kind], "weights and tables as they were stored"


def test_ranges_that_need_float32_build_too(tmp_path: Path) -> None:
    """A residual stream, and a product that is halved before and doubled after, in float32."""
    from planish.export.decoder import measure_decoder
    from planish.export.qdq_ranges import ValueRanges

    checkpoint = random_decoder("llama", tmp_path / "float", **SHAPES["llama"])
    largest = dict(measure_decoder(checkpoint, tmp_path / "measured").largest)
    for name in list(largest):
        if "residual" in name or name.endswith("layers.0.mlp.down_proj"):
            largest[name] = 50000.0
    built = build_decoder(checkpoint, tmp_path / "qdq", dialect="qdq", ranges=ValueRanges(largest, "made up"))
    path = built.folder / built.files[0]
    counts = report(plan(path), "tensorrt_rtx", trt.__version__, list(PROFILES), [])
    assert counts is not None
    assert {found["fused_attentions"] for found in counts.values()} == {LAYERS}
