"""Small transformers as docs/formats.md, section 5b, spells them, written by hand, to build engines from in tests.

Nothing of the exporter is used, so these graphs also check that the builder asks no more of a graph than the contract.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["FFN", "HEADS", "HEAD_DIM", "LAYERS", "VOCABULARY", "WIDTH", "decoder", "encoder"]

LAYERS, HEADS, HEAD_DIM, FFN, VOCABULARY, POSITIONS = 2, 2, 32, 128, 64, 64
WIDTH = HEADS * HEAD_DIM


class Graph:
    """Collects nodes and weights; every float is float16 but where a Cast says otherwise."""

    def __init__(self, linear: str, seed: int = 0) -> None:
        self.linear_as, self.draw = linear, np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: object) -> str:
        output = name or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=f"node_{output}", **attributes))
        return output

    def constant(self, name: str, value: object, dtype: str = "float16") -> str:
        self.weights[name] = numpy_helper.from_array(np.asarray(value, dtype=dtype), name)
        return name

    def linear(self, x: str, name: str, width_in: int, width_out: int) -> str:
        """``x @ weight + bias``: ``int8`` or ``fp8`` with a static input scale, ``int8-weight``, ``int8-blocks``,
        ``int4-weight``, or plain ``fp16``."""
        weight = self.draw.normal(0, width_in**-0.5, (width_out, width_in))
        if self.linear_as in ("int8", "fp8"):
            kind = TensorProto.INT8 if self.linear_as == "int8" else TensorProto.FLOAT8E4M3FN
            step = self.constant(f"{name}.input_scale", 0.03)
            x = self.op("DequantizeLinear", self.op("QuantizeLinear", x, step, output_dtype=kind), step)
        y = self.op("MatMul", x, self.weight(f"{name}.weight", weight))
        return self.op("Add", y, self.constant(f"{name}.bias", self.draw.normal(0, 0.1, width_out)))

    def weight(self, name: str, weight: np.ndarray) -> str:
        """A weight ``[out, in]`` as the right side of a product."""
        if self.linear_as in ("int4-weight", "int8-blocks"):
            return self.blocks(
                name, weight, *((TensorProto.INT4, 7) if "4" in self.linear_as else (TensorProto.INT8, 127))
            )
        table = self.constant(name, weight)
        if self.linear_as != "fp16":
            limit, kind = (448, TensorProto.FLOAT8E4M3FN) if self.linear_as == "fp8" else (127.5, TensorProto.INT8)
            scale = (np.abs(weight).max(1) / limit).astype(np.float16)
            numbers = weight / scale[:, None]
            if kind == TensorProto.INT8:
                self.constant(name, np.clip(np.round(numbers), -128, 127), "int8")
            else:
                self.weights[name] = helper.make_tensor(name, kind, weight.shape, numbers.ravel().tolist())
            table = self.op("DequantizeLinear", name, self.constant(f"{name}.scale", scale), axis=0)
        return self.op("Transpose", table, perm=[1, 0])

    def blocks(self, name: str, weight: np.ndarray, kind: int, most: int) -> str:
        """In blocks of 32 along the inputs, stored ``[in, out]``."""
        blocks = weight.T.reshape(-1, 32, weight.shape[0])
        scale = (np.abs(blocks).max(1) / most).astype(np.float16)
        integers = np.clip(np.round(blocks / scale[:, None]), -most - 1, most).astype(int)
        self.weights[name] = helper.make_tensor(name, kind, weight.T.shape, integers.ravel().tolist())
        return self.op("DequantizeLinear", name, self.constant(f"{name}.scale", scale), axis=0, block_size=32)

    def norm(self, x: str, name: str) -> str:
        """LayerNormalization in float32 between two casts."""
        gain = self.constant(f"{name}.gain", np.ones(WIDTH), "float32")
        shift = self.constant(f"{name}.shift", np.zeros(WIDTH), "float32")
        wide = self.op("Cast", x, to=TensorProto.FLOAT)
        return self.op("Cast", self.op("LayerNormalization", wide, gain, shift, axis=-1), to=TensorProto.FLOAT16)

    def heads(self, x: str) -> str:
        shape = self.constant("heads", [0, 0, HEADS, HEAD_DIM], "int64")
        return self.op("Transpose", self.op("Reshape", x, shape), perm=[0, 2, 1, 3])

    def attention(self, q: str, k: str, v: str, bias: str) -> str:
        root = self.constant("root_scale", HEAD_DIM**-0.25)
        turned = self.op("Mul", self.op("Transpose", k, perm=[0, 1, 3, 2]), root)
        scores = self.op("Add", self.op("MatMul", self.op("Mul", q, root), turned), bias)
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)
        flat = self.constant("flat", [0, 0, WIDTH], "int64")
        return self.op("Reshape", self.op("Transpose", mixed, perm=[0, 2, 1, 3]), flat)

    def feed_forward(self, x: str, name: str) -> str:
        return self.linear(self.op("Gelu", self.linear(x, f"{name}.up", WIDTH, FFN)), f"{name}.down", FFN, WIDTH)

    def embed(self, positions: str) -> str:
        words = self.constant("words", self.draw.normal(0, 1, (VOCABULARY, WIDTH)))
        places = self.constant("places", self.draw.normal(0, 0.3, (POSITIONS, WIDTH)))
        return self.op("Add", self.op("Gather", words, "input_ids"), self.op("Gather", places, positions))

    def save(self, path: Path, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> Path:
        graph = helper.make_graph(self.nodes, "small", inputs, outputs, list(self.weights.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        onnx.checker.check_model(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, path)
        return path


def info(name: str, dtype: int, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, list(shape))


def encoder(path: Path, *, linear: str = "int8", layers: int = LAYERS) -> Path:
    """An encoder: ``input_ids`` and ``attention_mask`` to ``last_hidden_state``."""
    graph = Graph(linear)
    length = graph.op("Shape", "input_ids", start=1, end=2)
    scalar = graph.op("Squeeze", length)
    zero, one = graph.constant("zero", 0, "int64"), graph.constant("one", 1, "int64")
    x = graph.embed(graph.op("Range", zero, scalar, one))
    blocked = graph.op("Equal", "attention_mask", zero)
    closed = graph.op("Unsqueeze", blocked, graph.constant("axes", [1, 2], "int64"))
    bias = graph.op("Where", closed, graph.constant("low", -30000.0), graph.constant("none", 0.0))
    for layer in range(layers):
        q, k, v = (graph.heads(graph.linear(x, f"{layer}.{part}", WIDTH, WIDTH)) for part in "qkv")
        mixed = graph.linear(graph.attention(q, k, v, bias), f"{layer}.out", WIDTH, WIDTH)
        x = graph.norm(graph.op("Add", x, mixed), f"{layer}.norm1")
        x = graph.norm(graph.op("Add", x, graph.feed_forward(x, f"{layer}.ffn")), f"{layer}.norm2")
    graph.op("Cast", x, to=TensorProto.FLOAT, name="last_hidden_state")
    inputs = [info(name, TensorProto.INT64, "batch", "sequence") for name in ("input_ids", "attention_mask")]
    outputs = [info("last_hidden_state", TensorProto.FLOAT, "batch", "sequence", WIDTH)]
    return graph.save(path, inputs, outputs)


def decoder(path: Path, *, linear: str = "int8-weight", layers: int = LAYERS) -> Path:
    """A decoder with its cache as plain inputs and outputs."""
    graph = Graph(linear)
    x = graph.embed("position_ids")
    bias = decoder_bias(graph)
    outputs = []
    for layer in range(layers):
        normed = graph.norm(x, f"{layer}.norm1")
        q, k, v = (graph.heads(graph.linear(normed, f"{layer}.{part}", WIDTH, WIDTH)) for part in "qkv")
        for part, new in (("key", k), ("value", v)):
            graph.op("Concat", f"past_key_values.{layer}.{part}", new, axis=2, name=f"present.{layer}.{part}")
            shape = ("batch", HEADS, "total", HEAD_DIM)
            outputs.append(info(f"present.{layer}.{part}", TensorProto.FLOAT16, *shape))
        mixed = graph.attention(q, f"present.{layer}.key", f"present.{layer}.value", bias)
        x = graph.op("Add", x, graph.linear(mixed, f"{layer}.out", WIDTH, WIDTH))
        x = graph.op("Add", x, graph.feed_forward(graph.norm(x, f"{layer}.norm2"), f"{layer}.ffn"))
    index = graph.op("Unsqueeze", "logits_index", graph.constant("two", [2], "int64"))
    wide = graph.constant("repeat", [1, 1, WIDTH], "int64")
    kept = graph.op("GatherElements", graph.norm(x, "final"), graph.op("Expand", index, wide), axis=1)
    graph.op("Cast", graph.linear(kept, "head", WIDTH, VOCABULARY), to=TensorProto.FLOAT, name="logits")
    inputs = [info(name, TensorProto.INT64, "batch", "sequence") for name in ("input_ids", "position_ids")]
    inputs.append(info("attention_mask", TensorProto.INT64, "batch", "total"))
    inputs.append(info("logits_index", TensorProto.INT64, "batch", "kept"))
    for layer in range(layers):
        for part in ("key", "value"):
            past = info(f"past_key_values.{layer}.{part}", TensorProto.FLOAT16, "batch", HEADS, "past", HEAD_DIM)
            inputs.append(past)
    logits = info("logits", TensorProto.FLOAT, "batch", "kept", VOCABULARY)
    return graph.save(path, inputs, [logits, *outputs])


def decoder_bias(graph: Graph) -> str:
    """[batch, 1, sequence, total]: closed where the mask is 0 and where a column comes after the row's own."""
    zero, one = graph.constant("zero", 0, "int64"), graph.constant("one", 1, "int64")
    total = graph.op("Squeeze", graph.op("Shape", "attention_mask", start=1, end=2))
    length = graph.op("Squeeze", graph.op("Shape", "input_ids", start=1, end=2))
    columns = graph.op("Range", zero, total, one)
    rows = graph.op("Add", graph.op("Range", zero, length, one), graph.op("Sub", total, length))
    later = graph.op("Greater", columns, graph.op("Unsqueeze", rows, graph.constant("axis", [1], "int64")))
    masked = graph.op("Equal", "attention_mask", zero)
    closed = graph.op("Or", later, graph.op("Unsqueeze", masked, graph.constant("axes", [1, 2], "int64")))
    return graph.op("Where", closed, graph.constant("low", -30000.0), graph.constant("none", 0.0))
