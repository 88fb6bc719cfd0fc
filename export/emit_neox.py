"""GPT-NeoX and Pythia (Black et al. 2022): rotary on a part of each head, attention and MLP in parallel."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from planish.export.emit_blocks import Blocks, Dimensions
from planish.export.emit_linear import take_rows
from planish.export.emit_rotary import inverse_frequency

__all__ = ["dimensions", "emit"]


def dimensions(config: dict[str, Any]) -> Dimensions:
    """Shapes from ``config.json``."""
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    return Dimensions(
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        hidden=hidden,
        vocab=int(config["vocab_size"]),
        max_length=int(config["max_position_embeddings"]),
    )


def emit(blocks: Blocks) -> ir.Value:
    """Emit the whole decoder; returns logits."""
    config = blocks.reader.config
    epsilon = float(config.get("layer_norm_eps", 1e-5))
    rotary = blocks.rotary_caches(inverse_frequency(config, _rotary_dim(config, blocks.dimensions.head_dim)))
    hidden = blocks.embed(blocks.input_ids, "gpt_neox.embed_in")
    for index in range(blocks.dimensions.layers):
        layer = f"gpt_neox.layers.{index}"
        normed = blocks.layer_norm(hidden, f"{layer}.input_layernorm", epsilon)
        attended = blocks.attention(_qkv(blocks, normed, f"{layer}.attention.query_key_value"), rotary=rotary)
        after = blocks.add(hidden, blocks.one(attended, f"{layer}.attention.dense"))
        parallel = config.get("use_parallel_residual", True)
        normed = blocks.layer_norm(hidden if parallel else after, f"{layer}.post_attention_layernorm", epsilon)
        inner = blocks.activation(blocks.one(normed, f"{layer}.mlp.dense_h_to_4h"), config.get("hidden_act", "gelu"))
        hidden = blocks.add(after, blocks.one(inner, f"{layer}.mlp.dense_4h_to_h"))
    kept = blocks.layer_norm(blocks.keep(hidden), "gpt_neox.final_layer_norm", epsilon)
    return blocks.head(kept, "embed_out", "gpt_neox.embed_in")


def _rotary_dim(config: dict[str, Any], head_dim: int) -> int:
    parameters = config.get("rope_parameters") or {}
    part = (
        parameters.get("partial_rotary_factor") or config.get("partial_rotary_factor") or config.get("rotary_pct", 0.25)
    )
    return int(head_dim * float(part))


def _qkv(blocks: Blocks, x: ir.Value, module: str) -> ir.Value:
    """The checkpoint interleaves query, key and value of each head; attention wants all queries first."""
    d = blocks.dimensions
    rows = np.arange(3 * d.hidden).reshape(d.heads, 3, d.head_dim).transpose(1, 0, 2).reshape(-1)
    return blocks.product(x, take_rows(blocks.reader.linear(module), rows), module)
