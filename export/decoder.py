"""From a decoder checkpoint to an ONNX file, emitted layer by layer without torch and without tracing."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from planish.errors import CheckpointError, nearest
from planish.export.emit_blocks import Blocks, Dimensions
from planish.export.emit_graph import EmitGraph
from planish.export.emit_ort_blocks import OrtBlocks
from planish.export.emit_qdq_blocks import QdqBlocks
from planish.export.graph import Built, Dialect, Progress
from planish.export.qdq_ranges import ValueRanges, calibration_rows, measure_values, watch
from planish.export.reader import CheckpointReader, read_json
from planish.export.settings import refuse, token, tokens
from planish.sliced import KEY, is_sliced, read_shapes

__all__ = ["FAMILIES", "build_decoder", "measure_decoder"]

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
QDQ_SESSION = {"session.disable_quant_qdq": "1"}
"""Weights become float16 when a session loads, as in a TensorRT engine. Left to itself, ONNX Runtime 1.31 makes the
products MatMulNBits, whose weights are not rounded to float16, and 1.23 refuses a table also read transposed."""


def build_decoder(
    checkpoint: Path,
    scratch: Path,
    *,
    dialect: Dialect = "ort",
    opset: int = 21,
    progress: Progress | None = None,
    accuracy_level: int = ACCURACY_LEVEL,
    ranges: ValueRanges | None = None,
) -> Built:
    """Emit the decoder in ``checkpoint`` as ``scratch/model.onnx`` and ``scratch/model.onnx.data``.

    ``accuracy_level`` is MatMulNBits' in the `ort` dialect. By ``ranges`` the `qdq` dialect keeps in float32 what
    float16 cannot hold; they are measured here unless given. Emitting takes about the memory of the largest tensor,
    measuring that of the float32 model. Raises ``CheckpointError`` for an architecture without emitter, for settings
    an emitter does not know, and for weights the dialect cannot spell.
    """
    source = _Source.open(checkpoint)
    scratch.mkdir(parents=True, exist_ok=True)
    if dialect == "qdq":
        return _build_qdq(source, scratch, opset, progress, ranges)
    with EmitGraph(scratch, opset=opset) as graph:
        ticks = _ticks(progress, source.dimensions)
        blocks = OrtBlocks(graph, source.reader, source.dimensions, progress=ticks, accuracy_level=accuracy_level)
        built = _finish(source, blocks, compute="fp32")
    return replace(built, disabled_optimizers=DISABLED_OPTIMIZERS)


def measure_decoder(checkpoint: Path, scratch: Path, *, opset: int = 21) -> ValueRanges:
    """The largest magnitude of every named value of the decoder in ``checkpoint`` on calibration text.

    ``scratch`` is a folder for the float32 graph, which is as large as the float model.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    return _measure(_Source.open(checkpoint), scratch, opset)


@dataclass(frozen=True)
class _Source:
    """A checkpoint, and the module that emits its family."""

    reader: CheckpointReader
    family: Any
    dimensions: Dimensions

    @classmethod
    def open(cls, checkpoint: Path) -> _Source:
        reader = CheckpointReader(checkpoint)
        family = _family(reader.config)
        return cls(reader, family, _dimensions(family, reader.config))


def _build_qdq(
    source: _Source, scratch: Path, opset: int, progress: Progress | None, ranges: ValueRanges | None
) -> Built:
    if ranges is None:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            ranges = _measure(source, Path(folder), opset, progress)
    with EmitGraph(scratch, opset=opset) as graph:
        ticks = _ticks(progress, source.dimensions)
        blocks = QdqBlocks(graph, source.reader, source.dimensions, progress=ticks, ranges=ranges.largest)
        built = _finish(source, blocks, compute="fp16")
    audit = {"ranges": ranges.to_json()}
    return replace(built, dialect="qdq", session=dict(QDQ_SESSION), audit=audit)


def _measure(source: _Source, folder: Path, opset: int, progress: Progress | None = None) -> ValueRanges:
    d = source.dimensions
    with EmitGraph(folder, opset=opset) as graph:
        blocks = QdqBlocks(graph, source.reader, d, progress=lambda done: None, ranges=None)
        blocks.declare_outputs(source.family.emit(blocks))
        names = watch(blocks)
        graph.save()
    rows, text = calibration_rows(source.reader.directory, d.vocab, d.max_length)
    return ValueRanges(measure_values(folder / "model.onnx", names, rows, d, progress), text)


def _finish(source: _Source, blocks: Blocks, *, compute: str) -> Built:
    """Emit the family's layers, write the file, and say what it holds."""
    outputs = blocks.declare_outputs(source.family.emit(blocks))
    files = blocks.graph.save()
    return Built(
        folder=blocks.graph.folder,
        files=files,
        opset=blocks.graph.opset,
        inputs=tuple(blocks.inputs),
        outputs=outputs,
        precision={role: " + ".join(sorted(kinds)) for role, kinds in blocks.stored.items()} | {"compute": compute},
        generation=_generation(source.reader, source.dimensions, blocks.cache_dtype),
    )


def _ticks(progress: Progress | None, d: Dimensions) -> Callable[[int], None]:
    return lambda done: progress("emit", done, d.layers) if progress else None


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
        if is_sliced(config):
            found = _sliced_dimensions(found, config)
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


def _sliced_dimensions(found: Dimensions, config: dict[str, Any]) -> Dimensions:
    """Heads as ``planish_shapes`` says; feed-forward widths are read off the weights.

    Raises:
        CheckpointError: blocks with different heads, which no cache of one shape serves.
    """
    shapes = read_shapes(config[KEY], found.layers)
    heads = {(shape.heads, shape.kv_heads) for shape in shapes}
    if len(heads) > 1:
        raise CheckpointError("a decoder with the same heads in every block", str(sorted(heads))[:80], "prune it anew")
    return replace(found, heads=shapes[0].heads, kv_heads=shapes[0].kv_heads, head_dim=shapes[0].head_dim)


def _generation(reader: CheckpointReader, d: Dimensions, cache_dtype: str) -> dict[str, Any]:
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
        "cache_dtype": cache_dtype,
        "bos_token_id": token(settings, "bos_token_id", files.get("bos_token_id", "")),
        "eos_token_ids": tokens(settings, "eos_token_id", files.get("eos_token_id", "")),
        "pad_token_id": token(settings, "pad_token_id", files.get("pad_token_id", "")),
        "defaults": {key: settings[key] for key in _DEFAULTS if sampled and settings.get(key) is not None},
    }
