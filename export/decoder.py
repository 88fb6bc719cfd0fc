"""From a decoder checkpoint to an ONNX file, emitted layer by layer without torch and without tracing."""

from __future__ import annotations

import importlib
from dataclasses import fields
from pathlib import Path
from typing import Any

from planish.errors import CheckpointError, nearest
from planish.export.emit_blocks import Blocks, Dimensions
from planish.export.emit_graph import EmitGraph
from planish.export.graph import Built, Progress, TensorSpec
from planish.export.reader import CheckpointReader, read_json
from planish.export.settings import refuse, token, tokens

__all__ = ["FAMILIES", "build_decoder"]

FAMILIES = {
    "llama": "planish.export.emit_llama",
    "mistral": "planish.export.emit_llama",
    "qwen2": "planish.export.emit_llama",
    "qwen3": "planish.export.emit_llama",
    "gpt2": "planish.export.emit_gpt2",
    "opt": "planish.export.emit_opt",
    "gpt_neox": "planish.export.emit_neox",
}
"""model_type -> module with ``dimensions(config)`` and ``emit(blocks)``."""

_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
DISABLED_OPTIMIZERS: tuple[str, ...] = ("SkipLayerNormFusion",)
ACCURACY_LEVEL = 4


def build_decoder(
    checkpoint: Path,
    scratch: Path,
    *,
    opset: int = 21,
    progress: Progress | None = None,
    accuracy_level: int = ACCURACY_LEVEL,
) -> Built:
    """Emit the decoder in ``checkpoint`` as ``scratch/model.onnx`` and ``scratch/model.onnx.data``.

    Peak memory is about the largest tensor, whatever the size of the model. Raises ``CheckpointError`` for an
    architecture without emitter, and for settings an emitter does not know.
    """
    reader = CheckpointReader(checkpoint)
    family = _family(reader.config)
    dimensions = _dimensions(family, reader.config)
    scratch.mkdir(parents=True, exist_ok=True)
    with EmitGraph(scratch, opset=opset) as graph:
        blocks = Blocks(
            graph,
            reader,
            dimensions,
            accuracy_level=accuracy_level,
            progress=lambda done: progress("emit", done, dimensions.layers) if progress else None,
        )
        logits = family.emit(blocks)
        specs = _declare_outputs(blocks, logits)
        files = graph.save()
    return Built(
        folder=scratch,
        files=files,
        opset=opset,
        inputs=_input_specs(dimensions),
        outputs=specs,
        precision={role: " + ".join(sorted(kinds)) for role, kinds in blocks.stored.items()} | {"compute": "fp32"},
        disabled_optimizers=DISABLED_OPTIMIZERS,
        generation=_generation(reader, dimensions),
    )


def _family(config: dict[str, Any]) -> Any:
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        raise CheckpointError(
            f"a decoder of type {', '.join(FAMILIES)}",
            repr(kind),
            f"give a checkpoint of a known type; {nearest(kind, FAMILIES)}",
        )
    return importlib.import_module(FAMILIES[kind])


def _dimensions(family: Any, config: dict[str, Any]) -> Dimensions:
    try:
        found: Dimensions = family.dimensions(config)
    except KeyError as error:
        raise CheckpointError(
            f"{error.args[0]} in config.json", "none", "copy config.json from the original checkpoint again"
        ) from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            "numbers for the model's shape in config.json",
            str(error),
            "copy config.json from the original checkpoint again",
        ) from error
    for field in fields(found):
        if getattr(found, field.name) < 1:
            raise refuse("at least 1", f"the model's {field.name}", getattr(found, field.name))
    return found


def _declare_outputs(blocks: Blocks, logits: Any) -> tuple[TensorSpec, ...]:
    d, graph = blocks.dimensions, blocks.graph
    graph.output(logits, "logits", "float32", ("batch", 1, d.vocab))
    shape = ("batch", d.kv_heads, "present", d.head_dim)
    specs = [TensorSpec("logits", "float32", ("batch", 1, d.vocab))]
    for index, pair in enumerate(blocks.presents):
        for part, value in zip(("key", "value"), pair, strict=True):
            graph.output(value, f"present.{index}.{part}", "float32", shape)
            specs.append(TensorSpec(f"present.{index}.{part}", "float32", shape))
    return tuple(specs)


def _input_specs(d: Dimensions) -> tuple[TensorSpec, ...]:
    shape = ("batch", d.kv_heads, "past", d.head_dim)
    ids = TensorSpec("input_ids", "int64", ("batch", "sequence"))
    mask = TensorSpec("attention_mask", "int64", ("batch", "total"))
    past = [
        TensorSpec(f"past_key_values.{index}.{part}", "float32", shape)
        for index in range(d.layers)
        for part in ("key", "value")
    ]
    return (ids, mask, *past)


def _generation(reader: CheckpointReader, d: Dimensions) -> dict[str, Any]:
    """The manifest's ``generation``; ``generation_config.json`` overrules ``config.json``, as in transformers."""
    path = reader.directory / "generation_config.json"
    overruling = read_json(path, "a generation config") if path.is_file() else {}
    settings = {**reader.config, **overruling}
    files = dict.fromkeys(reader.config, "config.json") | dict.fromkeys(overruling, path.name)
    sampled = bool(settings.get("do_sample"))
    return {
        "num_layers": d.layers,
        "num_kv_heads": d.kv_heads,
        "head_dim": d.head_dim,
        "max_length": d.max_length,
        "cache_dtype": "float32",
        "bos_token_id": token(settings, "bos_token_id", files.get("bos_token_id", "")),
        "eos_token_ids": tokens(settings, "eos_token_id", files.get("eos_token_id", "")),
        "pad_token_id": token(settings, "pad_token_id", files.get("pad_token_id", "")),
        "defaults": {key: settings[key] for key in _DEFAULTS if sampled and settings.get(key) is not None},
    }
