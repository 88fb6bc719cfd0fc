"""GPT-NeoX and Pythia (Black et al. 2022): rotary on a part of each head, attention and MLP in parallel."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from planish.export.emit_blocks import Blocks, Dimensions, QkvValues
from planish.export.emit_linear import take_rows
from planish.export.emit_rotary import inverse_frequency

__all__ = ["dimensions", "emit", "head_order"]


def dimensions(config: dict[str, Any]) -> Dimensions:
    """Shapes from ``config.json``."""
    return Dimensions.of(config)


def emit(blocks: Blocks) -> ir.Value:
    """Emit the whole decoder; returns logits."""
    config = blocks.reader.config
    epsilon = float(config.get("layer_norm_eps", 1e-5))
    head_dim, turning = blocks.dimensions.head_dim, _rotary_dim(config, blocks.dimensions.head_dim)
    frequency = _padded(inverse_frequency(config, turning), head_dim)
    order, rotary = head_order(turning, len(frequency), head_dim), blocks.rotary_caches(frequency)
    hidden = blocks.embed(blocks.input_ids, "gpt_neox.embed_in")
    for index in range(blocks.dimensions.layers):
        layer = f"gpt_neox.layers.{index}"
        normed = blocks.layer_norm(hidden, f"{layer}.input_layernorm", epsilon)
        attended = blocks.attention(_qkv(blocks, normed, f"{layer}.attention.query_key_value", order), rotary=rotary)
        after = blocks.add(hidden, blocks.one(attended, f"{layer}.attention.dense"))
        parallel = config.get("use_parallel_residual", True)
        normed = blocks.layer_norm(hidden if parallel else after, f"{layer}.post_attention_layernorm", epsilon)
        inner = blocks.activation(blocks.one(normed, f"{layer}.mlp.dense_h_to_4h"), config.get("hidden_act", "gelu"))
        hidden = blocks.add(after, blocks.one(inner, f"{layer}.mlp.dense_4h_to_h"))
    kept = blocks.layer_norm(blocks.keep(hidden), "gpt_neox.final_layer_norm", epsilon)
    old = "embed_out.weight" in blocks.reader or blocks.reader.is_quantized("embed_out")
    return blocks.head(kept, "embed_out" if old else "lm_head", "gpt_neox.embed_in")


def _rotary_dim(config: dict[str, Any], head_dim: int) -> int:
    parameters = config.get("rope_parameters") or {}
    part = (
        parameters.get("partial_rotary_factor") or config.get("partial_rotary_factor") or config.get("rotary_pct", 0.25)
    )
    return int(head_dim * float(part))


def _padded(frequency: NDArray[np.float32], head_dim: int) -> NDArray[np.float32]:
    """Attention rotates multiples of 16 dimensions; those that are not to turn get frequency 0."""
    half = min(-(-len(frequency) // 8) * 8, head_dim // 2)
    return np.pad(frequency, (0, half - len(frequency)))


def head_order(rotary_dim: int, half: int, head_dim: int) -> NDArray[np.int64]:
    """Dimensions of a query or key head so that dimension ``i`` is rotated with ``i + half``.

    The first ``rotary_dim`` come in pairs ``rotary_dim / 2`` apart; pairs of the others, which do not turn, fill both
    halves up. Queries and keys change alike, so their products do not.

    >>> head_order(4, 4, 10).tolist()
    [0, 1, 4, 5, 2, 3, 6, 7, 8, 9]
    """
    turning, still = rotary_dim // 2, half - rotary_dim // 2
    rest = np.arange(rotary_dim, head_dim)
    first = [np.arange(turning), rest[:still]]
    second = [np.arange(turning, rotary_dim), rest[still:]]
    return np.concatenate([*first, *second])


def _qkv(blocks: Blocks, x: ir.Value, module: str, order: NDArray[np.int64]) -> QkvValues:
    """The checkpoint interleaves query, key and value of each head; attention wants all queries first."""
    d = blocks.dimensions
    rows = np.arange(3 * d.heads * d.head_dim).reshape(d.heads, 3, d.head_dim).transpose(1, 0, 2)
    rows = np.concatenate([rows[:2, :, order], rows[2:]])
    return blocks.packed(x, take_rows(blocks.reader.linear(module), rows.reshape(-1)), module)
