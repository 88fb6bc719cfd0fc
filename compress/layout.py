"""The compressed-tensors layout: tensors of a quantized layer, and the ``quantization_config`` that explains them.

Spec: docs/formats.md, section 1. Groups name their layers by regular expression, with the block number as ``\\d+`` and
any prefix allowed, because ``AutoModel`` loads the body of a ``...ForSequenceClassification`` checkpoint under shorter
names.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch

from planish.compress.activations import FLOAT8
from planish.compress.bench import Bench, Stored
from planish.compress.grid import Quantized
from planish.compress.packing import pack
from planish.compress.walk import Layer

__all__ = ["layer_tensors", "quantization_config"]


def layer_tensors(name: str, stored: Stored) -> dict[str, torch.Tensor]:
    """Tensors of one layer under their names in the checkpoint."""
    q = stored.quantized
    scale = q.scale.to(torch.float16)
    if not stored.packed:
        if _is_float8(q):
            scale = scale.reshape(1)
        tensors = {f"{name}.weight": q.values, f"{name}.weight_scale": scale}
        if stored.input_scale is not None:
            tensors[f"{name}.input_scale"] = torch.tensor([stored.input_scale], dtype=torch.float16)
        if stored.pre_quant_scale is not None:
            tensors[f"{name}.pre_quant_scale"] = stored.pre_quant_scale.to(torch.float16)
        return tensors
    tensors = {
        f"{name}.weight_packed": pack(q.values, q.bits),
        f"{name}.weight_scale": scale,
        f"{name}.weight_shape": torch.tensor(q.values.shape, dtype=torch.int64),
    }
    if q.zero_point is not None:
        tensors[f"{name}.weight_zero_point"] = pack(q.zero_point, q.bits, dim=0)
    return tensors


def quantization_config(bench: Bench) -> dict[str, Any]:
    """The ``quantization_config`` entry of config.json for all layers on the bench."""
    groups: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for layer in bench.layers:
        if layer.name in bench.stored:
            scheme = _scheme(layer, bench.stored[layer.name])
            groups.setdefault(repr(scheme), (scheme, []))[1].append(layer.name)
    prefix = getattr(bench.model, "base_model_prefix", "")
    every = [name for name, _ in bench.model.named_modules()]
    config_groups = {
        f"group_{index}": {"targets": _targets(names, every, prefix), **scheme}
        for index, (scheme, names) in enumerate(groups.values())
    }
    formats = sorted({scheme["format"] for scheme, _ in groups.values()})
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": formats[0] if len(formats) == 1 else "mixed-precision",
        "ignore": [],
        "config_groups": config_groups,
    }


def _scheme(layer: Layer, stored: Stored) -> dict[str, Any]:
    float8 = _is_float8(stored.quantized)
    scheme: dict[str, Any] = {
        "format": "pack-quantized" if stored.packed else "float-quantized" if float8 else "int-quantized",
        "weights": _weights(stored.quantized),
    }
    if stored.activations is not None:
        static = stored.activations == "static"
        strategy = "tensor" if static else stored.activations
        kind = "float" if float8 else "int"
        scheme["input_activations"] = _arguments(8, True, strategy, None, dynamic=not static, kind=kind)
    # No such keys in compressed-tensors: its strict schema refuses the checkpoint, instead of filling layers it cannot
    # see with random numbers, or leaving out what it does not know.
    if stored.pre_quant_scale is not None:
        scheme["pre_quant_scale"] = True
    if layer.kind == "conv1d":
        scheme["module_class"] = "Conv1D"
    return scheme


def _weights(q: Quantized) -> dict[str, Any]:
    if _is_float8(q):
        return _arguments(8, True, "tensor", None, dynamic=False, kind="float")
    strategy = "channel" if q.group_size is None else "group"
    return _arguments(q.bits, q.zero_point is None, strategy, q.group_size, dynamic=False)


def _is_float8(q: Quantized) -> bool:
    return q.values.dtype == FLOAT8


def _arguments(
    bits: int, symmetric: bool, strategy: str, group_size: int | None, *, dynamic: bool, kind: str = "int"
) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": kind,
        "symmetric": symmetric,
        "strategy": strategy,
        "group_size": group_size,
        "dynamic": dynamic,
    }


def _targets(names: Iterable[str], every: list[str], prefix: str) -> list[str]:
    """Regular expressions that match ``names`` and no other module; short ones where the blocks are alike."""
    wanted = set(names)
    families: dict[str, list[str]] = defaultdict(list)
    for name in wanted:
        families[re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(name.removeprefix(prefix + ".")))].append(name)
    targets = []
    for pattern, members in sorted(families.items()):
        matches = {name for name in every if re.match(rf"(.*\.)?{pattern}$", name)}
        if matches <= wanted:
            targets.append(rf"re:(.*\.)?{pattern}$")
        else:
            exact = (re.escape(name.removeprefix(prefix + ".")) for name in sorted(members))
            targets.extend(rf"re:(.*\.)?{name}$" for name in exact)
    return targets
