"""Cut heads, neurons, blocks, hidden channels and tokens out of a model on the bench: what is cut is gone.

Every function works in place, keeps what ``keep`` names (sorted indices), says so in the config the checkpoint will
carry, and walks the layers anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from planish.compress.bench import Bench
from planish.errors import PlanishError, RecipeError
from planish.families import block_list, block_parts, family_of
from planish.sliced import Shape, express, renumber, say_sizes, tell_heads

__all__ = ["cut_blocks", "cut_heads", "cut_neurons", "cut_vocabulary", "cut_width", "take_columns", "take_rows"]


@torch.no_grad()
def cut_heads(bench: Bench, block: int, keep: Sequence[int]) -> None:
    """Keep the key/value heads ``keep`` of a block, each with the query heads that share it.

    Raises:
        RecipeError: MPNet, whose blocks share one relative position bias a head.
    """
    if bench.model.config.model_type == "mpnet":  # type: ignore[union-attr]
        got = "MPNet, whose blocks share one position bias for each head"
        raise RecipeError("a model whose heads can be cut", got, "set heads: false and prune neurons or layers")
    part = block_parts(bench.model)[block]
    index = _checked(keep, part.kv_heads, "key/value heads")
    shared = part.heads // part.kv_heads
    queries = _spread(_spread(index, shared), part.head_dim)
    if part.qkv is not None:
        if part.fused == "stacked":
            span = part.heads * part.head_dim
            take_rows(part.qkv, torch.cat([queries, queries + span, queries + 2 * span]))
        else:
            take_rows(part.qkv, _spread(index, 3 * part.head_dim))
    else:
        take_rows(part.q, queries)
        for layer in (part.k, part.v):
            take_rows(layer, _spread(index, part.head_dim))
    take_columns(part.o, queries)
    tell_heads(part.attention, Shape(len(index) * shared, len(index), part.head_dim, part.ffn))
    _said(bench)


@torch.no_grad()
def cut_neurons(bench: Bench, block: int, keep: Sequence[int]) -> None:
    """Keep the neurons ``keep`` of a block's feed-forward part."""
    part = block_parts(bench.model)[block]
    index = _checked(keep, part.ffn, "neurons")
    take_rows(part.up, index)
    if part.gate is not None:
        take_rows(part.gate, index)
    take_columns(part.down, index)
    _said(bench)


def cut_blocks(bench: Bench, keep: Sequence[int]) -> None:
    """Keep the blocks ``keep``, in their order.

    Raises:
        RecipeError: a GPT-2 whose attention is scaled by the number of its block.
    """
    model: Any = bench.model
    if getattr(model.config, "scale_attn_by_inverse_layer_idx", False):
        got = "scale_attn_by_inverse_layer_idx: true"
        raise RecipeError("blocks that do not depend on their number", got, "prune heads and neurons instead")
    blocks = block_list(model)
    index = _checked(keep, len(blocks), "blocks").tolist()
    kept = [blocks[number] for number in index]
    del blocks[len(kept) :]
    for number, block in enumerate(kept):
        blocks[number] = block
    renumber(model)
    kinds = getattr(model.config, "layer_types", None)
    changes = {} if kinds is None else {"layer_types": [kinds[number] for number in index]}
    _set_config(bench, {**changes, family_of(model.config).layers_key: len(kept)})
    _said(bench)


@torch.no_grad()
def cut_width(bench: Bench, keep: Sequence[int]) -> None:
    """Keep the hidden channels ``keep`` of the residual stream; heads and neurons stay as they are.

    Outside the blocks every axis as long as the stream is wide is cut: tables, norms, poolers, heads.

    Raises:
        RecipeError: a model where another axis is as long (number of labels, of positions, of tokens), or MPNet with
            a width its heads do not divide.
    """
    model: Any = bench.model
    config = model.config
    width = int(config.hidden_size)
    index = _checked(keep, width, "hidden channels")
    if config.model_type == "mpnet" and len(index) % config.num_attention_heads:
        fix = f"choose a multiple of {config.num_attention_heads}"
        raise RecipeError("a width that MPNet's heads divide", str(len(index)), fix)
    if config.model_type == "electra" and len(index) == config.embedding_size:
        fix = "choose another width"
        raise RecipeError("a width other than ELECTRA's embedding_size", f"{len(index)} of both", fix)
    lengths = {"labels": config.num_labels, "positions": getattr(config, "max_position_embeddings", 0)}
    lengths |= {"tokens": config.vocab_size, "types": getattr(config, "type_vocab_size", 0)}
    for name, length in lengths.items():
        if length == width:
            got = f"{width} of both, which cannot be told apart"
            raise RecipeError(f"a width other than the number of {name}", got, "prune heads, neurons or layers")
    inside = {id(module) for block in block_list(model) for module in block.modules()}
    inside |= {id(module) for name, module in model.named_modules() if name.endswith("relative_attention_bias")}
    for part in block_parts(model):
        for layer in (part.q, part.k, part.v, part.qkv, part.up, part.gate):
            if layer is not None:
                take_columns(layer, index)
        for layer in (part.o, part.down):
            take_rows(layer, index)
        for norm in part.norms:
            _shorten(norm, width, index)
    for module in model.modules():
        if id(module) not in inside:
            _shorten(module, width, index)
    changes: dict[str, Any] = {family_of(config).width_key: len(index)}
    if config.model_type == "opt":
        changes["word_embed_proj_dim"] = len(index)
    if config.model_type == "electra" and config.embedding_size == width:
        changes["embedding_size"] = len(index)
    head_dim = block_parts(model)[0].head_dim
    _set_config(bench, changes)
    for part in block_parts(model):
        tell_heads(part.attention, Shape(part.heads, part.kv_heads, head_dim, part.ffn))
    _said(bench)


@torch.no_grad()
def cut_vocabulary(bench: Bench, keep: Sequence[int]) -> None:
    """Keep the tokens ``keep``: rows of the token table and of the vocabulary head, tied or not, with its bias.

    ``bench.vocabulary`` says afterwards which row of the parent each token is. Token ids in config.json are the
    caller's to change.
    """
    model: Any = bench.model
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    rows = table.weight.shape[0]
    index = _checked(keep, rows, "tokens")
    weight = table.weight
    table.weight = _parameter(weight, weight.index_select(0, index))
    table.num_embeddings = len(index)
    if getattr(table, "padding_idx", None) is not None:
        found = (index == table.padding_idx).nonzero()
        table.padding_idx = int(found[0]) if len(found) else None
    if head is not None:
        if head.weight is weight:
            head.weight = table.weight
        else:
            head.weight = _parameter(head.weight, head.weight.index_select(0, index))
        say_sizes(head, len(index), head.weight.shape[1])
        _cut_head_biases(model, head, rows, index)
    bench.vocabulary = index if bench.vocabulary is None else bench.vocabulary[index]
    _set_config(bench, {"vocab_size": len(index)})
    bench.refresh()


def _cut_head_biases(model: Any, head: Any, rows: int, index: Tensor) -> None:
    """A masked-language head keeps its bias twice, under two names that are one tensor; a block's are none of them."""
    cut: dict[int, nn.Parameter] = {}
    inside = {id(module) for block in block_list(model) for module in block.modules()}
    for module in model.modules():
        if id(module) in inside:
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.ndim == 1 and len(parameter) == rows and name == "bias":
                if id(parameter) not in cut:
                    cut[id(parameter)] = _parameter(parameter, parameter.index_select(0, index))
                setattr(module, name, cut[id(parameter)])


def take_rows(layer: Any, index: Tensor) -> None:
    """Keep outputs ``index`` of a Linear or Conv1D, with their biases."""
    axis = 1 if hasattr(layer, "nf") else 0
    layer.weight = _parameter(layer.weight, layer.weight.index_select(axis, index))
    if getattr(layer, "bias", None) is not None:
        layer.bias = _parameter(layer.bias, layer.bias.index_select(0, index))
    say_sizes(layer, len(index), layer.weight.shape[1 - axis])


def take_columns(layer: Any, index: Tensor) -> None:
    """Keep inputs ``index`` of a Linear or Conv1D."""
    axis = 0 if hasattr(layer, "nf") else 1
    layer.weight = _parameter(layer.weight, layer.weight.index_select(axis, index))
    say_sizes(layer, layer.weight.shape[1 - axis], len(index))


def _shorten(module: Any, width: int, index: Tensor) -> None:
    """Cut every axis of ``width`` out of a module's own parameters, and tell the module."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        cut = parameter
        for axis in range(parameter.ndim):
            if parameter.shape[axis] == width:
                cut = cut.index_select(axis, index)
        if cut is not parameter:
            _replace(module, name, parameter, cut)
    for name in ("in_features", "out_features", "embedding_dim", "nx", "nf", "hidden_size", "embed_dim"):
        if getattr(module, name, None) == width:
            setattr(module, name, len(index))
    if getattr(module, "normalized_shape", None) == (width,):
        module.normalized_shape = (len(index),)


_TIED = "_cut_to"


def _replace(module: Any, name: str, old: nn.Parameter, cut: Tensor) -> None:
    """Replace a parameter; one that two modules share is cut once and stays shared."""
    new = getattr(old, _TIED, None)
    if new is None:
        new = _parameter(old, cut)
        setattr(old, _TIED, new)
    setattr(module, name, new)


def _parameter(old: nn.Parameter, values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.clone().contiguous(), requires_grad=old.requires_grad)


def _spread(index: Tensor, size: int) -> Tensor:
    """Rows of the groups ``index``, each ``size`` rows long."""
    return (index[:, None] * size + torch.arange(size)).flatten()


def _checked(keep: Iterable[int], count: int, what: str) -> Tensor:
    found = list(keep)
    if not found or found != sorted(set(found)) or found[0] < 0 or found[-1] >= count:
        raise PlanishError(f"sorted indices of {count} {what}, at least one", str(found)[:80], "report this bug")
    return torch.tensor(found, dtype=torch.int64)


def _set_config(bench: Bench, changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        setattr(bench.model.config, name, value)
    bench.config |= changes


def _said(bench: Bench) -> None:
    """Describe the shapes in the config, and walk the layers anew."""
    _set_config(bench, express(bench.model))
    bench.refresh()
