"""What a model costs: multiply-adds of its matrix products, parameters and bytes, split into what pruning can cut.

A block is so many head groups (a key/value head with the query heads that share it; in plain attention one head), so
many neurons, and a rest that stays. Counted are the products of linear layers and the two of attention, ``Q K^T`` and
``P V``, in full as eager attention computes them, causal or not; what is added point by point is not, nor are rotary
tables. One multiply-add is two FLOPs, as :mod:`torch.utils.flop_counter` has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from planish.compress.calibrate import no_cache
from planish.families import Parts, block_list, block_parts, inputs_of, outputs_of

__all__ = ["BlockCosts", "Costs", "costs"]

_FLOAT = 4  # bytes of a float32 parameter


@dataclass(frozen=True)
class BlockCosts:
    """One block: how many ``groups`` and ``neurons`` it has, and what one of each costs.

    Multiply-adds are those of one whole sequence. ``fixed_parameters`` are norms and the biases of the outputs.
    """

    groups: int
    neurons: int
    group_macs: int
    neuron_macs: int
    group_parameters: int
    neuron_parameters: int
    fixed_parameters: int

    @property
    def macs(self) -> int:
        return self.groups * self.group_macs + self.neurons * self.neuron_macs

    @property
    def parameters(self) -> int:
        return self.groups * self.group_parameters + self.neurons * self.neuron_parameters + self.fixed_parameters


@dataclass(frozen=True)
class Costs:
    """A model at ``length`` tokens: its blocks, and the rest (projections of tables, poolers, heads; all tables)."""

    length: int
    blocks: tuple[BlockCosts, ...]
    rest_macs: int
    rest_parameters: int

    @property
    def block_flops(self) -> int:
        """FLOPs of the blocks for one sequence."""
        return 2 * sum(block.macs for block in self.blocks)

    @property
    def flops(self) -> int:
        """FLOPs of the whole model for one sequence."""
        return self.block_flops + 2 * self.rest_macs

    @property
    def flops_per_token(self) -> float:
        """The whole model's, averaged over the sequence."""
        return self.flops / self.length

    @property
    def block_parameters(self) -> int:
        return sum(block.parameters for block in self.blocks)

    @property
    def parameters(self) -> int:
        """All parameters, shared ones counted once."""
        return self.block_parameters + self.rest_parameters

    @property
    def bytes(self) -> int:
        """Bytes of all parameters in float32."""
        return _FLOAT * self.parameters


def costs(model: Any, length: int = 128) -> Costs:
    """Count what ``model`` costs for one sequence of ``length`` tokens, by the shapes of its weights.

    Raises:
        CheckpointError: the model's family is not known.
    """
    blocks = tuple(
        _block(part, sum(p.numel() for p in block.parameters()), length)
        for part, block in zip(block_parts(model), block_list(model), strict=True)
    )
    parameters = sum(p.numel() for p in model.parameters()) - sum(block.parameters for block in blocks)
    return Costs(length, blocks, _rest(model, length), parameters)


def _block(part: Parts, parameters: int, length: int) -> BlockCosts:
    groups, shared = part.kv_heads, part.heads // part.kv_heads
    width, span = outputs_of(part.down), shared * part.head_dim
    columns = 2 * span + 2 * part.head_dim  # of q and o, of k and v
    queries = [layer for layer in (part.q, part.k, part.v, part.qkv) if layer is not None]
    biases = sum(outputs_of(layer) for layer in queries if layer.bias is not None)
    ups = [layer for layer in (part.up, part.gate) if layer is not None]
    group_parameters = columns * width + biases // groups
    neuron_parameters = (1 + len(ups)) * width + sum(layer.bias is not None for layer in ups)
    cut = groups * group_parameters + part.ffn * neuron_parameters
    return BlockCosts(
        groups=groups,
        neurons=part.ffn,
        group_macs=length * columns * width + 2 * length * length * span,
        neuron_macs=length * (1 + len(ups)) * width,
        group_parameters=group_parameters,
        neuron_parameters=neuron_parameters,
        fixed_parameters=parameters - cut,
    )


def _rest(model: Any, length: int) -> int:
    """Multiply-adds of linear layers outside the blocks.

    A pooler works on one position, a head on all: rows are counted at two short lengths, and drawn on to ``length``.
    """
    short, longer = _rows(model, 2), _rows(model, 4)
    total = 0
    for layer, rows in short.items():
        slope, odd = divmod(longer[layer] - rows, 2)
        assert not odd
        total += (rows + slope * (length - 2)) * inputs_of(layer) * outputs_of(layer)
    return total


@torch.no_grad()
def _rows(model: Any, length: int) -> dict[nn.Module, int]:
    """How many rows each linear layer outside the blocks multiplies for one sequence of ``length`` tokens."""
    inside = {id(module) for module in block_list(model).modules()}
    rows: dict[nn.Module, int] = {}

    def hook(layer: nn.Module) -> Callable[..., None]:
        def count(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            rows[layer] = rows.get(layer, 0) + args[0].numel() // args[0].shape[-1]

        return count

    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, Conv1D)) and id(m) not in inside]
    handles = [layer.register_forward_pre_hook(hook(layer)) for layer in layers]
    ids = torch.ones(1, length, dtype=torch.int64, device=next(model.parameters()).device)
    try:
        model(input_ids=ids, attention_mask=torch.ones_like(ids), **no_cache(model))
    finally:
        for handle in handles:
            handle.remove()
    return rows
