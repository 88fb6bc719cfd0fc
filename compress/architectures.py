"""Which architectures we take, and which task each is for."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from planish.errors import CheckpointError

__all__ = ["MODEL_TYPES", "check_architecture", "drop_poolers", "infer_task", "model_class"]

MODEL_TYPES = (
    "bert",
    "distilbert",
    "electra",
    "gpt2",
    "gpt_neox",
    "llama",
    "mpnet",
    "opt",
    "qwen2",
    "qwen3",
    "roberta",
    "xlm-roberta",
)
"""``model_type`` of config.json; a test walks a small model of each."""

_TASKS = (
    "feature-extraction",
    "fill-mask",
    "question-answering",
    "text-classification",
    "text-generation",
    "token-classification",
)


def check_architecture(config: dict[str, Any], name: str, trust_remote_code: bool) -> str:
    """The class name of the model, if it is one we can compress.

    Raises:
        CheckpointError: another architecture, an already quantized checkpoint, or one that brings its own code.
    """
    supported = f"supported: {', '.join(MODEL_TYPES)}"
    if config.get("quantization_config"):
        got = f"one quantized by {config['quantization_config'].get('quant_method', 'another tool')}"
        raise CheckpointError(f"a float checkpoint at {name}", got, "give the parent it was made from")
    if config.get("auto_map") and not trust_remote_code:
        fix = "pass --trust-remote-code if you trust it"
        raise CheckpointError(f"a checkpoint of transformers' own classes at {name}", "one that brings code", fix)
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise CheckpointError(f"a model_type we know in {name}", repr(kind), supported)
    architectures = config.get("architectures") or []
    if len(architectures) != 1 or not isinstance(architectures[0], str):
        fix = "set 'architectures' in config.json to the one class that was saved"
        raise CheckpointError(f"one architecture in config.json of {name}", repr(architectures), fix)
    model_class(architectures[0])
    infer_task(architectures[0])
    return architectures[0]


def model_class(architecture: str) -> Any:
    """The transformers class by that name.

    Raises:
        CheckpointError: transformers has none.
    """
    import transformers

    cls = getattr(transformers, architecture, None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise CheckpointError(
            "a model class of transformers", repr(architecture), "check 'architectures' in config.json"
        )
    return cls


def drop_poolers(model: Any, missing: Iterable[str]) -> list[str]:
    """Take out poolers whose weights are missing, and return the names still missing, sorted.

    A pooler that was never trained is absent from many sentence encoders, and nothing we export reads it; filled with
    random numbers it would make two runs differ.
    """
    rest = []
    for name in sorted(missing):
        path = name.split(".")
        if "pooler" in path:
            model.get_submodule(".".join(path[: path.index("pooler")])).pooler = None
        else:
            rest.append(name)
    return rest


@cache
def infer_task(architecture: str) -> str:
    """The task a model class is for, by optimum's table.

    Raises:
        CheckpointError: it is none of ours.
    """
    from optimum.exporters.tasks import TasksManager

    try:
        task: str = TasksManager.infer_task_from_model(model_class(architecture))
    except (ValueError, KeyError):
        task = "unknown"
    if task not in _TASKS:
        raise CheckpointError(f"a model for one of {', '.join(_TASKS)}", f"{architecture} ({task})", "save it so")
    return task
