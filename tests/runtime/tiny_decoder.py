"""A small random Llama twice: transformers' own, and a graph written by hand after docs/formats.md, section 5.

Nothing of `planish.export` is used, so the tests that compare the two also check the contract itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from transformers import LlamaConfig, LlamaForCausalLM

LAYERS, HEADS, KV_HEADS, WIDTH, HEAD_DIM, FFN, MAX_LENGTH = 2, 4, 2, 64, 16, 96, 512


def make_model(vocab: int, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=WIDTH,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def manifest_info(eos: tuple[int, ...] = (), max_length: int = MAX_LENGTH) -> dict[str, Any]:
    """The manifest's ``generation`` object of this model."""
    return {
        "num_layers": LAYERS,
        "num_kv_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_length": max_length,
        "cache_dtype": "float32",
        "bos_token_id": None,
        "eos_token_ids": eos,
        "pad_token_id": None,
        "defaults": {},
    }


class _Graph:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def op(self, kind: str, inputs: list[str], outputs: str | list[str], domain: str = "", **attributes: Any) -> str:
        names = [outputs] if isinstance(outputs, str) else outputs
        self.nodes.append(helper.make_node(kind, inputs, names, name=names[0], domain=domain, **attributes))
        return names[0]

    def constant(self, name: str, value: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def linear(self, x: str, name: str, weights: list[torch.Tensor]) -> str:
        table = torch.cat([w.detach() for w in weights]).T.contiguous().numpy()
        return self.op("MatMul", [x, self.constant(f"{name}.weight", table)], name)

    def norm(self, x: str, name: str, module: Any) -> str:
        scale = self.constant(f"{name}.weight", module.weight.detach().numpy())
        return self.op("SimplifiedLayerNormalization", [x, scale], name, epsilon=module.variance_epsilon, axis=-1)


def make_session(model: LlamaForCausalLM, *, positions: int | None = None) -> onnxruntime.InferenceSession:
    """A session of the graph of :func:`make_graph`, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    data = make_graph(model, positions=positions).SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def make_graph(model: LlamaForCausalLM, *, positions: int | None = None) -> onnx.ModelProto:
    """``positions=1`` declares logits of one position, as ONNX Runtime's shape inference does for some graphs."""
    graph = _Graph()
    _lengths(graph)
    _rotary(graph, model)
    table = graph.constant("embed", model.model.embed_tokens.weight.detach().numpy())
    hidden = graph.op("Gather", [table, "input_ids"], "x")
    for index, layer in enumerate(model.model.layers):
        hidden = _layer(graph, index, layer, hidden)
    hidden = graph.norm(hidden, "final_norm", model.model.norm)
    graph.linear(_kept(graph, hidden), "logits", [model.lm_head.weight])
    return _finish(graph, positions)


def _lengths(graph: _Graph) -> None:
    graph.op("ReduceSum", ["attention_mask", graph.constant("axis1", np.array([1]))], "length", keepdims=0)
    graph.op("Sub", ["length", graph.constant("one", np.array(1))], "last")
    graph.op("Cast", ["last"], "seqlens_k", to=TensorProto.INT32)
    graph.op("Shape", ["attention_mask"], "total64", start=1, end=2)
    graph.op("Cast", ["total64"], "total", to=TensorProto.INT32)


def _rotary(graph: _Graph, model: LlamaForCausalLM) -> None:
    angles = torch.arange(MAX_LENGTH)[:, None].float() * model.model.rotary_emb.inv_freq[None].float()
    graph.constant("cos", angles.cos().numpy())
    graph.constant("sin", angles.sin().numpy())


def _layer(graph: _Graph, index: int, layer: Any, hidden: str) -> str:
    name, attention, mlp = f"layer{index}", layer.self_attn, layer.mlp
    x = graph.norm(hidden, f"{name}.norm1", layer.input_layernorm)
    packed = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    x = graph.linear(x, f"{name}.qkv", packed)
    past = [f"past_key_values.{index}.key", f"past_key_values.{index}.value"]
    x = graph.op(
        "GroupQueryAttention",
        [x, "", "", *past, "seqlens_k", "total", "cos", "sin"],
        [f"{name}.attention", f"present.{index}.key", f"present.{index}.value"],
        domain="com.microsoft",
        num_heads=HEADS,
        kv_num_heads=KV_HEADS,
        do_rotary=1,
    )
    x = graph.linear(x, f"{name}.o", [attention.o_proj.weight])
    hidden = graph.op("Add", [hidden, x], f"{name}.mid")
    x = graph.norm(hidden, f"{name}.norm2", layer.post_attention_layernorm)
    gate = graph.linear(x, f"{name}.gate", [mlp.gate_proj.weight])
    up = graph.linear(x, f"{name}.up", [mlp.up_proj.weight])
    silu = graph.op("Mul", [gate, graph.op("Sigmoid", [gate], f"{name}.sigmoid")], f"{name}.silu")
    x = graph.linear(graph.op("Mul", [silu, up], f"{name}.act"), f"{name}.down", [mlp.down_proj.weight])
    return graph.op("Add", [hidden, x], f"{name}.out")


def _kept(graph: _Graph, hidden: str) -> str:
    """The last real position of each row, or all positions when ``logits_to_keep`` is 0."""
    graph.constant("logits_to_keep", np.array(1))
    zero = graph.constant("zero", np.array(0))
    graph.op("Shape", ["input_ids"], "sequence1", start=1, end=2)
    graph.op("Squeeze", ["sequence1"], "sequence")
    graph.op("Equal", ["logits_to_keep", zero], "all")
    graph.op("Where", ["all", "sequence", "one"], "count")
    graph.op("Min", ["last", graph.op("Sub", ["sequence", "one"], "newest")], "at")
    graph.op("Where", ["all", zero, "at"], "start")
    graph.op("Range", [zero, "count", "one"], "steps")
    graph.op("Unsqueeze", ["start", graph.constant("axes1", np.array([1]))], "start2")
    graph.op("Add", ["start2", "steps"], "positions")
    graph.op("Unsqueeze", ["positions", graph.constant("axes2", np.array([2]))], "indices")
    return graph.op("GatherND", [hidden, "indices"], "kept", batch_dims=1)


def _finish(graph: _Graph, positions: int | None) -> onnx.ModelProto:
    cache = ["batch", KV_HEADS, "past", HEAD_DIM]
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "total"]),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", positions or "positions", None])]
    for index in range(LAYERS):
        for part in ("key", "value"):
            inputs.append(helper.make_tensor_value_info(f"past_key_values.{index}.{part}", TensorProto.FLOAT, cache))
            outputs.append(helper.make_tensor_value_info(f"present.{index}.{part}", TensorProto.FLOAT, None))
    inputs.append(helper.make_tensor_value_info("logits_to_keep", TensorProto.INT64, []))
    body = helper.make_graph(graph.nodes, "tiny", inputs, outputs, initializer=graph.weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(body, opset_imports=opsets, ir_version=10)
