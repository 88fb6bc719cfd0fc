"""The torch models an export is made from and judged by.

``load_reference`` computes the checkpoint's own function, quantized activations included, as transformers loads it;
``load_float`` is the same model with its weights dequantized, to be traced.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.pytorch_utils import Conv1D

from planish.errors import CheckpointError, InputError, PlanishError, nearest
from planish.export.fake_quantize import quantize_inputs
from planish.export.layers import QuantizedLinear
from planish.export.quiet import quiet
from planish.export.reader import CheckpointReader
from planish.sliced import concrete

__all__ = ["AUTO_CLASSES", "check_config", "load_float", "load_reference"]

AUTO_CLASSES = {
    "feature-extraction": "AutoModel",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "fill-mask": "AutoModelForMaskedLM",
    "text-generation": "AutoModelForCausalLM",
}
"""Task -> class of transformers that loads a checkpoint for it."""

_OPTIONS = {"dtype": torch.float32, "attn_implementation": "eager"}


def load_reference(checkpoint: Path, task: str) -> Any:
    """The model of ``checkpoint`` in eval mode and float32, computing what the quantized checkpoint computes.

    compressed-tensors knows neither GPT-2's Conv1D nor ``pre_quant_scale``; such checkpoints are dequantized here, and
    their inputs quantized by hooks (fake_quantize.py).

    Raises ``CheckpointError`` if weights the task needs are missing or cannot be loaded.
    """
    reader = CheckpointReader(checkpoint)
    if reader.quantized and reader.config.get("model_type") == "gpt2":
        return _dequantized(checkpoint, reader, task)
    if any(name.endswith(".pre_quant_scale") for name in reader.names):
        return _emulated(checkpoint, reader, task)
    return _load(checkpoint, task)


def load_float(checkpoint: Path, task: str) -> Any:
    """The model of ``checkpoint`` with float weights and eager attention, whatever the checkpoint stores."""
    reader = CheckpointReader(checkpoint)
    return _dequantized(checkpoint, reader, task) if reader.quantized else _load(checkpoint, task)


def check_config(checkpoint: Path, task: str) -> None:
    """Raise ``CheckpointError`` for a config.json that transformers refuses; it names the setting of a wrong kind."""
    with _loading(task):
        transformers.AutoConfig.from_pretrained(checkpoint, local_files_only=True)


def _auto_class(task: str) -> Any:
    if task not in AUTO_CLASSES:
        raise InputError("a task planish exports", repr(task), nearest(task, AUTO_CLASSES))
    return getattr(transformers, AUTO_CLASSES[task])


@contextmanager
def _loading(task: str) -> Iterator[None]:
    """Silence, and what transformers says against a checkpoint as a ``CheckpointError``.

    A damaged config.json fails anywhere in it, with any class of exception.
    """
    try:
        with quiet():
            yield
    except (PlanishError, MemoryError):
        raise
    except Exception as error:
        raise CheckpointError(
            f"a checkpoint transformers loads with {AUTO_CLASSES[task]}",
            " ".join(str(error).split())[:200],
            "check config.json, or choose another --task",
        ) from error


def _load(checkpoint: Path, task: str) -> Any:
    loader = _auto_class(task)
    with _loading(task):
        config = transformers.AutoConfig.from_pretrained(checkpoint, local_files_only=True)
        model, info = concrete(loader, config).from_pretrained(
            checkpoint, config=config, local_files_only=True, **_OPTIONS, output_loading_info=True
        )
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


def _emulated(checkpoint: Path, reader: CheckpointReader, task: str) -> Any:
    """The float model with hooks that quantize inputs as the checkpoint says."""
    model = _dequantized(checkpoint, reader, task)
    layers, prefix = dict(model.named_modules()), f"{model.base_model_prefix}."
    for key in reader.names:
        name, _, part = key.rpartition(".")
        layer = _module_of(name, layers, prefix) if part == "weight_scale" else None
        if isinstance(layer, torch.nn.Linear):
            stored = reader.linear(name)
            assert isinstance(stored, QuantizedLinear)
            if stored.activations is not None:
                layer.weight = torch.nn.Parameter(torch.from_numpy(stored.grid_weight()), requires_grad=False)
                quantize_inputs(layer, stored)
    return model


def _dequantized(checkpoint: Path, reader: CheckpointReader, task: str) -> Any:
    """The float model, its integers dequantized here: transformers cannot dequantize what is packed.

    Its loader still matches names (a base model's come with and without its prefix) and ties weights.
    """
    loader = _auto_class(task)
    with _loading(task):
        config = transformers.AutoConfig.from_pretrained(checkpoint, local_files_only=True)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with torch.device("meta"):
            skeleton = concrete(loader, config)(config)
    tensors = _float_tensors(reader, skeleton)
    with _loading(task):
        model, info = type(skeleton).from_pretrained(
            None, config=config, state_dict=tensors, **_OPTIONS, output_loading_info=True
        )
    _check_complete(info["missing_keys"], task)
    return model.eval()


def _float_tensors(reader: CheckpointReader, skeleton: Any) -> dict[str, torch.Tensor]:
    """Every floating-point tensor by its name in the checkpoint, with a float weight for each quantized module.

    ``skeleton`` is the model without weights, which knows what kind of layer a module is.
    """
    layers = dict(skeleton.named_modules())
    prefix = f"{skeleton.base_model_prefix}."
    tensors = {}
    for key in reader.names:
        module, _, part = key.rpartition(".")
        if not reader.is_quantized(module):
            array = reader.tensor(key)
            if array.dtype.kind not in "iub":  # old checkpoints store position ids and masks, which models make
                tensors[key] = torch.from_numpy(array.astype(np.float32))
        elif part == "weight_scale":
            layer = _module_of(module, layers, prefix)
            if layer is not None:  # else it belongs to another task's head
                tensors[f"{module}.weight"] = torch.from_numpy(_float_weight(reader, module, layer))
        elif part == "bias":
            tensors[key] = torch.from_numpy(reader.float32(key))
    return tensors


def _module_of(name: str, layers: dict[str, Any], prefix: str) -> Any:
    """The layer a checkpoint calls ``name``, with or without the base model's prefix; None if the task has none."""
    names = (name, prefix + name, name.removeprefix(prefix))
    return next((layers[known] for known in names if known in layers), None)


def _float_weight(reader: CheckpointReader, module: str, layer: torch.nn.Module) -> Any:
    """The weight as ``layer`` holds it: ``[in, out]`` in a Conv1D."""
    conv = isinstance(layer, Conv1D)
    if isinstance(layer, torch.nn.Embedding):
        return reader.embedding(module).dequantized()
    stored = reader.linear(module, transposed=conv)
    if conv and getattr(stored, "activations", None):
        raise CheckpointError(
            f"{module} with float inputs", "quantized activations", "use a weight-only recipe for GPT-2"
        )
    return stored.dequantized().T.copy() if conv else stored.dequantized()
