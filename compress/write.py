"""Write a quantized checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from planish.compress.bench import Bench
from planish.compress.checkpoint import Checkpoint
from planish.compress.layout import layer_tensors, quantization_config
from planish.compress.quiet import quiet
from planish.compress.source import side_files
from planish.sliced import KEY

__all__ = ["write_checkpoint", "write_json", "write_side_files"]


def write_checkpoint(bench: Bench, source: Checkpoint, folder: Path) -> None:
    """Weights, config and everything that travels with them; ``folder`` exists and is empty."""
    save_file(_tensors(bench), folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", _config(bench, source))
    write_side_files(source, bench, folder)


def write_side_files(source: Checkpoint, bench: Bench, folder: Path) -> None:
    """Tokenizer, generation config, licence: as the parent has them, or as a pass rewrote them."""
    if source.is_gguf:
        with quiet():
            source.tokenizer().save_pretrained(folder)
            bench.model.generation_config.save_pretrained(folder)  # type: ignore[union-attr,operator]
    else:
        for relative in side_files(source.folder):
            (folder / relative).parent.mkdir(exist_ok=True)
            shutil.copyfile(source.folder / relative, folder / relative)
    for name, content in bench.files.items():
        if content is None:
            (folder / name).unlink(missing_ok=True)
        else:
            (folder / name).write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Canonical JSON: sorted keys, UTF-8, no NaN."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    path.write_text(text, encoding="utf-8")


def _tensors(bench: Bench) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, value in bench.model.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        if leaf == "weight" and owner in bench.stored:
            tensors.update(layer_tensors(owner, bench.stored[owner]))
        elif value.data_ptr() not in seen or _untied(bench):
            tensors[name] = value.contiguous() if value.data_ptr() not in seen else value.clone()
            seen.add(value.data_ptr())
    return _unshared(tensors)


def _unshared(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Safetensors refuses tensors that share memory: a table and its tied head each get their own copy."""
    seen: set[int] = set()
    for name, value in tensors.items():
        if value.data_ptr() in seen and value.numel():
            tensors[name] = value.clone()
        seen.add(value.data_ptr())
    return tensors


def _untied(bench: Bench) -> bool:
    """Whether the checkpoint must hold table and head each by itself."""
    return bench.tied and any(
        layer.name in bench.stored for layer in bench.layers if layer.role in ("embedding", "head")
    )


def _config(bench: Bench, source: Checkpoint) -> dict[str, Any]:
    config = {key: value for key, value in source.raw_config.items() if key != "torch_dtype"}
    config["architectures"] = [source.architecture]
    config["dtype"] = "float32"
    for key, value in bench.config.items():
        config[key] = value
        if value is None and key == KEY:
            del config[key]
    if _untied(bench):
        config["tie_word_embeddings"] = False
    if bench.stored:
        config["quantization_config"] = quantization_config(bench)
    return config
