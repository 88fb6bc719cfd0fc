"""Channel permutations that change where a Llama-type model's weights lie, and not what it computes.

Why: GGUF checkpoints hold weights that already lie exactly on a 4-bit block grid along the input axis, so quantizing
them again says little about a quantizer. A permutation of the hidden channels gives every block new neighbours: the
function is identical, the grid is gone.

Permuted, each by its own random order: the residual stream (embedding, norms, every projection that reads or writes it,
the head), the neurons of each MLP, and the value channels of each key/value head (value rows, output columns of the
query heads that share it). Query and key channels stay, because rotary embedding gives each of them a fixed frequency.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from planish.errors import CheckpointError

__all__ = ["permute_llama"]


@torch.no_grad()
def permute_llama(model: nn.Module, seed: int = 0) -> None:
    """Permute the channels of a Llama-type ``*ForCausalLM`` in place; its logits change by float rounding only.

    Raises :class:`CheckpointError`, before anything is changed, if the layers do not have Llama's names.
    """
    body: Any = getattr(model, "model", None)
    _check_layers(model, body)
    config: Any = model.config
    generator = torch.Generator().manual_seed(seed)
    residual = torch.randperm(config.hidden_size, generator=generator)
    _columns(body.embed_tokens, residual)
    head: Any = model.lm_head
    if head.weight is not body.embed_tokens.weight:
        _columns(head, residual)
    _rows(body.norm, residual)
    for layer in body.layers:
        _permute_layer(layer, residual, config, generator)


def _check_layers(model: nn.Module, body: Any) -> None:
    needed = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "input_layernorm"}
    layers = getattr(body, "layers", None) or [nn.Module()]
    names = {name.rsplit(".", 1)[-1] for name, _ in layers[0].named_modules()}
    if not needed <= names or hasattr(layers[0], "pre_feedforward_layernorm"):
        raise CheckpointError(
            f"a Llama-type model with layers of {', '.join(sorted(needed))}",
            type(model).__name__,
            "give a Llama, SmolLM2, Mistral, Qwen2 or Qwen3 causal language model",
        )


def _permute_layer(layer: Any, residual: Tensor, config: Any, generator: torch.Generator) -> None:
    attention, mlp = layer.self_attn, layer.mlp
    for norm in (layer.input_layernorm, layer.post_attention_layernorm):
        _rows(norm, residual)
    for reader in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
        _columns(reader, residual)
    for writer in (attention.o_proj, mlp.down_proj):
        _rows(writer, residual)

    neurons = torch.randperm(mlp.down_proj.weight.shape[1], generator=generator)
    for projection in (mlp.gate_proj, mlp.up_proj):
        _rows(projection, neurons)
    _columns(mlp.down_proj, neurons)

    values, outputs = _value_orders(config, attention.v_proj.weight.shape[0], generator)
    _rows(attention.v_proj, values)
    _columns(attention.o_proj, outputs)


def _value_orders(config: Any, value_rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Orders of the value rows ``[kv_heads * d]`` and output columns ``[heads * d]``; a kv head's queries share one."""
    kv_heads = config.num_key_value_heads
    size = value_rows // kv_heads
    shared = config.num_attention_heads // kv_heads
    inside = torch.stack([torch.randperm(size, generator=generator) for _ in range(kv_heads)])
    values = inside + size * torch.arange(kv_heads)[:, None]
    outputs = inside.repeat_interleave(shared, dim=0) + size * torch.arange(kv_heads * shared)[:, None]
    return values.flatten(), outputs.flatten()


def _rows(module: Any, order: Tensor) -> None:
    module.weight.copy_(module.weight[order])
    if getattr(module, "bias", None) is not None:
        module.bias.copy_(module.bias[order])


def _columns(module: Any, order: Tensor) -> None:
    module.weight.copy_(module.weight[:, order])
