"""Llama-type decoders: Llama, SmolLM, Mistral without sliding window, Qwen2 (biases), Qwen3 (query and key norms)."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from planish.errors import CheckpointError
from planish.export.emit_blocks import Blocks, Dimensions, QkvValues
from planish.export.emit_rotary import inverse_frequency

__all__ = ["dimensions", "emit"]


def dimensions(config: dict[str, Any]) -> Dimensions:
    """Shapes from ``config.json``; raises ``CheckpointError`` on what is not emitted here."""
    _refuse_sliding_window(config, int(config["num_hidden_layers"]))
    return Dimensions.of(config)


def emit(blocks: Blocks) -> ir.Value:
    """Emit the whole decoder; returns logits."""
    config, d = blocks.reader.config, blocks.dimensions
    epsilon = float(config.get("rms_norm_eps", 1e-6))
    rotary = blocks.rotary_caches(inverse_frequency(config, d.head_dim))
    hidden = blocks.embed(blocks.input_ids, "model.embed_tokens")
    for index in range(d.layers):
        layer = f"model.layers.{index}"
        normed = blocks.rms_norm(hidden, f"{layer}.input_layernorm", epsilon)
        attended = blocks.attention(_qkv(blocks, normed, f"{layer}.self_attn", epsilon), rotary=rotary)
        hidden = blocks.add(hidden, blocks.one(attended, f"{layer}.self_attn.o_proj"))
        normed = blocks.rms_norm(hidden, f"{layer}.post_attention_layernorm", epsilon)
        hidden = blocks.add(hidden, _mlp(blocks, normed, f"{layer}.mlp"))
    kept = blocks.rms_norm(blocks.keep(hidden), "model.norm", epsilon)
    return blocks.head(kept, "lm_head", "model.embed_tokens")


def _qkv(blocks: Blocks, x: ir.Value, module: str, epsilon: float) -> QkvValues:
    names = [f"{module}.{part}_proj" for part in "qkv"]
    if f"{module}.q_norm.weight" not in blocks.reader:
        return blocks.qkv(x, *names)
    query, key, value = (blocks.one(x, name) for name in names)
    query = blocks.heads_norm(query, f"{module}.q_norm", epsilon)
    return [query, blocks.heads_norm(key, f"{module}.k_norm", epsilon), value]


def _mlp(blocks: Blocks, x: ir.Value, module: str) -> ir.Value:
    gate, up = blocks.one(x, f"{module}.gate_proj"), blocks.one(x, f"{module}.up_proj")
    gate = blocks.activation(gate, blocks.reader.config.get("hidden_act", "silu"))
    return blocks.one(blocks.multiply(gate, up), f"{module}.down_proj")


def _refuse_sliding_window(config: dict[str, Any], layers: int) -> None:
    kinds = config.get("layer_types") or ["full_attention"] * layers
    window = config.get("sliding_window")
    used = config.get("use_sliding_window", True) and window and window < config["max_position_embeddings"]
    if any(kind != "full_attention" for kind in kinds) or (used and not config.get("layer_types")):
        raise CheckpointError(
            "full attention in every layer", f"a sliding window of {window}", "no emitter exists for it"
        )
