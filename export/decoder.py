"""From a decoder checkpoint to an ONNX file, emitted layer by layer without torch and without tracing."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from planish.errors import CheckpointError, nearest
from planish.export.emit_blocks import Blocks, Dimensions
from planish.export.emit_graph import EmitGraph
from planish.export.graph import Built, Progress, TensorSpec
from planish.export.reader import CheckpointReader

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

SESSION: dict[str, str] = {}
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
    dimensions: Dimensions = family.dimensions(reader.config)
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
        precision=precision(reader),
        session=dict(SESSION),
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


def _declare_outputs(blocks: Blocks, logits: Any) -> tuple[TensorSpec, ...]:
    d, graph = blocks.dimensions, blocks.graph
    graph.output(logits, "logits", "float32", ("batch", "positions", d.vocab))
    shape = ("batch", d.kv_heads, "present", d.head_dim)
    specs = [TensorSpec("logits", "float32", ("batch", "positions", d.vocab))]
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


def precision(reader: CheckpointReader) -> dict[str, str]:
    """Words for the manifest, out of ``quantization_config``."""
    return {}


def _generation(reader: CheckpointReader, d: Dimensions) -> dict[str, Any]:
    return {}
