"""The precision audit against counts by hand, and its sentence on INT8 against rooflines by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from planish import profiles
from planish.export.audit import Audit
from planish.export.lint import lint_model
from planish.profiles.schema import Gpu, Memory, Profile
from tests.export.lint_models import decomposed, linear, stacked
from tests.export.tiny_graphs import SINGLE, Tiny, attention, int4_weight, int8_weight, quantized


def audited(model: ir.Model, folder: Path, profile: Profile | str | None = "rtx-4090", **options: int) -> Audit:
    ir.save(model, folder / "model.onnx")
    device = profiles.load(profile) if isinstance(profile, str) else profile
    return lint_model(folder / "model.onnx", device, **options).audit


def test_multiply_adds_of_an_encoder_layer_by_hand(tmp_path: Path) -> None:
    """Four projections in INT8, two products of attention in float16, at the profile's batch 8 and 128 tokens."""
    (phase,) = audited(attention(), tmp_path).phases
    projections = 4 * 8 * 128 * 128 * 128
    products = 2 * 8 * 4 * 128 * 128 * 32
    assert phase.macs == {"int8": projections, "fp16": products}
    assert phase.total == projections + products
    assert phase.unknown == ()
    assert sum(phase.shares.values()) == pytest.approx(1)


def test_attention_quantized_whole_is_counted_as_int8(tmp_path: Path) -> None:
    assert set(audited(attention("qkpv"), tmp_path).phases[0].macs) == {"int8"}


def test_a_half_quantized_product_is_a_float_product(tmp_path: Path) -> None:
    told = audited(linear(lambda tiny: tiny.floats(64, 64), quantize=quantized), tmp_path)
    assert set(told.phases[0].macs) == {"fp16"}
    assert told.idle_pairs == ("QuantizeLinear_0",)


@pytest.mark.parametrize(("weight", "kind"), [(int8_weight, "int8-weight"), (int4_weight, "int4-weight")])
def test_weight_only(weight: object, kind: str, tmp_path: Path) -> None:
    (phase,) = audited(linear(weight), tmp_path).phases  # type: ignore[arg-type]
    assert phase.macs == {kind: 8 * 64 * 64}


def decoder() -> ir.Model:
    """One linear, one product with the cache, named as docs/formats.md says."""
    tiny = Tiny()
    ids = tiny.input("input_ids", ["batch", "sequence"], ir.DataType.INT64)
    past = tiny.input("past_key_values.0.key", ["batch", 2, "past", 32])
    table = tiny.floats(100, 64)
    hidden = tiny.op("MatMul", tiny.op("Gather", table, ids), int8_weight(tiny))
    heads = tiny.op("Reshape", hidden, tiny.const(np.array([0, 0, 2, 32])))
    query = tiny.op("Transpose", heads, perm=[0, 2, 1, 3])
    keys = tiny.op("Concat", past, query, axis=2)
    scores = tiny.op("MatMul", query, tiny.op("Transpose", keys, perm=[0, 1, 3, 2]))
    return tiny.model(scores, keys)


def test_a_decoder_is_counted_as_prefill_and_as_decode(tmp_path: Path) -> None:
    prefill, decode = audited(decoder(), tmp_path).phases
    batch, tokens, past = 8, 128, 256
    assert prefill.macs == {"int8-weight": batch * tokens * 64 * 64, "fp16": batch * 2 * tokens * tokens * 32}
    assert decode.macs == {"int8-weight": batch * 64 * 64, "fp16": batch * 2 * (past + 1) * 32}
    assert (prefill.name, decode.name) == ("prefill", "decode")
    assert decode.at == "batch 8, 1 tokens, 256 in the cache"


def test_shapes_that_are_computed_are_followed(tmp_path: Path) -> None:
    """Shape, Gather, Concat, Reshape, as torch.onnx writes it."""
    tiny = Tiny()
    x = tiny.input("x", ["batch", "sequence", 64])
    shape = tiny.op("Shape", x)
    batch, length = (tiny.op("Gather", shape, tiny.const(np.array(at)), axis=0) for at in (0, 1))
    sizes = [tiny.op("Unsqueeze", one, tiny.const(np.array([0]))) for one in (batch, length)]
    wanted = tiny.op("Concat", *sizes, tiny.const(np.array([4])), tiny.const(np.array([-1])), axis=0)
    split = tiny.op("Transpose", tiny.op("Reshape", x, wanted), perm=[0, 2, 1, 3])
    out = tiny.op("MatMul", split, tiny.op("Transpose", split, perm=[0, 1, 3, 2]))
    (phase,) = audited(tiny.model(out), tmp_path).phases
    assert phase.macs == {"fp16": 8 * 4 * 128 * 128 * 16}


def test_what_cannot_be_told_is_counted_and_named(tmp_path: Path) -> None:
    tiny = Tiny()
    x = tiny.input("x", ["batch", "anything", 64])
    out = tiny.op("MatMul", x, tiny.floats(64, 64))
    told = audited(tiny.model(out), tmp_path)
    assert told.phases[0].unknown == ("MatMul_0",)
    assert "1 products not counted (MatMul_0, ...)" in "\n".join(told.lines())
    assert "nothing could be counted" in told.int8


def test_longest_input_bounds_the_shapes(tmp_path: Path) -> None:
    (phase,) = audited(attention(), tmp_path, max_length=16).phases
    assert phase.macs["int8"] == 4 * 8 * 16 * 128 * 128


def test_casts_and_float32_regions(tmp_path: Path) -> None:
    told = audited(decomposed(True), tmp_path)
    assert told.casts == 2
    assert [sorted(region) for region in told.fp32_regions] == [["Add", "Div", "Pow", "ReduceMean", "Sqrt"]]
    assert audited(decomposed(False), tmp_path).fp32_regions == ()


def residual(quantize: bool) -> ir.Model:
    tiny = Tiny()
    x = tiny.x()
    kept = quantized(tiny, x) if quantize else x
    return tiny.model(tiny.op("Add", tiny.op("MatMul", quantized(tiny, x), int8_weight(tiny)), kept))


@pytest.mark.parametrize("quantize", [True, False])
def test_residuals(quantize: bool, tmp_path: Path) -> None:
    told = audited(residual(quantize), tmp_path)
    assert (told.residuals, told.unquantized_residuals) == (1, int(not quantize))


def test_sums_that_are_no_residuals(tmp_path: Path) -> None:
    """Rotary positions add two products of one query; a bias is a constant; two tables are no layer."""
    tiny = Tiny()
    x = tiny.x()
    query = tiny.op("Add", tiny.op("MatMul", x, tiny.floats(64, 64)), tiny.half(np.ones(64)))
    turned = tiny.op(
        "Add", tiny.op("Mul", query, tiny.half(np.ones(64))), tiny.op("Mul", query, tiny.half(np.ones(64)))
    )
    assert audited(tiny.model(turned), tmp_path).residuals == 0
    assert audited(attention(), tmp_path).residuals == 1


def device(half: float, int8: float, bandwidth: float) -> Profile:
    """A GPU with these 10^12 operations and 10^9 bytes a second."""
    base = profiles.load("rtx-4090")
    gpu = Gpu("a GPU", "8.9", dense_fp16_tflops=half or None, dense_int8_tops=int8)
    memory = Memory(bytes=24_000_000_000, kind="device", bandwidth=int(bandwidth * 1e9))
    return dataclasses.replace(base, name="made-up", gpu=gpu, memory=memory)


def test_gains_by_hand(tmp_path: Path) -> None:
    """Bandwidth without end: only throughput counts. 2/3 of the work 4 times as fast, 1/3 as before."""
    told = audited(attention(), tmp_path, device(100, 400, 1e9))
    shares = told.phases[0].shares
    assert told.phases[0].gain == pytest.approx(1 / (shares["int8"] / 4 + shares["fp16"]))
    assert "it can pay, 67% of the multiply-adds" in told.int8


def test_int8_cannot_pay_where_memory_is_the_limit(tmp_path: Path) -> None:
    """Throughput without end: bytes count, and a product of long, narrow activations hardly shrinks."""
    told = audited(attention(), tmp_path, device(1e6, 4e6, 10))
    gain = told.phases[0].gain
    assert gain is not None
    half = 4 * (8 * 128 * 128 * 2 + 128 * 128 * 2 + 8 * 128 * 128 * 2)
    eight = 4 * (8 * 128 * 128 + 128 * 128 + 8 * 128 * 128 * 2)
    products = 2 * (8 * 4 * 128 * 32 * 2 * 2 + 8 * 4 * 128 * 128 * 2)
    assert gain == pytest.approx((half + products) / (eight + products))


def test_a_device_without_faster_int8(tmp_path: Path) -> None:
    told = audited(attention(), tmp_path, device(100, 100, 1e9))
    assert told.phases[0].gain == pytest.approx(1)
    assert "it cannot pay" in told.int8


def test_no_int8_yet(tmp_path: Path) -> None:
    told = audited(attention(linears="float"), tmp_path, device(100, 400, 1e9))
    assert told.phases[0].gain == pytest.approx(1)
    assert "no product is INT8; it could pay, about 2.00 times float16" in told.int8


def test_what_is_assumed_is_said(tmp_path: Path) -> None:
    assert "float16 taken as half the INT8 throughput" in audited(attention(), tmp_path, device(0, 400, 100)).int8
    assert "give a profile" in audited(attention(), tmp_path, None).int8
    assert "does not say" in audited(attention(), tmp_path, "cpu-x86-avx2").int8


def test_a_weight_of_three_axes_is_counted(tmp_path: Path) -> None:
    (phase,) = audited(stacked(True), tmp_path).phases
    assert phase.macs == {"int4-weight": 8 * 128 * 64 * 64}


def test_an_operator_that_is_not_looked_into_is_named(tmp_path: Path) -> None:
    tiny = Tiny()
    x = tiny.input("x", ["batch", 4, 16, 16])
    told = audited(tiny.model(tiny.op("Conv", x, tiny.floats(8, 4, 3, 3))), tmp_path)
    assert told.phases[0].unknown == ("Conv_0",)


def test_gemm_and_float32(tmp_path: Path) -> None:
    tiny = Tiny()
    out = tiny.op("Gemm", tiny.x(SINGLE), tiny.floats(32, 64, dtype=np.float32), transB=1)
    (phase,) = audited(tiny.model(out, dtype=SINGLE), tmp_path).phases
    assert phase.macs == {"fp32": 8 * 64 * 32}
