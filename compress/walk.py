"""The walk over a model's linear layers: which there are, what part they play, and their weights as ``[out, in]``.

Nothing here knows a model family by name. The number of blocks comes from optimum's normalized configs, the blocks
are the ``ModuleList`` of that length, the tables come from ``get_input_embeddings`` / ``get_output_embeddings``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from optimum.utils import NormalizedConfigManager
from torch import nn
from transformers.pytorch_utils import Conv1D

from planish.errors import CheckpointError

__all__ = ["Kind", "Layer", "Role", "find_blocks", "head_is_tied", "longest_text", "normalized", "walk"]

Kind = Literal["linear", "conv1d", "embedding"]
Role = Literal["body", "head", "embedding", "positions", "other"]


@dataclass(frozen=True)
class Layer:
    """One linear or embedding layer.

    ``role``: *body* = inside a block; *embedding* = the token table; *positions* = a table
    of learned positions; *head* = the projection onto the vocabulary;
    *other* = the rest (poolers, classifiers, projections between embedding and blocks).
    """

    name: str
    module: nn.Module
    kind: Kind
    role: Role
    block: int | None

    @property
    def weight(self) -> torch.Tensor:
        """The weight as ``[out, in]`` (an embedding: ``[rows, width]``), a view of the parameter's memory."""
        parameter: torch.Tensor = self.module.weight.data  # type: ignore[assignment]
        return parameter.t() if self.kind == "conv1d" else parameter

    def set_weight(self, weight: torch.Tensor) -> None:
        """Overwrite the weight in place with ``[out, in]`` values."""
        self.weight.copy_(weight)


_POSITIONS = re.compile(r"(^|\.)(position_embeddings|wpe)$")
"""What tables of learned positions are called (BERT and kin, GPT-2); relative biases are none."""


def normalized(config: Any) -> Any:
    """optimum's normalized view of ``config``: ``num_layers``, ``hidden_size``, ``num_attention_heads``, ...

    Raises:
        CheckpointError: optimum does not know the model type.
    """
    try:
        return NormalizedConfigManager.get_normalized_config_class(config.model_type)(config)
    except KeyError:
        raise CheckpointError("a model type optimum knows", repr(config.model_type), "convert the checkpoint") from None


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name and list of the transformer blocks.

    Raises:
        CheckpointError: no ``ModuleList`` is as long as the config has layers.
    """
    count = normalized(model.config).num_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and _kind(module[0]) is None:
            return name, module
    raise CheckpointError(f"a list of {count} blocks in the model", "none", "check num_hidden_layers in config.json")


def head_is_tied(model: Any) -> bool:
    """Whether the projection onto the vocabulary is the token table itself."""
    head = model.get_output_embeddings()
    return head is not None and getattr(head, "weight", None) is model.get_input_embeddings().weight


def longest_text(model: Any) -> int | None:
    """Tokens the model has positions for; None if it has no limit.

    RoBERTa and MPNet count positions from behind the padding id, so theirs are fewer than the table's rows.
    """
    limit: int | None = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if limit and name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            limit = min(limit, module.num_embeddings - module.padding_idx - 1)
    return limit


def walk(model: Any) -> Iterator[Layer]:
    """All linear, Conv1D and embedding layers in the model's order; of embeddings those of tokens and positions."""
    prefix, _ = find_blocks(model)
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    for name, module in model.named_modules():
        kind = _kind(module)
        # OPT's table looks up in a way of its own, which compressed-tensors replaces: integers of it cannot be loaded.
        positions = type(module) is nn.Embedding and module is not table and _POSITIONS.search(name) is not None
        if kind is None or (kind == "embedding" and module is not table and not positions):
            continue
        block = int(name[len(prefix) + 1 :].split(".", 1)[0]) if name.startswith(prefix + ".") else None
        role: Role = "other" if block is None else "body"
        if positions:
            role = "positions"
        elif module is table:
            role = "embedding"
        elif module is head:
            role = "head"
        yield Layer(name, module, kind, role, block)


def _kind(module: nn.Module) -> Kind | None:
    if type(module) is nn.Linear:
        return "linear"
    if isinstance(module, Conv1D):
        return "conv1d"
    return "embedding" if isinstance(module, nn.Embedding) else None
