"""What a bundle or a checkpoint is made of, as plain facts for ``planish inspect``."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from planish.errors import InputError

__all__ = ["describe"]


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
    """Architecture, tensors by type, bytes and, if it is quantized, its groups and receipts; no tensor is read."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    dtypes: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    for file in sorted(path.glob("*.safetensors")):
        for entry in safetensors_header(file).values():
            begin, end = entry["data_offsets"]
            dtypes[entry["dtype"]] += 1
            weights[entry["dtype"]] += end - begin
    facts: dict[str, Any] = {
        "kind": "checkpoint",
        "architectures": config.get("architectures"),
        "model_type": config.get("model_type"),
        "layers": config.get("num_hidden_layers") or config.get("n_layer") or config.get("n_layers"),
        "tensors": {name: {"tensors": dtypes[name], "bytes": weights[name]} for name in sorted(dtypes)},
        "bytes": sum(weights.values()),
    }
    groups = (config.get("quantization_config") or {}).get("config_groups", {})
    if groups:
        facts["quantization"] = {name: group_line(group) for name, group in groups.items()}
    ours = path / "planish.json"
    if ours.is_file():
        facts["planish"] = json.loads(ours.read_text(encoding="utf-8"))
        facts["planish"].get("recipe", {}).pop("text", None)
    return facts


def group_line(group: dict[str, Any]) -> str:
    """One group of a quantization_config in words."""
    weights, inputs = group.get("weights") or {}, group.get("input_activations")
    size = f" g{weights['group_size']}" if weights.get("group_size") else ""
    kind = "symmetric" if weights.get("symmetric") else "asymmetric"
    how = f"per {inputs['strategy']}" if inputs and inputs.get("dynamic") else "static"
    activations = f", activations int{inputs['num_bits']} {how}" if inputs else ""
    return f"int{weights.get('num_bits')}{size} {kind}{activations} on {len(group.get('targets', []))} targets"


def safetensors_header(file: Path) -> dict[str, Any]:
    """The header of a safetensors file (8 bytes of length, then JSON), without its metadata."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > size - 8:
            raise InputError("a whole safetensors file", f"{file.name} with {size} bytes", "copy the checkpoint again")
        header: dict[str, Any] = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return header
