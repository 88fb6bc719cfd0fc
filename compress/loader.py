"""Load a quantized checkpoint in torch: the same function ``from_pretrained`` gives, for every architecture we write.

The integers are turned into float32 weights once; layers with quantized activations quantize their input before each
call, with compressed-tensors' own arithmetic. Conv1D layers, which compressed-tensors does not know, work the same way.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from planish.compress.activations import quantize_inputs
from planish.compress.architectures import drop_poolers, model_class
from planish.compress.grid import Quantized
from planish.compress.packing import unpack
from planish.compress.quiet import quiet
from planish.compress.safetensors_file import read_header
from planish.compress.source import config_json
from planish.errors import CheckpointError
from planish.sliced import is_sliced, sliced

__all__ = ["load", "read_layers"]

Scheme = dict[str, Any]


def load(checkpoint: str | Path) -> nn.Module:
    """The model of a checkpoint :func:`planish.compress.compress` wrote: eval mode, float32.

    Raises:
        CheckpointError: it is not one, or it is damaged.
    """
    folder = Path(checkpoint)
    config, tensors = _read(folder)
    schemes = _schemes(config, tensors, folder)
    plain = {name: value for name, value in tensors.items() if not _belongs(name, schemes)}
    for name, scheme in schemes.items():
        weight = _quantized(name, scheme, tensors).dequantize()
        plain[f"{name}.weight"] = weight.t().contiguous() if "module_class" in scheme else weight
    scales = {key: value.float() for key, value in tensors.items() if key.endswith(_INPUT_PARTS)}
    del tensors
    model = _build(config, plain, folder)
    for name, scheme in schemes.items():
        module = model.get_submodule(name)
        if isinstance(module, Conv1D) != ("module_class" in scheme):
            raise CheckpointError(
                f"{name} to be a {scheme.get('module_class', 'Linear')}", type(module).__name__, _AGAIN
            )
        if scheme.get("input_activations"):
            _quantize_inputs(module, name, scheme, scales)
    return model


def read_layers(checkpoint: str | Path) -> dict[str, Quantized]:
    """The quantized layers of a checkpoint by module name, integers as stored.

    Raises:
        CheckpointError: as :func:`load`.
    """
    folder = Path(checkpoint)
    config, tensors = _read(folder)
    schemes = _schemes(config, tensors, folder)
    return {name: _quantized(name, scheme, tensors) for name, scheme in schemes.items()}


def _quantize_inputs(module: nn.Module, name: str, scheme: Scheme, scales: dict[str, torch.Tensor]) -> None:
    inputs, smoothed = scheme["input_activations"], bool(scheme.get("pre_quant_scale"))
    dynamic, factor = inputs.get("dynamic"), scales.get(f"{name}.pre_quant_scale")
    for part, wanted in (("input_scale", not dynamic), ("pre_quant_scale", smoothed)):
        if wanted and f"{name}.{part}" not in scales:
            raise CheckpointError(f"{name}.{part}, as quantization_config says", "none", _AGAIN)
    scale = None if dynamic else scales[f"{name}.input_scale"]
    quantize_inputs(module, inputs["strategy"], scale, factor, float8=inputs.get("type") == "float")


_AGAIN = "write the checkpoint again with planish compress"
_INPUT_PARTS = (".input_scale", ".pre_quant_scale")


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    if not folder.is_dir():
        raise CheckpointError(f"a checkpoint directory at {folder}", "none", "check the path")
    config = config_json(folder)
    file = folder / "model.safetensors"
    if not file.is_file():
        raise CheckpointError(f"model.safetensors in {folder}", "none", _AGAIN)
    read_header(file)
    return config, load_file(file)


def _schemes(config: dict[str, Any], tensors: dict[str, torch.Tensor], folder: Path) -> dict[str, Scheme]:
    """Scheme of each quantized layer: the first group one of whose targets matches its name."""
    groups = (config.get("quantization_config") or {}).get("config_groups", {})
    schemes: dict[str, Scheme] = {}
    for key in tensors:
        if key.endswith(".weight_scale"):
            name = key.removesuffix(".weight_scale")
            matching = [
                group for group in groups.values() if any(_matches(name, target) for target in group["targets"])
            ]
            if not matching:
                raise CheckpointError(f"a group for {name} in quantization_config of {folder}", "none", _AGAIN)
            schemes[name] = matching[0]
    return schemes


def _matches(name: str, target: str) -> bool:
    return re.match(target[3:], name) is not None if target.startswith("re:") else target == name


def _belongs(key: str, schemes: dict[str, Scheme]) -> bool:
    owner, _, leaf = key.rpartition(".")
    return owner in schemes and (leaf.startswith("weight") or leaf in ("input_scale", "pre_quant_scale"))


def _quantized(name: str, scheme: Scheme, tensors: dict[str, torch.Tensor]) -> Quantized:
    weights = scheme["weights"]
    bits = int(weights["num_bits"])
    try:
        scale = tensors[f"{name}.weight_scale"].float()
        scale = scale.reshape(-1, scale.shape[-1])  # one of a whole tensor has no axes
        zero_point = None
        if scheme["format"] == "pack-quantized":
            columns = int(tensors[f"{name}.weight_shape"][1])
            values = unpack(tensors[f"{name}.weight_packed"], bits, columns)
            if not weights["symmetric"]:
                packed = tensors[f"{name}.weight_zero_point"]
                zero_point = unpack(packed, bits, scale.shape[0], dim=0)
        else:
            values = tensors[f"{name}.weight"]
    except KeyError as error:
        raise CheckpointError(f"all tensors of layer {name}", f"no {error.args[0]}", _AGAIN) from None
    return Quantized(values, scale, zero_point, bits, weights["group_size"])


def _build(config: dict[str, Any], tensors: dict[str, torch.Tensor], folder: Path) -> nn.Module:
    from transformers import AutoConfig

    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    architecture = (config.get("architectures") or [""])[0]
    cls = model_class(architecture)
    with quiet():
        parsed = AutoConfig.for_model(plain["model_type"]).from_dict(plain)
        kind = sliced(cls) if is_sliced(plain) else cls
        model, report = kind.from_pretrained(
            None, config=parsed, state_dict=tensors, dtype=torch.float32, output_loading_info=True
        )
    missing = drop_poolers(model, report["missing_keys"])
    if missing:
        raise CheckpointError(f"all weights in {folder}", f"no {missing[0]} ({len(missing)} missing)", _AGAIN)
    return model.eval().requires_grad_(False)  # type: ignore[no-any-return]
