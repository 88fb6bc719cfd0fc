"""What pruning may leave: a share of FLOPs or parameters, bytes, or milliseconds on a device.

A budget knows what each part of each block costs with so many units kept, what everything else costs, and the limit.
FLOPs and parameters are those of the blocks; bytes are those of the whole checkpoint in float32, tables and all;
milliseconds those of the whole model by a device's latency table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from planish.compress.flops import costs
from planish.compress.latency_table import LatencyTable
from planish.errors import RecipeError
from planish.families import block_parts, outputs_of

__all__ = ["Budget", "Unit", "budget_of"]

Unit = Literal["flops", "parameters", "bytes", "latency", "milliseconds"]
_FLOAT = 4  # bytes


@dataclass(frozen=True)
class Budget:
    """``attention(block, groups)`` and ``ffn(block, neurons)``: what they cost; ``fixed``: the rest; ``limit``: of all.

    ``whole`` is what the model costs as it is. Costs are integers except milliseconds.
    """

    unit: Unit
    attention: Callable[[int, int], float]
    ffn: Callable[[int, int], float]
    fixed: float
    limit: float
    whole: float

    def impossible(self, least: float) -> RecipeError:
        """The error that says how little is possible; ``least`` is all that cannot be cut, ``fixed`` and more."""
        if self.unit in ("bytes", "milliseconds"):
            possible = f"{_up(least):g}" if self.unit == "milliseconds" else str(int(least))
            given = f"{self.limit:g}" if self.unit == "milliseconds" else str(int(self.limit))
        else:
            possible, given = f"{_up(least / self.whole):g}", f"{self.limit / self.whole:.4g}"
        expected = f"{self.unit} of {possible} or more (a head and a few neurons stay in every block)"
        return RecipeError(expected, given, f"write {self.unit}: {possible}, or drop layers first")


def budget_of(model: Any, unit: Unit, value: float, length: int, table: LatencyTable | None) -> Budget:
    """The budget ``unit: value`` of a recipe for ``model`` at ``length`` tokens.

    ``flops``, ``parameters`` and ``latency`` are shares of what the model has now.

    Raises:
        RecipeError: the table is of another width.
        CheckpointError: the model's family is not known.
    """
    if unit in ("latency", "milliseconds"):
        assert table is not None
        return _by_table(model, unit, value, table)
    found = costs(model, length)
    blocks = found.blocks
    if unit == "flops":
        prices = [(2 * block.group_macs, 2 * block.neuron_macs) for block in blocks]
        fixed, whole, limit = 0, found.block_flops, value * found.block_flops
    elif unit == "parameters":
        prices = [(block.group_parameters, block.neuron_parameters) for block in blocks]
        fixed = sum(block.fixed_parameters for block in blocks)
        whole, limit = found.block_parameters, value * found.block_parameters
    else:
        prices = [(_FLOAT * block.group_parameters, _FLOAT * block.neuron_parameters) for block in blocks]
        fixed = _FLOAT * (found.rest_parameters + sum(block.fixed_parameters for block in blocks))
        whole, limit = found.bytes, value
    return Budget(
        unit,
        lambda block, groups: prices[block][0] * groups,
        lambda block, neurons: prices[block][1] * neurons,
        fixed,
        limit,
        whole,
    )


def _by_table(model: Any, unit: Unit, value: float, table: LatencyTable) -> Budget:
    parts = block_parts(model)
    width = outputs_of(parts[0].down)
    if table.hidden != width:
        raise RecipeError(f"a latency table for width {width}", f"one for {table.hidden}", "measure this model's")
    shared = [part.heads // part.kv_heads for part in parts]
    whole = table.base_ms + sum(table.attention(part.heads) + table.ffn(part.ffn) for part in parts)
    return Budget(
        unit,
        lambda block, groups: table.attention(groups * shared[block]),
        lambda block, neurons: table.ffn(neurons),
        table.base_ms,
        value * whole if unit == "latency" else value,
        whole,
    )


def _up(value: float) -> float:
    """Rounded up to four digits, so that what a message names is possible."""
    if value <= 0:
        return value
    scale = 10.0
    while value * scale < 1000:
        scale *= 10
    return -(-value * scale // 1) / scale
