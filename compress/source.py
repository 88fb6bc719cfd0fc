"""Where a checkpoint's files are: a directory, a GGUF file, or the hub's cache; and which of them are weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from planish.compress.quiet import quiet
from planish.errors import CheckpointError

__all__ = ["config_json", "find_source", "side_files", "weight_files", "weight_map"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "LICENSE*"]
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
_SIDE_SUFFIXES = {".json", ".txt", ".model", ".jinja"}
_NOT_SIDE = {"config.json", "model.safetensors.index.json", "planish.json", "requirements.txt"}
_MODULE_FOLDER = re.compile(r"\d+_[A-Za-z]+")


def find_source(model: str) -> Path:
    """The directory or GGUF file ``model`` names; a hub id is fetched into the hub's cache.

    Raises:
        CheckpointError: there is nothing by that name, or the hub cannot be reached.
    """
    path = Path(model)
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix == ".gguf":
            return path
        raise CheckpointError(
            "a checkpoint directory or a .gguf file", f"a file: {model}", f"name {path.parent} instead"
        )
    if model.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(model):
        raise CheckpointError(f"a checkpoint at {model}", "nothing there", "check the path")
    return _from_hub(model)


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        with quiet():
            return Path(snapshot_download(model, allow_patterns=[*_HUB_PATTERNS, "*/*.json", "*/*.safetensors"]))
    except Exception as error:
        got = f"no such directory, and the hub did not give it ({type(error).__name__})"
        fix = "check the name; offline, download it first and name its directory"
        raise CheckpointError(f"a local directory or a hub id, {model!r}", got, fix) from None


def config_json(path: Path) -> dict[str, Any]:
    """The checkpoint's config.json; for a GGUF file what transformers derives from its header.

    Raises:
        CheckpointError: there is none, or it is not a JSON object.
    """
    if path.is_file():
        return _gguf_config(path)
    file = path / "config.json"
    if not file.is_file():
        raise CheckpointError(f"config.json in {path}", "none", "name the directory that holds it")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"a JSON object in {file}", str(error)[:120], "download or copy it again") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"a JSON object in {file}", type(config).__name__, "download or copy it again")
    return config


def _gguf_config(path: Path) -> dict[str, Any]:
    from transformers import AutoConfig, PretrainedConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise CheckpointError(f"a GGUF file at {path}", "another kind of file", "download or copy it again")
    try:
        with quiet(gguf=True):
            # One walk through the file; AutoConfig.from_pretrained would take two, and they are slow.
            found, _ = PretrainedConfig.get_config_dict(path.parent, gguf_file=path.name, local_files_only=True)
            config = AutoConfig.for_model(found["model_type"]).from_dict(found)
    except Exception as error:
        got = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"a readable GGUF file at {path}", got, "download or copy it again") from None
    raw: dict[str, Any] = config.to_dict()
    raw.pop("_name_or_path", None)
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(raw["model_type"])
    raw["architectures"] = raw.get("architectures") or ([causal] if causal else [])
    return raw


def weight_files(path: Path) -> tuple[Path, ...]:
    """The files that hold the weights, in order.

    Raises:
        CheckpointError: none, some missing, or only pickles.
    """
    if path.is_file():
        return (path,)
    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").is_file():
        return (path / "model.safetensors",)
    if index.is_file():
        return _sharded(path, index)
    pickles = [file.name for pattern in _PICKLES for file in sorted(path.glob(pattern))]
    if pickles:
        fix = "convert it: load it where you trust it and save_pretrained(..., safe_serialization=True)"
        raise CheckpointError(f"model.safetensors in {path}", f"only {pickles[0]}, a format that can run code", fix)
    raise CheckpointError(f"model.safetensors in {path}", "none", "name the directory that holds it")


def weight_map(index: Path) -> dict[str, str]:
    """Tensor -> file, out of the index of a checkpoint in shards.

    Raises:
        CheckpointError: there is none in it.
    """
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, LookupError, TypeError, OSError, RecursionError) as error:
        raise CheckpointError(f"a weight_map in {index}", _short(error), "download or copy it again") from None
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise CheckpointError(f"a weight_map of file names in {index}", repr(found)[:80], "download or copy it again")
    return found


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:120]


def _sharded(path: Path, index: Path) -> tuple[Path, ...]:
    names = sorted(set(weight_map(index).values()))
    for name in names:
        if Path(name).name != name or not (path / name).is_file():
            raise CheckpointError(f"weight file {name} in {path}", "none", "download the missing file")
    return tuple(path / name for name in names)


def side_files(folder: Path) -> list[Path]:
    """What travels with the weights, relative: tokenizer, generation config, sentence-transformers modules, licence."""
    found = []
    for file in sorted(folder.iterdir()):
        if file.is_dir() and _MODULE_FOLDER.fullmatch(file.name):
            found += [inner.relative_to(folder) for inner in sorted(file.iterdir()) if inner.is_file()]
        elif file.is_file() and _travels(file):
            found.append(file.relative_to(folder))
    return [file for file in found if file.suffix not in {".bin", ".pt", ".pth", ".ckpt", ".pkl"}]


def _travels(file: Path) -> bool:
    legal = file.name.upper().startswith(("LICENSE", "NOTICE"))
    return file.name not in _NOT_SIDE and (legal or file.suffix in _SIDE_SUFFIXES)
