"""Engines of emitted decoders, built with TensorRT-RTX and looked into, never run: what is fused, what stays small."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorrt_rtx", reason="NVIDIA publishes it for Linux on x86-64 only")

from planish.export.decoder import build_decoder
from planish.export.graph import Built
from tests.export.decoder_engines import Sizes, counts, plan
from tests.export.small_decoders import quantized, random_decoder

_LLAMA = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "gpt2": {"n_embd": 256, "n_head": 4},
}
KINDS: dict[str, dict[str, Any] | None] = {
    "fp16": None,
    "int8": {"bits": 8, "symmetric": True, "group_size": None},
    "int4": {"bits": 4, "symmetric": True, "group_size": 64},
}
LAYERS = 2
PROFILES: Sizes = {"prefill": ((1, 0), (16, 0), (64, 16)), "decode": ((1, 0), (1, 32), (1, 80))}


def make(family: str, kind: str, folder: Path) -> Built:
    checkpoint = random_decoder(family, folder / "float", **SHAPES[family])
    settings = KINDS[kind]
    if settings is not None:
        checkpoint = quantized(checkpoint, folder / "q", **settings)
    return build_decoder(checkpoint, folder / "qdq", dialect="qdq")


@pytest.mark.parametrize(
    ("family", "kind", "target"),
    [
        ("llama", "fp16", "SM89"),
        ("llama", "int8", "SM86"),
        ("llama", "int4", "SM89"),
        ("gpt2", "int8", "SM89"),
        ("qwen2", "int8", "SM120"),
    ],
)
def test_attention_is_fused_and_integers_stay(family: str, kind: str, target: str, tmp_path: Path) -> None:
    built = make(family, kind, tmp_path)
    path = built.folder / built.files[0]
    data = plan(path, PROFILES, target)
    for found in counts(path, data, PROFILES).values():
        assert found["fused_attentions"] == LAYERS
        if kind != "int4":  # of which the report says less
            assert set(found["gemms"]) == {"half x half" if kind == "fp16" else "half x int8"}
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
    told = counts(path, plan(path, PROFILES), PROFILES)
    assert {found["fused_attentions"] for found in told.values()} == {LAYERS}
