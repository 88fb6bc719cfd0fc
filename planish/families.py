"""Where the parts of a transformer block are, family by family: what pruning cuts and what a sliced model rebuilds.

Names are transformers' own. A block is attention (query, key, value and output projections, apart or fused) and a
feed-forward part (up, down, and a gate where it is gated). The input of ``o`` is head-major ``[.., heads * head_dim]``,
that of ``down`` ``[.., ffn]``: a factor on one of their columns is a factor on a head's dimension or a neuron.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from planish.errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["FAMILIES", "Family", "Parts", "block_list", "block_parts", "family_of"]


@dataclass(frozen=True)
class Family:
    """Names of a family's parts, relative to a block, and of its sizes in config.json.

    ``fused``: query, key and value are one layer (``q`` names it), *stacked* one after the other or *interleaved* head
    by head. ``head_dim``: config.json may name a head width of its own.
    """

    blocks: str
    attention: str
    q: str
    k: str
    v: str
    o: str
    up: str
    down: str
    norms: tuple[str, ...]
    gate: str = ""
    fused: Literal["", "stacked", "interleaved"] = ""
    ffn_key: str = "intermediate_size"
    layers_key: str = "num_hidden_layers"
    heads_key: str = "num_attention_heads"
    width_key: str = "hidden_size"
    head_dim: bool = False


_BERT = Family(
    blocks="encoder.layer",
    attention="attention.self",
    q="attention.self.query",
    k="attention.self.key",
    v="attention.self.value",
    o="attention.output.dense",
    up="intermediate.dense",
    down="output.dense",
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
)
_LLAMA = Family(
    blocks="layers",
    attention="self_attn",
    q="self_attn.q_proj",
    k="self_attn.k_proj",
    v="self_attn.v_proj",
    o="self_attn.o_proj",
    up="mlp.up_proj",
    down="mlp.down_proj",
    gate="mlp.gate_proj",
    norms=("input_layernorm", "post_attention_layernorm"),
    head_dim=True,
)

FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "electra": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "distilbert": Family(
        blocks="transformer.layer",
        attention="attention",
        q="attention.q_lin",
        k="attention.k_lin",
        v="attention.v_lin",
        o="attention.out_lin",
        up="ffn.lin1",
        down="ffn.lin2",
        norms=("sa_layer_norm", "output_layer_norm"),
        ffn_key="hidden_dim",
        layers_key="n_layers",
        heads_key="n_heads",
        width_key="dim",
    ),
    "mpnet": Family(
        blocks="encoder.layer",
        attention="attention.attn",
        q="attention.attn.q",
        k="attention.attn.k",
        v="attention.attn.v",
        o="attention.attn.o",
        up="intermediate.dense",
        down="output.dense",
        norms=("attention.LayerNorm", "output.LayerNorm"),
    ),
    "gpt2": Family(
        blocks="h",
        attention="attn",
        q="attn.c_attn",
        k="",
        v="",
        o="attn.c_proj",
        up="mlp.c_fc",
        down="mlp.c_proj",
        norms=("ln_1", "ln_2"),
        fused="stacked",
        ffn_key="n_inner",
        layers_key="n_layer",
        heads_key="n_head",
        width_key="n_embd",
    ),
    "gpt_neox": Family(
        blocks="layers",
        attention="attention",
        q="attention.query_key_value",
        k="",
        v="",
        o="attention.dense",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        norms=("input_layernorm", "post_attention_layernorm"),
        fused="interleaved",
    ),
    "opt": Family(
        blocks="decoder.layers",
        attention="self_attn",
        q="self_attn.q_proj",
        k="self_attn.k_proj",
        v="self_attn.v_proj",
        o="self_attn.out_proj",
        up="fc1",
        down="fc2",
        norms=("self_attn_layer_norm", "final_layer_norm"),
        ffn_key="ffn_dim",
    ),
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}
"""``model_type`` -> where its parts are."""


@dataclass(frozen=True)
class Parts:
    """The modules of one block, and its sizes as they are now.

    Weights are ``[out, in]`` in a Linear and ``[in, out]`` in GPT-2's Conv1D. ``q``, ``k``, ``v`` are None where they
    are fused into ``qkv``; ``gate`` is None unless the feed-forward part is gated. Query heads that share a key/value
    head are neighbours, ``heads // kv_heads`` of them.
    """

    attention: nn.Module
    q: nn.Module | None
    k: nn.Module | None
    v: nn.Module | None
    qkv: nn.Module | None
    o: nn.Module
    up: nn.Module
    gate: nn.Module | None
    down: nn.Module
    norms: tuple[nn.Module, ...]
    fused: str
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int


def family_of(config: Any) -> Family:
    """The family of a model's config.

    Raises:
        CheckpointError: a ``model_type`` that is none of :data:`FAMILIES`.
    """
    if config.model_type not in FAMILIES:
        raise CheckpointError(f"a model of type {', '.join(sorted(FAMILIES))}", config.model_type, "quantize it only")
    return FAMILIES[config.model_type]


def block_list(model: Any) -> nn.ModuleList:
    """The blocks of a model, with or without a task's head."""
    base = getattr(model, model.base_model_prefix, model)
    found: nn.ModuleList = base.get_submodule(family_of(model.config).blocks)
    return found


def block_parts(model: Any) -> list[Parts]:
    """The parts of each block, in order.

    Raises:
        CheckpointError: the model's family is not known.
    """
    family = family_of(model.config)
    return [_parts(block, family, model.config) for block in block_list(model)]


def _parts(block: nn.Module, family: Family, config: Any) -> Parts:
    get = block.get_submodule
    attention, o, down = get(family.attention), get(family.o), get(family.down)
    head_dim = head_width(attention, config)
    heads = inputs_of(o) // head_dim
    kv_heads = heads if family.fused else outputs_of(get(family.k)) // head_dim
    apart = not family.fused
    return Parts(
        attention=attention,
        q=get(family.q) if apart else None,
        k=get(family.k) if apart else None,
        v=get(family.v) if apart else None,
        qkv=None if apart else get(family.q),
        o=o,
        up=get(family.up),
        gate=get(family.gate) if family.gate else None,
        down=down,
        norms=tuple(get(name) for name in family.norms),
        fused=family.fused,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=inputs_of(down),
    )


def head_width(attention: Any, config: Any) -> int:
    """Dimensions of a head, as the attention module splits its heads."""
    for name in ("attention_head_size", "head_dim", "head_size"):
        if hasattr(attention, name):
            return int(getattr(attention, name))
    return int(config.hidden_size) // int(config.num_attention_heads)


def inputs_of(layer: Any) -> int:
    """Columns a Linear or Conv1D reads."""
    return int(layer.weight.shape[0] if hasattr(layer, "nf") else layer.weight.shape[1])


def outputs_of(layer: Any) -> int:
    """Rows a Linear or Conv1D writes."""
    return int(layer.weight.shape[1] if hasattr(layer, "nf") else layer.weight.shape[0])
