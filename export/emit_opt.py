"""OPT (Zhang et al. 2022): learned positions that start at 2, pre-norm layers, biased linears."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from planish.errors import CheckpointError
from planish.export.emit_blocks import Blocks, Dimensions

__all__ = ["dimensions", "emit"]

_OFFSET = 2
"""The first two rows of the position table belong to no position."""


def dimensions(config: dict[str, Any]) -> Dimensions:
    """Shapes from ``config.json``; raises ``CheckpointError`` on what is not emitted here (OPT-350m's post-norm)."""
    hidden = config["hidden_size"]
    width, before = config.get("word_embed_proj_dim", hidden), config.get("do_layer_norm_before", True)
    if width != hidden or not before or config.get("_remove_final_layer_norm"):
        raise CheckpointError(
            "OPT with norms before its layers and embeddings as wide as the model",
            f"do_layer_norm_before {before}, word_embed_proj_dim {width} of {hidden}",
            "no emitter exists for it; of OPT, only the 350m checkpoint is so",
        )
    return Dimensions.of(config)


def emit(blocks: Blocks) -> ir.Value:
    """Emit the whole decoder; returns logits."""
    config, model = blocks.reader.config, "model.decoder"
    epsilon = 1e-5
    positions = blocks.graph.op("Add", blocks.position_ids(), blocks.graph.constant(_OFFSET))
    tokens = blocks.embed(blocks.input_ids, f"{model}.embed_tokens")
    hidden = blocks.add(tokens, blocks.embed(positions, f"{model}.embed_positions"))
    for index in range(blocks.dimensions.layers):
        layer = f"{model}.layers.{index}"
        normed = blocks.layer_norm(hidden, f"{layer}.self_attn_layer_norm", epsilon)
        attended = blocks.attention(blocks.qkv(normed, *(f"{layer}.self_attn.{part}_proj" for part in "qkv")))
        hidden = blocks.add(hidden, blocks.one(attended, f"{layer}.self_attn.out_proj"))
        normed = blocks.layer_norm(hidden, f"{layer}.final_layer_norm", epsilon)
        inner = blocks.activation(blocks.one(normed, f"{layer}.fc1"), config.get("activation_function", "relu"))
        hidden = blocks.add(hidden, blocks.one(inner, f"{layer}.fc2"))
    kept = blocks.layer_norm(blocks.keep(hidden), f"{model}.final_layer_norm", epsilon)
    return blocks.head(kept, "lm_head", f"{model}.embed_tokens")
