"""What a bundle or a checkpoint is made of, as plain facts for ``planish inspect``."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from planish.errors import CheckpointError, InputError

__all__ = ["describe"]

COPY = "copy the checkpoint again"


def describe(path: Path) -> dict[str, Any]:
    """Facts about the bundle or checkpoint at ``path``; raises ``InputError`` if it is neither."""
    if (path / "manifest.json").exists():
        return describe_bundle(path)
    if (path / "config.json").is_file():
        return describe_checkpoint(path)
    raise InputError("a bundle (manifest.json) or a checkpoint (config.json)", str(path), "give the directory of one")


def describe_bundle(path: Path) -> dict[str, Any]:
    """The manifest of a verified bundle, told shortly."""
    from planish import runtime

    manifest = runtime.verify(path)
    told = manifest.to_json()
    files = {name: entry["size"] for name, entry in told.pop("files").items()}
    told["bytes"] = {
        "total": sum(files.values()),
        "onnx": sum(size for name, size in files.items() if name.startswith("onnx/")),
    }
    told["largest_files"] = dict(sorted(files.items(), key=lambda item: -item[1])[:5])
    return {
        "kind": "bundle",
        "digest": manifest.digest,
        **{key: value for key, value in told.items() if key != "digest"},
    }


def describe_checkpoint(path: Path) -> dict[str, Any]:
    """Architecture, tensors by type, bytes and, if it is quantized, its groups and receipts; no tensor is read.

    Raises ``CheckpointError`` if one of its files is damaged.
    """
    from planish.compress.safetensors_file import byte_count, read_header

    config = json_object(path / "config.json")
    dtypes: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    for file in sorted(path.glob("*.safetensors")):
        for dtype, shape in read_header(file).values():
            dtypes[dtype] += 1
            weights[dtype] += byte_count((dtype, shape))
    facts: dict[str, Any] = {
        "kind": "checkpoint",
        "architectures": config.get("architectures"),
        "model_type": config.get("model_type"),
        "layers": config.get("num_hidden_layers") or config.get("n_layer") or config.get("n_layers"),
        "tensors": {name: {"tensors": dtypes[name], "bytes": weights[name]} for name in sorted(dtypes)},
        "bytes": sum(weights.values()),
    }
    groups = group_lines(path, config.get("quantization_config"))
    if groups:
        facts["quantization"] = groups
    ours = path / "planish.json"
    if ours.is_file():
        facts["planish"] = receipts(ours)
    return facts


def json_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint."""
    try:
        parsed = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"JSON in {file}", str(error)[:120], COPY) from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"a JSON object in {file}", type(parsed).__name__, COPY)
    return parsed


def receipts(file: Path) -> dict[str, Any]:
    """What ``planish compress`` wrote down, without the text of the recipe."""
    made = json_object(file)
    recipe, done = made.get("recipe") or {}, made.get("receipts") or []
    if not isinstance(recipe, dict) or not (isinstance(done, list) and all(isinstance(one, dict) for one in done)):
        raise CheckpointError(f"a recipe and receipts in {file}", "something else", COPY)
    recipe.pop("text", None)
    return made


def group_lines(path: Path, quantization: Any) -> dict[str, str]:
    """Each group of a quantization_config in words."""
    try:
        return {name: group_line(group) for name, group in ((quantization or {}).get("config_groups") or {}).items()}
    except (AttributeError, LookupError, TypeError) as error:
        got = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"groups in quantization_config of {path / 'config.json'}", got, COPY) from error


def group_line(group: dict[str, Any]) -> str:
    """One group of a quantization_config in words."""
    weights, inputs = group.get("weights") or {}, group.get("input_activations")
    size = f" g{weights['group_size']}" if weights.get("group_size") else ""
    kind = "symmetric" if weights.get("symmetric") else "asymmetric"
    how = f"per {inputs['strategy']}" if inputs and inputs.get("dynamic") else "static"
    activations = f", activations int{inputs['num_bits']} {how}" if inputs else ""
    return f"int{weights.get('num_bits')}{size} {kind}{activations} on {len(group.get('targets', []))} targets"
