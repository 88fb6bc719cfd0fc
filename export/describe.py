"""What the manifest says about a checkpoint: task, labels, limits, pooling, source and receipts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from planish.errors import CheckpointError, InputError, nearest
from planish.export.reader import CheckpointReader
from planish.export.reference import AUTO_CLASSES
from planish.export.settings import limit, refuse, token, whole

__all__ = ["describe", "infer_task", "label_fields"]

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

    name = _architecture(config)
    try:
        found = str(TasksManager.infer_task_from_model(_model_class(name)))
    except (AttributeError, TypeError, ValueError, KeyError):
        found = "unknown"
    if found not in AUTO_CLASSES:
        raise CheckpointError(
            "an architecture in config.json that tells its task",
            repr(name),
            f"give --task: {', '.join(AUTO_CLASSES)}",
        )
    return found


def describe(checkpoint: Path, reader: CheckpointReader, task: str) -> dict[str, Any]:
    """Fields of the manifest that come from the checkpoint (docs/formats.md, section 4)."""
    config = reader.config
    made = _json(checkpoint / "planish.json")
    digest = _digest(checkpoint)
    source = _made(made, "source", dict) or {"name": checkpoint.name, "digest": digest}
    recipe = _made(made, "recipe", dict)
    padding = _padding(config, task)
    return {
        "task": task,
        "architecture": str(_architecture(config) or ""),
        "model_type": str(config.get("model_type", "")),
        **label_fields(config, task),
        "vocab_size": whole(config, "vocab_size"),
        "max_length": _max_length(checkpoint, config),
        "pad_token_id": padding,
        "pooling": _pooling(checkpoint) if task == "feature-extraction" else None,
        "source": {**source, "checkpoint": digest},
        "recipe": {key: recipe[key] for key in ("name", "digest") if key in recipe} if recipe else None,
        "receipts": _made(made, "receipts", list) or [],
    }


def label_fields(config: dict[str, Any], task: str) -> dict[str, Any]:
    """``labels`` and ``problem_type`` of the manifest, from config.json alone.

    Raises ``CheckpointError`` for labels that are no table of names.
    """
    problem = config.get("problem_type")
    return {
        "labels": _labels(config) if task in _CLASSIFICATION else None,
        "problem_type": problem if problem in _PROBLEM_TYPES else None,
    }


def _model_class(name: Any) -> Any:
    import transformers

    return getattr(transformers, name)


def _architecture(config: dict[str, Any]) -> str | None:
    names = config.get("architectures") or [None]
    if not isinstance(names, list) or not isinstance(names[0], str | None):
        raise refuse("a list of class names", "architectures", names)
    return names[0]


def _made(made: dict[str, Any], key: str, kind: type) -> Any:
    """What ``planish compress`` wrote under ``key``."""
    value = made.get(key)
    if value is not None and not isinstance(value, kind):
        raise refuse(f"a {kind.__name__}", key, value, "planish.json")
    return value


def _labels(config: dict[str, Any]) -> list[str]:
    """Names in the order of their ids. transformers does not write those it makes up: LABEL_0 and LABEL_1."""
    table = config.get("id2label")
    if not table:
        return [f"LABEL_{index}" for index in range(whole(config, "num_labels", 2))]
    try:
        return [str(table[key]) for key in sorted(table, key=int)]
    except (TypeError, ValueError) as error:
        raise refuse("an object from ids to names", "id2label", table) from error


def _padding(config: dict[str, Any], task: str) -> int | None:
    """The id encoders pad with; decoders may name one they have no row for."""
    found = token(config, "pad_token_id")
    if found is not None and task != "text-generation" and not 0 <= found < whole(config, "vocab_size"):
        raise refuse("an id of the vocabulary", "pad_token_id", found)
    return found


def _max_length(checkpoint: Path, config: dict[str, Any]) -> int:
    """The smallest of what positions, tokenizer and sentence-transformers allow, in tokens."""
    key = "n_positions" if config.get("max_position_embeddings") is None else "max_position_embeddings"
    positions = min(whole(config, key, _UNLIMITED), _UNLIMITED)
    if config.get("model_type") in _OFFSET_POSITIONS:
        positions -= (token(config, "pad_token_id") or 0) + 1
    if positions < 1:
        raise refuse("room for a token", key, config.get(key))
    limits = [
        positions,
        *(
            limit(_json(checkpoint / file), key, file)
            for file, key in (
                ("tokenizer_config.json", "model_max_length"),
                ("sentence_bert_config.json", "max_seq_length"),
            )
        ),
    ]
    return int(min(found for found in limits if found and found <= _UNLIMITED))


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
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError("valid JSON", f"{path.name}: {error}", "copy the checkpoint again") from error
