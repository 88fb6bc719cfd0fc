"""The small random Llama of `tiny_decoder` as a graph after docs/formats.md, section 5b: past and present apart.

Standard operators; the cache is float16 as the contract says, the rest float32 so that ONNX Runtime's CPU keeps up.
Nothing of `planish.export` is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from tests.runtime.tiny_decoder import HEAD_DIM, HEADS, KV_HEADS, LAYERS, MAX_LENGTH, _Graph

__all__ = ["CACHE", "SMALL_INPUTS", "dialect", "profile", "write_graph"]

GROUP = HEADS // KV_HEADS
SMALL_INPUTS = {
    "input_ids": ["batch", "sequence"],
    "position_ids": ["batch", "sequence"],
    "attention_mask": ["batch", "total"],
    "logits_index": ["batch", "kept"],
}
PARTS = [f"{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
CACHE = ["batch", KV_HEADS, "past", HEAD_DIM]
PRESENT = ["batch", KV_HEADS, "total", HEAD_DIM]


def dialect(vocab: int) -> dict[str, Any]:
    """The manifest's entry of this graph."""
    small = [{"name": name, "dtype": "int64", "shape": shape} for name, shape in SMALL_INPUTS.items()]
    past = [{"name": f"past_key_values.{part}", "dtype": "float16", "shape": CACHE} for part in PARTS]
    present = [{"name": f"present.{part}", "dtype": "float16", "shape": PRESENT} for part in PARTS]
    logits = {"name": "logits", "dtype": "float32", "shape": ["batch", "kept", vocab]}
    return {"path": "onnx/qdq/model.onnx", "opset": 21, "inputs": [*small, *past], "outputs": [logits, *present]}


def profile(rows: tuple[int, int], sequence: tuple[int, int], total: tuple[int, int], kept: int) -> dict[str, Any]:
    """An optimization profile: least and most of each axis, as min, opt, max of each input."""
    past = (0, total[1] - 1)
    ranges = {
        "input_ids": (rows, sequence),
        "position_ids": (rows, sequence),
        "attention_mask": (rows, total),
        "logits_index": (rows, (1, kept)),
    }
    cache = (rows, (KV_HEADS, KV_HEADS), past, (HEAD_DIM, HEAD_DIM))
    ranges |= {f"past_key_values.{part}": cache for part in PARTS}  # type: ignore[dict-item]
    return {
        name: (tuple(low for low, _ in axes), tuple(high for _, high in axes), tuple(high for _, high in axes))
        for name, axes in ranges.items()
    }


def write_graph(model: Any, path: Path) -> None:
    graph = _Graph()
    _constants(graph, model)
    _mask(graph)
    hidden = graph.op("Gather", ["embed", "input_ids"], "x")
    for index, layer in enumerate(model.model.layers):
        hidden = _layer(graph, index, layer, hidden)
    hidden = _norm(graph, hidden, "final_norm", model.model.norm)
    graph.op("Unsqueeze", ["logits_index", "axis2"], "index3")
    kept = graph.op("GatherND", [hidden, "index3"], "kept", batch_dims=1)
    graph.linear(kept, "logits", [model.lm_head.weight])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_finish(graph).SerializeToString())


def _constants(graph: _Graph, model: Any) -> None:
    for name, value in (("axis1", [1]), ("axis2", [2]), ("zero", 0), ("one", 1)):
        graph.constant(name, np.array(value, np.int64))
    graph.constant("embed", model.model.embed_tokens.weight.detach().numpy())
    graph.constant("low", np.array(-65504.0, np.float32))
    graph.constant("float0", np.array(0.0, np.float32))
    graph.constant("scale", np.array(HEAD_DIM**-0.5, np.float32))
    graph.constant("q_shape", np.array([0, 0, KV_HEADS, GROUP, HEAD_DIM], np.int64))
    graph.constant("kv_shape", np.array([0, 0, KV_HEADS, HEAD_DIM], np.int64))
    graph.constant("merged", np.array([0, 0, HEADS * HEAD_DIM], np.int64))
    angles = torch.arange(MAX_LENGTH)[:, None].float() * model.model.rotary_emb.inv_freq[None].float()
    for name, table in (("cos", angles.cos()), ("sin", angles.sin())):
        graph.constant(f"{name}_table", table.repeat(1, 2).numpy())
        graph.op("Gather", [f"{name}_table", "position_ids"], f"{name}3")
        graph.op("Unsqueeze", [f"{name}3", "axis2"], name)  # [batch, sequence, 1, head_dim]


def _mask(graph: _Graph) -> None:
    """``bias`` ``[batch, 1, 1, sequence, total]``: columns that are real and not after the query's own."""
    graph.op("Shape", ["attention_mask"], "total1", start=1, end=2)
    graph.op("Shape", ["input_ids"], "sequence1", start=1, end=2)
    graph.op("Squeeze", ["total1"], "total")
    graph.op("Squeeze", ["sequence1"], "sequence")
    graph.op("Range", ["zero", "total", "one"], "columns")
    graph.op("Sub", ["total", "sequence"], "past")
    graph.op("Range", ["past", "total", "one"], "own")
    graph.op("Unsqueeze", ["own", "axis1"], "own2")
    graph.op("LessOrEqual", ["columns", "own2"], "causal")
    graph.op("Equal", ["attention_mask", "one"], "real")
    graph.op("Unsqueeze", ["real", "axis1"], "real3")
    graph.op("And", ["causal", "real3"], "seen")
    graph.op("Where", ["seen", "float0", "low"], "bias3")
    graph.constant("axes12", np.array([1, 2], np.int64))
    graph.op("Unsqueeze", ["bias3", "axes12"], "bias")


def _norm(graph: _Graph, x: str, name: str, module: Any) -> str:
    graph.constant(f"{name}.two", np.array(2.0, np.float32))
    graph.constant(f"{name}.epsilon", np.array(module.variance_epsilon, np.float32))
    square = graph.op("Pow", [x, f"{name}.two"], f"{name}.square")
    mean = graph.op("ReduceMean", [square, "axis2"], f"{name}.mean")
    root = graph.op("Sqrt", [graph.op("Add", [mean, f"{name}.epsilon"], f"{name}.sum")], f"{name}.root")
    weight = graph.constant(f"{name}.weight", module.weight.detach().numpy())
    return graph.op("Mul", [graph.op("Div", [x, root], f"{name}.unit"), weight], name)


def _rotate(graph: _Graph, x: str, name: str, cos: str = "cos", sin: str = "sin") -> str:
    half = [graph.op("Split", [x], [f"{name}.first", f"{name}.second"], axis=-1, num_outputs=2), f"{name}.second"]
    turned = graph.op("Concat", [graph.op("Neg", [half[1]], f"{name}.neg"), half[0]], f"{name}.turned", axis=-1)
    left = graph.op("Mul", [x, cos], f"{name}.left")
    return graph.op("Add", [left, graph.op("Mul", [turned, sin], f"{name}.right")], f"{name}.rotated")


def _cached(graph: _Graph, x: str, part: str) -> str:
    """``[batch, kv_heads, 1, total, head_dim]`` float32, through the float16 cache."""
    heads = graph.op("Transpose", [x], f"{part}.heads", perm=[0, 2, 1, 3])
    half = graph.op("Cast", [heads], f"{part}.half", to=TensorProto.FLOAT16)
    graph.op("Concat", [f"past_key_values.{part}", half], f"present.{part}", axis=2)
    whole = graph.op("Cast", [f"present.{part}"], f"{part}.whole", to=TensorProto.FLOAT)
    return graph.op("Unsqueeze", [whole, "axis2"], f"{part}.grouped")


def _layer(graph: _Graph, index: int, layer: Any, hidden: str) -> str:
    name, attention, mlp = f"layer{index}", layer.self_attn, layer.mlp
    x = _norm(graph, hidden, f"{name}.norm1", layer.input_layernorm)
    q, k, v = (
        graph.op("Reshape", [graph.linear(x, f"{name}.{kind}", [weight]), shape], f"{name}.{kind}.split")
        for kind, weight, shape in (
            ("q", attention.q_proj.weight, "q_shape"),
            ("k", attention.k_proj.weight, "kv_shape"),
            ("v", attention.v_proj.weight, "kv_shape"),
        )
    )
    for trig in ("cos", "sin"):
        if index == 0:
            graph.op("Unsqueeze", [trig, "axis2"], f"{trig}5")
    q = graph.op("Transpose", [_rotate(graph, q, f"{name}.q", "cos5", "sin5")], f"{name}.qt", perm=[0, 2, 3, 1, 4])
    keys = _cached(graph, _rotate(graph, k, f"{name}.k"), f"{index}.key")
    values = _cached(graph, v, f"{index}.value")
    keys = graph.op("Transpose", [keys], f"{name}.kt", perm=[0, 1, 2, 4, 3])
    scores = graph.op("Mul", [graph.op("MatMul", [q, keys], f"{name}.qk"), "scale"], f"{name}.scaled")
    weights = graph.op("Softmax", [graph.op("Add", [scores, "bias"], f"{name}.biased")], f"{name}.softmax", axis=-1)
    mixed = graph.op("MatMul", [weights, values], f"{name}.mixed")
    mixed = graph.op("Transpose", [mixed], f"{name}.back", perm=[0, 3, 1, 2, 4])
    mixed = graph.op("Reshape", [mixed, "merged"], f"{name}.merged")
    hidden = graph.op("Add", [hidden, graph.linear(mixed, f"{name}.o", [attention.o_proj.weight])], f"{name}.mid")
    x = _norm(graph, hidden, f"{name}.norm2", layer.post_attention_layernorm)
    gate = graph.linear(x, f"{name}.gate", [mlp.gate_proj.weight])
    up = graph.linear(x, f"{name}.up", [mlp.up_proj.weight])
    silu = graph.op("Mul", [gate, graph.op("Sigmoid", [gate], f"{name}.sigmoid")], f"{name}.silu")
    x = graph.linear(graph.op("Mul", [silu, up], f"{name}.act"), f"{name}.down", [mlp.down_proj.weight])
    return graph.op("Add", [hidden, x], f"{name}.out")


def _finish(graph: _Graph) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in SMALL_INPUTS.items()]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "kept", None])]
    for part in PARTS:
        inputs.append(helper.make_tensor_value_info(f"past_key_values.{part}", TensorProto.FLOAT16, CACHE))
        outputs.append(helper.make_tensor_value_info(f"present.{part}", TensorProto.FLOAT16, PRESENT))
    body = helper.make_graph(graph.nodes, "tiny", inputs, outputs, initializer=graph.weights)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return model
