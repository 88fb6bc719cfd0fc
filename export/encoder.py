"""From an encoder checkpoint to ONNX files: trace the float model, then lower it with the checkpoint's integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from planish.errors import CheckpointError
from planish.export.golden import Arrays
from planish.export.graph import Built, Dialect, Progress, TensorSpec
from planish.export.lower_ort import lower_to_ort
from planish.export.lower_qdq import lower_to_qdq
from planish.export.measure_ranges import measure_ranges
from planish.export.quiet import quiet
from planish.export.reader import CheckpointReader
from planish.export.reference import load_float
from planish.export.to_half import to_half
from planish.export.trace_ops import tracing
from planish.runtime.dot_products import exact_options

__all__ = ["DISABLED_OPTIMIZERS", "OUTPUTS", "TWIN", "Traced", "build_encoder", "input_names", "trace_encoder"]

OUTPUTS = {
    "feature-extraction": ("last_hidden_state",),
    "text-classification": ("logits",),
    "token-classification": ("logits",),
    "question-answering": ("start_logits", "end_logits"),
    "fill-mask": ("logits",),
}
"""Task -> outputs of the graph."""

DISABLED_OPTIMIZERS = ("SkipLayerNormFusion", "BiasGeluFusion")
"""Fusions of ONNX Runtime whose kernels are slower than the nodes they replace (docs/LOG.md)."""

TWIN = "twin.onnx"
"""The float32 graph a float16 one was made from; it stays out of the bundle."""

QDQ_SESSION = {"session.qdq_matmulnbits_accuracy_level": "1"}
"""ONNX Runtime would round the inputs of weight-only layers to 8 bits; it is the checker here."""

EXTERNAL_ABOVE = 1_500_000_000
"""Bytes of weights above which they leave the model file; a protobuf ends at 2 GiB."""


@dataclass(frozen=True)
class Traced:
    """A float model as torch.onnx wrote it, with a marker node for each linear layer and attention."""

    model: ir.Model
    reader: CheckpointReader
    prefix: str
    opset: int


def trace_encoder(checkpoint: Path, *, task: str, opset: int = 21, progress: Progress | None = None) -> Traced:
    """Trace the encoder in ``checkpoint`` once, for any number of dialects.

    Raises ``CheckpointError`` if transformers cannot load it or torch cannot trace it.
    """
    _tell(progress, "trace", 0)
    model = load_float(checkpoint, task)
    traced = _trace(model, task, opset)
    traced.producer_name, traced.producer_version = "planish", ""
    _tell(progress, "trace", 1)
    return Traced(traced, CheckpointReader(checkpoint), model.base_model_prefix, opset)


def build_encoder(
    traced: Traced,
    scratch: Path,
    *,
    dialect: Dialect = "ort",
    texts: Sequence[Arrays] = (),
    progress: Progress | None = None,
) -> Built:
    """Spell ``traced`` in a dialect, as ``scratch/model.onnx``.

    For `qdq` the float32 twin is left as ``scratch/twin.onnx``, and ``texts`` (inputs by name, unpadded) are what its
    values' ranges are measured on. Raises ``CheckpointError`` for layers the dialect has no form for.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    model = traced.model.clone()
    lower = _lower_qdq if dialect == "qdq" else _lower_ort
    precision, extra = lower(model, traced, scratch, texts)
    files = _save(model, scratch, "model.onnx")
    _tell(progress, f"lower {dialect}", 1)
    return Built(
        folder=scratch,
        files=files,
        opset=traced.opset,
        inputs=tuple(_spec(value) for value in model.graph.inputs),
        outputs=tuple(_spec(value) for value in model.graph.outputs),
        precision=precision,
        dialect=dialect,
        **extra,
    )


Lowered = tuple[dict[str, str], dict[str, Any]]


def _lower_ort(model: ir.Model, traced: Traced, scratch: Path, texts: Sequence[Arrays]) -> Lowered:
    precision = lower_to_ort(model, traced.reader, traced.prefix)
    return precision, {"disabled_optimizers": DISABLED_OPTIMIZERS, "session": _session(precision)}


def _lower_qdq(model: ir.Model, traced: Traced, scratch: Path, texts: Sequence[Arrays]) -> Lowered:
    precision = lower_to_qdq(model, traced.reader, traced.prefix)
    _save(model, scratch, TWIN)
    session = QDQ_SESSION | _session(precision)
    ranges = measure_ranges(scratch / TWIN, texts, exact_options("qdq", precision) | session)
    casts = to_half(model, ranges.wide)
    words = precision | {"compute": "fp16 + fp32" if ranges.wide else "fp16"}
    words |= {role: kind.replace("fp32", "fp16") for role, kind in precision.items() if role != "compute"}
    audit = {"ranges": ranges.to_json(), "casts": casts}
    return words, {"audit": audit, "disabled_optimizers": DISABLED_OPTIMIZERS, "session": session}


def _session(precision: dict[str, str]) -> dict[str, str]:
    """ONNX Runtime takes FP8 quantizers for integer ones, and refuses the product it makes of them."""
    return {"session.disable_quant_qdq": "1"} if "fp8" in precision["linear"] else {}


def input_names(model: Any) -> tuple[str, ...]:
    """``token_type_ids`` is an input where the model tells segments apart."""
    has_types = getattr(model.config, "type_vocab_size", 0) > 1
    return ("input_ids", "attention_mask", "token_type_ids") if has_types else ("input_ids", "attention_mask")


class _Outputs(torch.nn.Module):
    """The model with the outputs of its task, and with the mask as an additive bias.

    The bias ``[batch, 1, 1, sequence]`` is what transformers would build from the mask, in three nodes for its twenty.
    """

    def __init__(self, model: Any, task: str) -> None:
        super().__init__()
        self.model = model
        self.names = OUTPUTS[task]

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        smallest = torch.finfo(torch.float32).min
        inputs = {
            "input_ids": input_ids,
            "attention_mask": torch.where(attention_mask[:, None, None, :] != 0, 0.0, smallest),
        }
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        answer = self.model(**inputs)
        return tuple(answer[name] for name in self.names)


def _trace(model: Any, task: str, opset: int) -> ir.Model:
    names = input_names(model)
    ids = torch.full((2, 7), 5, dtype=torch.int64)
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    try:
        with quiet(), tracing(model), torch.no_grad():
            program = torch.onnx.export(
                _Outputs(model, task).eval(),
                kwargs={name: example[name] for name in names},
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=dict.fromkeys(names, axes),
                input_names=list(names),
                output_names=list(OUTPUTS[task]),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        kind = model.config.model_type
        raise CheckpointError(
            "an encoder torch.onnx can trace",
            f"{kind}: {str(error).splitlines()[0][:160]}",
            "open an issue with config.json",
        ) from error
    assert program is not None
    traced: ir.Model = program.model
    _strip_prefix(traced.graph)
    return traced


def _strip_prefix(graph: ir.Graph) -> None:
    """Initializers are named as the model names its parameters."""
    for name in list(graph.initializers):
        if name.startswith("model."):
            value = graph.initializers.pop(name)
            value.name = name.removeprefix("model.")
            graph.register_initializer(value)


def _save(model: ir.Model, folder: Path, name: str) -> tuple[str, ...]:
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if size <= EXTERNAL_ABOVE:
        ir.save(model, folder / name)
        return (name,)
    ir.save(model, folder / name, external_data=f"{name}.data")
    return (name, f"{name}.data")


def _spec(value: ir.Value) -> TensorSpec:
    assert value.name is not None
    assert value.dtype is not None
    assert value.shape is not None
    shape = tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)
    return TensorSpec(value.name, value.dtype.numpy().name, shape)


def _tell(progress: Progress | None, stage: str, done: int) -> None:
    if progress is not None:
        progress(stage, done, 1)
