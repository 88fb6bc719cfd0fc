"""What the manifest says about a checkpoint: task, labels, limits, pooling, source and receipts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from planish.errors import CheckpointError, InputError, nearest
from planish.export.reader import CheckpointReader
from planish.export.reference import AUTO_CLASSES

__all__ = ["describe", "infer_task"]

_CLASSIFICATION = ("text-classification", "token-classification")
_PROBLEM_TYPES = ("single_label_classification", "multi_label_classification")
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "mpnet", "camembert")
"""Model types whose position ids start behind ``pad_token_id``."""

_POOLING = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}
_UNLIMITED = 1_000_000
"""Tokenizers without a limit say 1e30."""


def infer_task(config: dict[str, Any], task: str | None = None) -> str:
    """The task to export for: the one asked for, else what the model class is for by optimum's table.

    Raises ``InputError`` for an unknown task, ``CheckpointError`` if the architecture does not tell.
    """
    if task is not None:
        if task not in AUTO_CLASSES:
            raise InputError("a task planish exports", repr(task), nearest(task, AUTO_CLASSES))
        return task
    from optimum.exporters.tasks import TasksManager

    names = config.get("architectures") or [None]
    try:
        found = str(TasksManager.infer_task_from_model(_model_class(names[0])))
    except (AttributeError, TypeError, ValueError, KeyError):
        found = "unknown"
    if found not in AUTO_CLASSES:
        raise CheckpointError(
            "an architecture in config.json that tells its task",
            repr(names[0]),
            f"give --task: {', '.join(AUTO_CLASSES)}",
        )
    return found


def describe(checkpoint: Path, reader: CheckpointReader, task: str) -> dict[str, Any]:
    """Fields of the manifest that come from the checkpoint (docs/formats.md, section 4)."""
    config = reader.config
    made = _json(checkpoint / "planish.json")
    architecture = (config.get("architectures") or [""])[0]
    digest = _digest(checkpoint)
    source = made.get("source") or {"name": checkpoint.name, "digest": digest}
    recipe = made.get("recipe")
    return {
        "task": task,
        "architecture": str(architecture),
        "model_type": str(config.get("model_type", "")),
        "labels": _labels(config) if task in _CLASSIFICATION else None,
        "problem_type": config.get("problem_type") if config.get("problem_type") in _PROBLEM_TYPES else None,
        "vocab_size": int(config["vocab_size"]),
        "max_length": _max_length(checkpoint, config),
        "pad_token_id": config.get("pad_token_id"),
        "pooling": _pooling(checkpoint) if task == "feature-extraction" else None,
        "source": {**source, "checkpoint": digest},
        "recipe": {key: recipe[key] for key in ("name", "digest") if key in recipe} if recipe else None,
        "receipts": made.get("receipts", []),
    }


def _model_class(name: Any) -> Any:
    import transformers

    return getattr(transformers, name)


def _labels(config: dict[str, Any]) -> list[str] | None:
    table = config.get("id2label")
    if not table:
        return None
    return [str(table[key]) for key in sorted(table, key=int)]


def _max_length(checkpoint: Path, config: dict[str, Any]) -> int:
    """The smallest of what positions, tokenizer and sentence-transformers allow, in tokens."""
    positions = int(config.get("max_position_embeddings") or config.get("n_positions") or _UNLIMITED)
    if config.get("model_type") in _OFFSET_POSITIONS:
        positions -= int(config.get("pad_token_id") or 0) + 1
    limits = [
        positions,
        _json(checkpoint / "tokenizer_config.json").get("model_max_length"),
        _json(checkpoint / "sentence_bert_config.json").get("max_seq_length"),
    ]
    return int(min(limit for limit in limits if limit and limit <= _UNLIMITED))


def _pooling(checkpoint: Path) -> dict[str, Any] | None:
    """How sentence-transformers pools this model; None for a model that is not one of theirs.

    Raises ``CheckpointError`` for a pooling the runtime does not know.
    """
    modules = _list(checkpoint / "modules.json")
    paths = {str(module.get("type", "")).rsplit(".", 1)[-1]: str(module.get("path", "")) for module in modules}
    if "Pooling" not in paths:
        return None
    settings = _json(checkpoint / paths["Pooling"] / "config.json")
    asked = [key for key, value in settings.items() if key.startswith("pooling_mode") and value is True]
    modes = (
        [settings["pooling_mode"]]
        if isinstance(settings.get("pooling_mode"), str)
        else [_POOLING.get(a, a) for a in asked]
    )
    if len(modes) != 1 or modes[0] not in _POOLING.values():
        raise CheckpointError(
            "one pooling mode: mean, cls or max", ", ".join(modes) or "none", "export with another --task"
        )
    return {"mode": modes[0], "normalize": "Normalize" in paths}


def _digest(checkpoint: Path) -> str:
    """``sha256:`` over the sorted (name, sha256 of bytes) of weight files and config.json (docs/formats.md, 1)."""
    digest = hashlib.sha256()
    for path in sorted([*checkpoint.glob("*.safetensors"), checkpoint / "config.json"], key=lambda path: path.name):
        content = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                content.update(block)
        digest.update(f"{path.name}\0{content.hexdigest()}\n".encode())
    return "sha256:" + digest.hexdigest()


def _json(path: Path) -> dict[str, Any]:
    parsed = _parsed(path, {})
    return parsed if isinstance(parsed, dict) else {}


def _list(path: Path) -> list[dict[str, Any]]:
    parsed = _parsed(path, [])
    return [item for item in parsed if isinstance(item, dict)] if isinstance(parsed, list) else []


def _parsed(path: Path, default: Any) -> Any:
    if not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError("valid JSON", f"{path.name}: {error}", "copy the checkpoint again") from error
