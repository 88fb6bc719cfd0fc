"""Tiny ONNX graphs, written operator by operator, and TensorRT-RTX's real parser and builder to put them through."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

__all__ = [
    "HALF",
    "SINGLE",
    "WIDTH",
    "Built",
    "Tiny",
    "attention",
    "build",
    "dequantized",
    "float8",
    "int4_weight",
    "int8_weight",
    "quantized",
]

HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT
WIDTH = 64


class Tiny:
    """A graph under construction; every constant is drawn from one seed."""

    def __init__(self, opset: int = 21) -> None:
        self.opset, self.nodes, self.constants, self.inputs = opset, [], [], []
        self.random = np.random.default_rng(0)

    def input(self, name: str, shape: list[Any], dtype: ir.DataType = HALF) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.inputs.append(value)
        return value

    def x(self, dtype: ir.DataType = HALF, width: int = WIDTH) -> ir.Value:
        return self.input("x", ["batch", width], dtype)

    def const(self, array: Any, dtype: ir.DataType | None = None) -> ir.Value:
        name = f"constant_{len(self.constants)}"
        array = np.asarray(array)
        tensor = ir.tensor(array, name=name) if dtype is None else ir.Tensor(array, dtype=dtype, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        self.constants.append(value)
        return value

    def half(self, array: Any) -> ir.Value:
        return self.const(np.asarray(array, np.float16))

    def floats(self, *shape: int, dtype: Any = np.float16) -> ir.Value:
        return self.const((self.random.normal(size=shape) * 0.1).astype(dtype))

    def op(self, op_type: str, *inputs: ir.Value | None, domain: str = "", outputs: int = 1, **attributes: Any) -> Any:
        """Append a node; its output, or its outputs if there are several."""
        name = f"{op_type}_{len(self.nodes)}"
        node = ir.node(op_type, list(inputs), attributes=attributes, domain=domain, name=name, num_outputs=outputs)
        for at, output in enumerate(node.outputs):
            output.name = f"{name}_{at}"
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else node.outputs

    def model(self, *outputs: ir.Value, dtype: ir.DataType = HALF) -> ir.Model:
        for output in outputs:
            output.type = ir.TensorType(dtype)
        domains = {node.domain: 1 for node in self.nodes}
        opsets = {**domains, "": self.opset}
        graph = ir.Graph(
            self.inputs, list(outputs), nodes=self.nodes, initializers=self.constants, opset_imports=opsets
        )
        graph.name = "tiny"
        return ir.Model(graph, ir_version=10)


def quantized(tiny: Tiny, value: ir.Value, scale: Any = 0.05, zero: Any = 0, *, floats: Any = np.float16) -> ir.Value:
    """``value`` through QuantizeLinear and DequantizeLinear, int8 unless ``zero`` has another type."""
    scale = scale if isinstance(scale, ir.Value) else tiny.const(np.asarray(scale, floats))
    zero = zero if isinstance(zero, ir.Value) else tiny.const(np.asarray(zero, np.int8))
    return tiny.op("DequantizeLinear", tiny.op("QuantizeLinear", value, scale, zero), scale, zero)


def float8(tiny: Tiny) -> ir.Value:
    """The zero point that makes a pair float8."""
    return tiny.const(np.zeros((), ml_dtypes.float8_e4m3fn), ir.DataType.FLOAT8E4M3FN)


def dequantized(tiny: Tiny, weight: ir.Value, scale: Any, **attributes: Any) -> ir.Value:
    scale = scale if isinstance(scale, ir.Value) else tiny.half(scale)
    return tiny.op("DequantizeLinear", weight, scale, **attributes)


def int8_weight(tiny: Tiny, rows: int = WIDTH, columns: int = WIDTH, *, floats: Any = np.float16) -> ir.Value:
    """A weight ``[in, out]`` with a scale an output channel, dequantized."""
    weight = tiny.const(tiny.random.integers(-127, 128, (rows, columns)).astype(np.int8))
    return dequantized(tiny, weight, tiny.const(np.full(columns, 0.01, floats)), axis=1)


def int4_weight(
    tiny: Tiny,
    shape: tuple[int, ...] = (WIDTH, WIDTH),
    scales: tuple[int, ...] = (2, WIDTH),
    *,
    axis: int = 0,
    block: int = 32,
    dtype: ir.DataType = ir.DataType.INT4,
    scale: ir.Value | None = None,
) -> ir.Value:
    """A weight in 4 bits, dequantized; ``block`` 0 leaves the attribute away."""
    low, kind = (-8, ml_dtypes.int4) if dtype == ir.DataType.INT4 else (0, ml_dtypes.uint4)
    weight = tiny.const(tiny.random.integers(low, 8, shape).astype(kind), dtype)
    given = scale if scale is not None else tiny.half(np.full(scales, 0.01))
    return dequantized(tiny, weight, given, axis=axis, **({"block_size": block} if block else {}))


def attention(
    inputs: str = "",
    *,
    linears: str = "int8",
    floats: Any = np.float16,
    output_quantized: bool = True,
    fp8: bool = False,
    width: int = 32,
    scores_quantized: bool = False,
) -> ir.Model:
    """One attention of 4 heads with its four projections; ``inputs``: which of q, k, p, v are quantized."""
    tiny, heads = Tiny(), 4
    size = heads * width
    dtype = HALF if floats == np.float16 else SINGLE
    x, mask = (
        tiny.input("x", ["batch", "sequence", size], dtype),
        tiny.input("mask", ["batch", 1, 1, "sequence"], dtype),
    )

    def pair(value: ir.Value, name: str) -> ir.Value:
        if name not in inputs:
            return value
        return quantized(tiny, value, 0.05, float8(tiny) if fp8 else 0, floats=floats)

    def linear(value: ir.Value, name: str) -> ir.Value:
        if linears == "int8" and (name != "o" or output_quantized):
            product = tiny.op(
                "MatMul", quantized(tiny, value, floats=floats), int8_weight(tiny, size, size, floats=floats)
            )
        else:
            product = tiny.op("MatMul", value, tiny.floats(size, size, dtype=floats))
        return tiny.op("Add", product, tiny.const(np.zeros(size, floats)))

    def split(value: ir.Value, order: list[int]) -> ir.Value:
        shape = tiny.const(np.array([0, 0, heads, width], np.int64))
        return tiny.op("Transpose", tiny.op("Reshape", value, shape), perm=order)

    q, k, v = (
        split(linear(x, "q"), [0, 2, 1, 3]),
        split(linear(x, "k"), [0, 2, 3, 1]),
        split(linear(x, "v"), [0, 2, 1, 3]),
    )
    q = tiny.op("Mul", q, tiny.const(np.asarray(width**-0.5, floats)))
    scores = tiny.op("MatMul", pair(q, "q"), pair(k, "k"))
    scores = tiny.op("Add", quantized(tiny, scores, floats=floats) if scores_quantized else scores, mask)
    probabilities = tiny.op("Softmax", scores, axis=-1)
    context = tiny.op("MatMul", pair(probabilities, "p"), pair(v, "v"))
    merged = tiny.op("Reshape", tiny.op("Transpose", context, perm=[0, 2, 1, 3]), tiny.const(np.array([0, 0, size])))
    return tiny.model(tiny.op("Add", linear(merged, "o"), x), dtype=dtype)


@dataclass(frozen=True)
class Built:
    """What TensorRT-RTX made of a graph: its complaints, or what the plan says.

    The plan's text is no documented format; it is read for the pinned version of the test extra alone.
    """

    ok: bool
    said: str
    fused_attentions: int = 0
    products: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    plan_bytes: int = 0


def build(model: ir.Model, sm: str | None = "8.9", flags: tuple[str, ...] = ()) -> Built:
    """Parse and build a graph for compute capability ``sm`` (None: no target), every open axis 1 to 32."""
    import tensorrt_rtx as trt

    said: list[str] = []

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                said.append(message)

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(ir.serde.serialize_model(model).SerializeToString()):
        return Built(False, " ".join(parser.get_error(at).desc() for at in range(parser.num_errors)))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if sm is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, "SM" + sm.replace(".", "")), 0)
    for flag in flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    shapes = builder.create_optimization_profile()
    for at in range(network.num_inputs):
        value = network.get_input(at)
        if -1 in tuple(value.shape):
            sizes = [tuple(size if axis == -1 else axis for axis in value.shape) for size in (1, 16, 32)]
            shapes.set_shape(value.name, *sizes)
    config.add_optimization_profile(shapes)
    plan = builder.build_serialized_network(network, config)
    return Built(False, " ".join(said)) if plan is None else read_plan(bytes(plan))


def read_plan(plan: bytes) -> Built:
    """Fused attentions, the input types of the products, and the other kernels of a plan."""
    text = b"\n".join(re.findall(rb"[ -~]{6,}", plan)).decode()
    types = dict(re.findall(r'tensor=\{[^\n]*?name="([^"]+)"[^\n]*? type=(\w+) \}', text))
    products = re.findall(r'fully_connected=\{ name="[^"]*" output=\{[^}]*\} input=\{([^}]*)\}', text)
    kinds = [types.get(re.findall(r'"([^"]+)"', inputs)[0], "?") for inputs in products]
    kernels = re.findall(r"function=\{ name=(\w+)", text)
    fused = Counter(kernels)["_gemm_mha_v2"]
    return Built(True, "", fused, tuple(kinds), tuple(name for name in kernels if name != "_gemm_mha_v2"), len(plan))
