"""Graphs as other tools make them get the verdict that TensorRT-RTX's parser and builder give them.

ONNX Runtime's are made here, of a small BERT. NNCF and ModelOpt are not installed; their patterns are written down, and
each test says which facts it reproduces.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("tensorrt_rtx", reason="NVIDIA publishes it for Linux on x86-64 only")
import torch
import transformers

from planish import profiles
from planish.export.lint import LintReport, lint_model
from planish.export.quiet import quiet
from tests.export.tiny_graphs import HALF, SINGLE, Built, Tiny, attention, build, int8_weight, quantized

VOCABULARY, LONGEST = 100, 128


class Encoder(torch.nn.Module):
    """Inputs by name and one output, as users export them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers, heads 16 wide, by torch.onnx.export, float32."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        vocab_size=VOCABULARY,
        max_position_embeddings=LONGEST,
        attn_implementation="eager",
    )
    file = tmp_path_factory.mktemp("bert") / "bert.onnx"
    ids = torch.ones(2, 8, dtype=torch.long)
    axes = {0: torch.export.Dim("batch", min=1, max=32), 1: torch.export.Dim("sequence", min=2, max=LONGEST)}
    with quiet():
        program = torch.onnx.export(
            Encoder(transformers.BertModel(config, add_pooling_layer=False)).eval(),
            (),
            kwargs={"input_ids": ids, "attention_mask": ids.clone()},
            dynamo=True,
            opset_version=21,
            dynamic_shapes={"input_ids": axes, "attention_mask": axes},
            verbose=False,
        )
    program.save(file)
    return file


class Texts:
    """Random ids for ONNX Runtime's calibrator."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.left: Iterator[dict[str, Any]] = iter(
            [
                {"input_ids": random.integers(0, VOCABULARY, (2, 8)), "attention_mask": np.ones((2, 8), np.int64)}
                for _ in range(4)
            ]
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self.left, None)


def verdicts(file: Path) -> tuple[LintReport, Built]:
    """The linter's, and the builder's."""
    return lint_model(file, profiles.load("rtx-4090")), build(ir.load(file))


def static(bert: Path, file: Path, symmetric: bool, operators: list[str] | None = None) -> Path:
    from onnxruntime.quantization import quantize_static

    options = {"ActivationSymmetric": True, "WeightSymmetric": True} if symmetric else {}
    quantize_static(bert, file, Texts(), extra_options=options, op_types_to_quantize=operators)
    return file


def test_onnx_runtime_static_defaults(bert: Path, tmp_path: Path) -> None:
    """Zero points, an int32 bias, quantized outputs, float32 all around: refused, and nothing would be fused."""
    report, built = verdicts(static(bert, tmp_path / "static.onnx", symmetric=False))
    assert not built.ok
    assert not report.ok
    broken = {"symmetric-zero-point", "int32-bias", "quantized-product-output", "quantize-feeds-nothing"}
    assert broken | {"fp16-scales", "fp16-attention"} == set(report.broken)
    assert (report.audit.fusible, report.audit.attentions) == (0, 2)


def test_onnx_runtime_static_symmetric_products(bert: Path, tmp_path: Path) -> None:
    """The table's "ORT static": symmetric, without the norms' int32 biases, it builds, and no attention is fused."""
    report, built = verdicts(static(bert, tmp_path / "static.onnx", symmetric=True, operators=["MatMul"]))
    assert built.ok, built.said
    assert report.ok, report.lines()
    assert (report.audit.fusible, built.fused_attentions) == (0, 0)
    assert {"fp16-scales", "fp16-attention", "quantized-product-output"} <= set(report.broken)
    assert report.audit.phases[0].shares["int8"] == 1.0
    assert set(built.products) == {"int8"}


def test_onnx_runtime_dynamic(bert: Path, tmp_path: Path) -> None:
    """DynamicQuantizeLinear and MatMulInteger: no TensorRT reads them."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(bert, tmp_path / "dynamic.onnx", weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"])
    report, built = verdicts(tmp_path / "dynamic.onnx")
    assert not built.ok
    assert [finding.rule for finding in report.findings if finding.severity == "error"] == [
        "supported-operator" for _ in range(sum(finding.severity == "error" for finding in report.findings))
    ]
    assert not report.ok
    assert report.audit.phases[0].shares["int8"] == 1.0
    assert report.audit.fusible == 0


def test_onnx_runtime_weight_only(bert: Path, tmp_path: Path) -> None:
    """MatMulNBits of com.microsoft."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(bert), block_size=32, is_symmetric=True)
    quantizer.process()
    quantizer.model.save_model_to_file(str(tmp_path / "nbits.onnx"))
    report, built = verdicts(tmp_path / "nbits.onnx")
    assert not built.ok
    assert report.broken == ["standard-domain", "fp16-attention"]
    assert {finding.node for finding in report.findings if finding.rule == "standard-domain"} == {
        node.name for node in ir.load(tmp_path / "nbits.onnx").graph if node.op_type == "MatMulNBits"
    }
    assert set(report.audit.phases[0].shares) == {"int4-weight", "fp32"}


def test_onnx_runtime_fused(bert: Path, tmp_path: Path) -> None:
    """onnxruntime.transformers' optimizer: SkipLayerNormalization, BiasGelu."""
    from onnxruntime.transformers.optimizer import optimize_model

    with quiet():
        fused = optimize_model(str(bert), "bert", num_heads=4, hidden_size=64, opt_level=0)
    fused.save_model_to_file(str(tmp_path / "fused.onnx"))
    report, built = verdicts(tmp_path / "fused.onnx")
    assert not built.ok
    assert "standard-domain" in report.broken


def test_onnx_runtime_float16(bert: Path, tmp_path: Path) -> None:
    """The table's fp16: clean, every attention fused."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(bert), keep_io_types=True), tmp_path / "half.onnx")
    report, built = verdicts(tmp_path / "half.onnx")
    assert report.broken == []
    assert (report.audit.fusible, built.fused_attentions) == (2, 2)
    assert report.audit.phases[0].shares == {"fp16": 1.0}


def test_float32(bert: Path) -> None:
    """The table's fp32: it builds, nothing is fused; TensorRT-RTX refuses it for Turing."""
    report, built = verdicts(bert)
    assert report.broken == ["fp16-attention"]
    assert (report.audit.fusible, built.fused_attentions) == (0, 0)
    turing = profiles.load("t4")
    from planish.export.lint import Build

    refused = lint_model(bert, turing, build=Build("tensorrt_rtx", "1.7.1.116", ("7.5",)))
    assert "turing-fp32-product" in refused.broken
    assert not build(ir.load(bert), "7.5").ok


def nncf(default: bool, floats: Any) -> ir.Model:
    """One attention as NNCF 3.4 places its quantizers with ModelType.TRANSFORMER.

    Facts, read from a graph it made of a BERT by torch.onnx: SmoothQuant multiplies before each QuantizeLinear; one
    pair feeds queries, keys and values; each weight ``[in, out]`` has int8 zero points of 0 and a scale an output
    channel (axis 1); by default the sums (product and bias) of queries and keys are quantized before Reshape and
    Transpose, probabilities and values are not; scores are scaled after the product. ``default`` False: attention is
    ignored.
    """
    tiny, heads, width = Tiny(), 4, 32
    size = heads * width
    dtype = HALF if floats == np.float16 else SINGLE
    x, mask = (
        tiny.input("x", ["batch", "sequence", size], dtype),
        tiny.input("mask", ["batch", 1, 1, "sequence"], dtype),
    )

    def smoothed(value: ir.Value) -> ir.Value:
        return quantized(tiny, tiny.op("Mul", value, tiny.const(np.ones((1, 1, size), floats))), floats=floats)

    def linear(value: ir.Value) -> ir.Value:
        product = tiny.op("MatMul", value, int8_weight(tiny, size, size, floats=floats))
        return tiny.op("Add", product, tiny.const(np.zeros(size, floats)))

    def split(value: ir.Value, order: list[int]) -> ir.Value:
        shape = tiny.const(np.array([0, 0, heads, width], np.int64))
        return tiny.op("Transpose", tiny.op("Reshape", value, shape), perm=order)

    shared = smoothed(x)
    query, key, value = linear(shared), linear(shared), linear(shared)
    if default:
        query, key = (quantized(tiny, one, floats=floats) for one in (query, key))
    scores = tiny.op("MatMul", split(query, [0, 2, 1, 3]), split(key, [0, 2, 3, 1]))
    scores = tiny.op("Add", tiny.op("Mul", scores, tiny.const(np.asarray(width**-0.5, floats))), mask)
    context = tiny.op("MatMul", tiny.op("Softmax", scores, axis=-1), split(value, [0, 2, 1, 3]))
    merged = tiny.op("Reshape", tiny.op("Transpose", context, perm=[0, 2, 1, 3]), tiny.const(np.array([0, 0, size])))
    return tiny.model(tiny.op("Add", linear(smoothed(merged)), x), dtype=dtype)


@pytest.mark.parametrize(
    ("default", "floats", "broken"),
    [
        (False, np.float16, []),
        (True, np.float16, ["attention-all-or-none"]),
        (True, np.float32, ["fp16-scales", "fp16-attention", "attention-all-or-none"]),
    ],
)
def test_nncf(default: bool, floats: Any, broken: list[str], tmp_path: Path) -> None:
    """The table: NNCF's default placement builds with no attention fused; with attention ignored and fp16, all are."""
    ir.save(nncf(default, floats), tmp_path / "nncf.onnx")
    report, built = verdicts(tmp_path / "nncf.onnx")
    assert built.ok, built.said
    assert report.broken == broken
    assert report.audit.fusible == built.fused_attentions == (0 if default else 1)
    assert report.audit.phases[0].shares["int8"] > 0.5


@pytest.mark.parametrize("sign", [1, -1])
def test_nncf_weight_compression(sign: int, tmp_path: Path) -> None:
    """NNCF's compress_weights writes signed scales (symmetric modes) that TensorRT's parser refuses."""
    tiny = Tiny()
    weight = tiny.const(tiny.random.integers(-8, 8, (64, 64)).astype(np.int8))
    scales = tiny.half(np.where(np.arange(64) % 2, 0.01 * sign, 0.01))
    ir.save(
        tiny.model(tiny.op("MatMul", tiny.x(), tiny.op("DequantizeLinear", weight, scales, axis=1))),
        tmp_path / "compressed.onnx",
    )
    report, built = verdicts(tmp_path / "compressed.onnx")
    assert built.ok == report.ok == (sign > 0)
    assert report.broken == ([] if sign > 0 else ["positive-scale"])


def test_nncf_asymmetric_weights(tmp_path: Path) -> None:
    """NNCF's INT8 weights by default are uint8 with a zero point a channel, before DequantizeLinear in float32."""
    tiny = Tiny()
    weight = tiny.const(tiny.random.integers(0, 255, (64, 64)).astype(np.uint8))
    scales, zeros = tiny.const(np.full(64, 0.01, np.float32)), tiny.const(np.full(64, 122, np.uint8))
    right = tiny.op("DequantizeLinear", weight, scales, zeros, axis=1)
    ir.save(tiny.model(tiny.op("MatMul", tiny.x(SINGLE), right), dtype=SINGLE), tmp_path / "compressed.onnx")
    report, built = verdicts(tmp_path / "compressed.onnx")
    assert not built.ok
    assert report.broken == ["symmetric-zero-point", "signed-type", "fp16-scales"]


def test_modelopt_operators_of_its_own(tmp_path: Path) -> None:
    """ModelOpt can spell INT4 as TRT_INT4DequantizeLinear (its qdq_utils.use_trt_qdq_ops), without a domain.

    TensorRT's parser has that operator; ONNX has not, so no other engine can check the graph.
    """
    import tensorrt_rtx as trt

    tiny = Tiny()
    weight = tiny.const(tiny.random.integers(-8, 8, (64, 64)).astype(np.int8))
    scales = tiny.half(np.full((2, 64), 0.01))
    right = tiny.op("TRT_INT4DequantizeLinear", weight, scales, axis=0, block_size=32)
    ir.save(tiny.model(tiny.op("MatMul", tiny.x(), right)), tmp_path / "modelopt.onnx")
    assert "standard-domain" in lint_model(tmp_path / "modelopt.onnx").broken
    log = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(log).create_network(0)
    assert trt.OnnxParser(network, log).supports_operator("TRT_INT4DequantizeLinear")


def test_modelopt_int4_with_zero_points(tmp_path: Path) -> None:
    """ModelOpt's INT4 with zero points stores uint4 (its qdq_utils.get_tensor_dtype)."""
    tiny = Tiny()
    low = tiny.random.integers(0, 16, (64, 64)).astype(ml_dtypes.uint4)
    zeros = tiny.const(np.full((2, 64), 8).astype(ml_dtypes.uint4), ir.DataType.UINT4)
    scales = tiny.half(np.full((2, 64), 0.01))
    right = tiny.op("DequantizeLinear", tiny.const(low, ir.DataType.UINT4), scales, zeros, axis=0, block_size=32)
    ir.save(tiny.model(tiny.op("MatMul", tiny.x(), right)), tmp_path / "modelopt.onnx")
    report, built = verdicts(tmp_path / "modelopt.onnx")
    assert not built.ok
    assert report.broken == ["symmetric-zero-point", "signed-type"]


@pytest.mark.parametrize("inputs", ["", "qkpv"])
def test_modelopt_int8_with_float32_scales(inputs: str, tmp_path: Path) -> None:
    """ModelOpt's INT8 keeps float32 scales unless it is told otherwise (replace_scale_values writes float32).

    With attention's products in float32 nothing is fused; quantized whole, output included, it is.
    """
    ir.save(attention(inputs, floats=np.float32), tmp_path / "modelopt.onnx")
    report, built = verdicts(tmp_path / "modelopt.onnx")
    assert built.ok, built.said
    assert report.ok
    assert report.broken == (["fp16-scales"] if inputs else ["fp16-scales", "fp16-attention"])
    assert report.audit.fusible == built.fused_attentions == (1 if inputs else 0)
