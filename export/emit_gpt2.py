"""GPT-2 (Radford et al. 2019): learned positions, Conv1D linears, one fused projection for query, key and value."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir

from planish.errors import CheckpointError
from planish.export.emit_blocks import Blocks, Dimensions

__all__ = ["dimensions", "emit"]


def dimensions(config: dict[str, Any]) -> Dimensions:
    """Shapes from ``config.json``; raises ``CheckpointError`` on what is not emitted here."""
    if config.get("add_cross_attention"):
        raise CheckpointError("a decoder by itself", "cross attention", "no emitter exists for it")
    heads, hidden = int(config["n_head"]), int(config["n_embd"])
    return Dimensions(
        layers=int(config["n_layer"]),
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        hidden=hidden,
        vocab=int(config["vocab_size"]),
        max_length=int(config.get("n_positions") or config["n_ctx"]),
    )


def emit(blocks: Blocks) -> ir.Value:
    """Emit the whole decoder; returns logits."""
    config, prefix = blocks.reader.config, _prefix(blocks)
    epsilon = float(config.get("layer_norm_epsilon", 1e-5))
    tokens = blocks.embed(blocks.input_ids, f"{prefix}wte")
    hidden = blocks.add(tokens, blocks.embed(blocks.position_ids(), f"{prefix}wpe"))
    for index in range(blocks.dimensions.layers):
        layer = f"{prefix}h.{index}"
        normed = blocks.layer_norm(hidden, f"{layer}.ln_1", epsilon)
        qkv = blocks.qkv(normed, f"{layer}.attn.c_attn", transposed=True)
        attended = blocks.attention(qkv, scale=_scale(config, index, blocks.dimensions.head_dim))
        hidden = blocks.add(hidden, blocks.one(attended, f"{layer}.attn.c_proj", transposed=True))
        normed = blocks.layer_norm(hidden, f"{layer}.ln_2", epsilon)
        inner = blocks.activation(
            blocks.one(normed, f"{layer}.mlp.c_fc", transposed=True), config.get("activation_function", "gelu_new")
        )
        hidden = blocks.add(hidden, blocks.one(inner, f"{layer}.mlp.c_proj", transposed=True))
    kept = blocks.layer_norm(blocks.keep(hidden), f"{prefix}ln_f", epsilon)
    return blocks.head(kept, "lm_head", f"{prefix}wte")


def _prefix(blocks: Blocks) -> str:
    """Checkpoints of the bare model (``GPT2Model``) lack the prefix."""
    return "" if "wpe.weight" in blocks.reader or blocks.reader.is_quantized("wpe") else "transformer."


def _scale(config: dict[str, Any], index: int, head_dim: int) -> float:
    scale = 1 / math.sqrt(head_dim) if config.get("scale_attn_weights", True) else 1.0
    return scale / (index + 1) if config.get("scale_attn_by_inverse_layer_idx") else scale
