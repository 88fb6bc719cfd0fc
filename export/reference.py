"""The torch models an export is made from and judged by.

``load_reference`` computes the checkpoint's own function, quantized activations included, as transformers loads it;
``load_float`` is the same model with its weights dequantized, to be traced.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.pytorch_utils import Conv1D

from planish.errors import CheckpointError, InputError, nearest
from planish.export.quiet import quiet
from planish.export.reader import CheckpointReader

__all__ = ["AUTO_CLASSES", "load_float", "load_reference"]

AUTO_CLASSES = {
    "feature-extraction": "AutoModel",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "fill-mask": "AutoModelForMaskedLM",
    "text-generation": "AutoModelForCausalLM",
}
"""Task -> class of transformers that loads a checkpoint for it."""


def load_reference(checkpoint: Path, task: str) -> Any:
    """The model of ``checkpoint`` in eval mode and float32, computing what the quantized checkpoint computes.

    compressed-tensors does not know GPT-2's Conv1D; such checkpoints are dequantized here, and may not have quantized
    activations. Raises ``CheckpointError`` if weights the task needs are missing or cannot be loaded.
    """
    reader = CheckpointReader(checkpoint)
    if reader.quantized and reader.config.get("model_type") == "gpt2":
        return _dequantized(checkpoint, reader, task)
    return _load(checkpoint, task)


def load_float(checkpoint: Path, task: str) -> Any:
    """The model of ``checkpoint`` with float weights and eager attention, whatever the checkpoint stores."""
    reader = CheckpointReader(checkpoint)
    if not reader.quantized:
        return _load(checkpoint, task)
    if reader.config.get("model_type") == "gpt2":
        return _dequantized(checkpoint, reader, task)
    with quiet():
        dequantize = transformers.CompressedTensorsConfig(dequantize=True)
    return _load(checkpoint, task, quantization_config=dequantize)


def _auto_class(task: str) -> Any:
    if task not in AUTO_CLASSES:
        raise InputError("a task planish exports", repr(task), nearest(task, AUTO_CLASSES))
    return getattr(transformers, AUTO_CLASSES[task])


def _load(checkpoint: Path, task: str, **options: Any) -> Any:
    loader = _auto_class(task)
    try:
        with quiet():
            model, info = loader.from_pretrained(
                checkpoint,
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"a checkpoint transformers loads with {AUTO_CLASSES[task]}",
            " ".join(str(error).split())[:200],
            "check config.json, or choose another --task",
        ) from error
    _check_complete(info["missing_keys"], task)
    return model.eval()


def _check_complete(missing: Any, task: str) -> None:
    """A head that is not in the checkpoint would be filled with random numbers; only an unused pooler may be."""
    absent = sorted(str(key) for key in missing if "pooler" not in str(key) or task == "text-classification")
    if absent:
        raise CheckpointError(
            f"all weights of a model for {task}",
            f"none for {absent[0]}" + (f" and {len(absent) - 1} more" if len(absent) > 1 else ""),
            "choose the --task the checkpoint was trained for, or fine-tune it first",
        )


def _dequantized(checkpoint: Path, reader: CheckpointReader, task: str) -> Any:
    with quiet():
        config = transformers.AutoConfig.from_pretrained(checkpoint, local_files_only=True)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = _auto_class(task).from_config(config, dtype=torch.float32, attn_implementation="eager")
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(name, recurse=False):
            parameter.data = torch.from_numpy(_parameter(reader, name, key, module)).reshape(parameter.shape)
    return model.eval()


def _parameter(reader: CheckpointReader, name: str, key: str, module: torch.nn.Module) -> Any:
    if not key.endswith(".weight") or not reader.is_quantized(name):
        return reader.float32(_stored(reader, key))
    is_table = isinstance(module, torch.nn.Embedding)
    layer = reader.embedding(name) if is_table else reader.linear(name, transposed=isinstance(module, Conv1D))
    if getattr(layer, "activations", None):
        raise CheckpointError(
            f"{name} with float inputs", "quantized activations", "use a weight-only recipe for GPT-2"
        )
    weight = layer.dequantized()
    return weight.T.copy() if isinstance(module, Conv1D) else weight


def _stored(reader: CheckpointReader, key: str) -> str:
    """Old GPT-2 checkpoints leave out the prefix of the base model."""
    short = key.removeprefix("transformer.")
    return short if key not in reader and short in reader else key
