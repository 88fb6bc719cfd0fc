"""Does a `qdq` decoder compute what the checkpoint computes in torch, with every way of filling its cache?

Two questions again (see :mod:`planish.export.decoder_parity`), because float16 rounds:

1. *Exact.* The float32 twin of the file, made by turning every float16 type in it into float32, must equal torch within
   a tight tolerance: a prefill with an empty past, steps, a prompt in chunks, ragged batches padded on either side. The
   twin's float weights are those of the file, rounded to float16 once, so torch computes with the same rounded ones.
2. *Drift.* The file itself, with ONNX Runtime rounding to float16 after every operation, must stay near torch as the
   checkpoint is: the median over positions, in units of the spread of a position's logits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray

from planish.errors import ParityError
from planish.export.decoder_cases import RAGGED, STEPS, largest, random_rows, relative, torch_logits
from planish.export.decoder_parity import decoder_golden
from planish.export.golden import Arrays
from planish.export.graph import Built, Progress
from planish.export.parity import golden_limit, open_session, report, tolerance
from planish.runtime import golden_drift

__all__ = ["DEFAULT_ATOL", "DRIFT", "check_decoder_qdq"]

Array = NDArray[Any]

DEFAULT_ATOL = 1e-2
"""Largest absolute difference of a logit. Measured on SmolLM2-135M, logits up to 34: INT8 1.3e-4; INT4 1.4e-4, and 1e-3
to 4e-3 behind one odd first token, whose activations of 25,000 hang by the order of sums. Tiny models: 8e-6."""

DRIFT = 0.1
"""Most that float16 may change the logits, in units of their spread. Measured: 0.002, on SmolLM2 and on tiny models."""


_HEAD, _OLD_HEAD = "lm_head.weight", "embed_out.weight"
"""GPT-NeoX's checkpoints have called it otherwise."""


@dataclass(frozen=True)
class _Case:
    """Rows of token ids; all but the last ``steps`` of each are the prompt, read in ``chunks`` pieces.

    ``left``: padded on the left. ``last``: of the prompt only the logits of the last real tokens are asked for.
    """

    name: str
    lengths: tuple[int, ...]
    steps: int = 0
    chunks: int = 1
    left: bool = False
    last: bool = False

    def positions(self, length: int) -> slice:
        """The positions of a row with a prompt of ``length`` tokens that have logits."""
        return slice(length - 1 if self.last else 0, length + self.steps)


_CASES = (
    _Case("prefill, empty past", (24,)),
    _Case("prefill and steps", (24,), steps=STEPS),
    _Case("prompt in two chunks", (24,), chunks=2),
    _Case("ragged batch", RAGGED),
    _Case("ragged batch and steps, holes in the cache", RAGGED, steps=STEPS),
    _Case("ragged batch in chunks and steps, padded on the left", RAGGED, steps=STEPS, chunks=2, left=True),
    _Case("ragged batch and steps, last tokens", RAGGED, steps=STEPS, last=True),
)


def check_decoder_qdq(
    built: Built,
    model: Any,
    *,
    vocab_size: int,
    atol: float | None = None,
    golden: tuple[Arrays, Arrays] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compares ``built`` with the torch ``model`` (eval mode, float32); returns the manifest's ``parity.qdq``.

    ``golden`` are inputs and torch's outputs that an engine will be judged by (made here unless given): how far the
    file is from them, as relative RMS, is ``golden_drift``. Raises ``ParityError`` if an exact case is above ``atol``
    (default 1e-2) or the file drifts, ``InputError`` if ``atol`` is no tolerance.
    """
    limit = DEFAULT_ATOL if atol is None else tolerance(atol)
    path = built.folder / built.files[0]
    cases = []
    with tempfile.TemporaryDirectory(dir=built.folder) as folder:
        twin = _Decoder(open_session(_twin(path, Path(folder)), built))
        shipped = _Decoder(open_session(path, built))
        rounded = _half_weights(path)
        for index, case in enumerate(_CASES):
            if progress is not None:
                progress("parity", index, len(_CASES))
            cases.append(_judge(case, twin, shipped, model, rounded, vocab_size, index))
    inputs, wanted = golden or decoder_golden(model, vocab_size=vocab_size)
    drift = golden_drift({"logits": shipped.feed(inputs["input_ids"], inputs["attention_mask"], last=True)}, wanted)
    told = report(cases, limit, DEFAULT_ATOL)
    return told | {"golden_drift": float(f"{drift:.1e}"), "golden_limit": golden_limit(drift)}


def _judge(
    case: _Case, twin: _Decoder, shipped: _Decoder, model: Any, rounded: set[str], vocab_size: int, seed: int
) -> dict[str, Any]:
    rows = random_rows([length + case.steps for length in case.lengths], vocab_size, seed)
    exact, free = (_run(decoder, case, rows) for decoder in (twin, shipped))
    wanted = [torch_logits(model, row) for row in rows]
    with _rounded_to_half(model, rounded):
        halved = [torch_logits(model, row) for row in rows]
    error, drifts = 0.0, []
    for at, length in enumerate(case.lengths):
        positions = case.positions(length)
        error = max(error, largest(exact[at] - halved[at][positions]))
        drifts.append(relative(free[at], wanted[at][positions]))
    drift = float(np.median(np.concatenate(drifts)))
    if error <= DEFAULT_ATOL and not drift <= DRIFT:
        raise ParityError(
            f"float16 to change logits by at most {DRIFT:g} of their spread",
            f"{drift:.2g} in case {case.name}",
            "export for the `ort` dialect, and report it with the checkpoint",
        )
    return {"name": case.name, "max_abs_error": error, "drift": float(f"{drift:.1e}")}


def _run(decoder: _Decoder, case: _Case, rows: list[Array]) -> list[Array]:
    try:
        return decoder.run(case, rows)
    except Exception as error:  # ONNX Runtime's errors have no base of their own
        got, fix = " ".join(str(error).split())[:200], "report it with the checkpoint: the emitter is wrong"
        raise ParityError(f"a graph that answers case {case.name}", got, fix) from error


class _Decoder:
    """A session and the cache it fills."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session
        self.past = [value for value in session.get_inputs() if value.name.startswith("past_key_values.")]
        self.dtype = np.float16 if self.past[0].type == "tensor(float16)" else np.float32
        self.outputs = [value.name for value in session.get_outputs()]
        self.cache: Arrays = {}

    def run(self, case: _Case, rows: list[Array]) -> list[Array]:
        """Of each row the logits ``[positions, vocab]`` of ``case.positions``."""
        ids, mask = _layout(case, rows)
        self.cache = {}
        width = max(case.lengths)
        piece = -(-width // case.chunks)
        stops = [min(start + piece, width) for start in range(0, width, piece)] + [*range(width + 1, mask.shape[1] + 1)]
        found, start = [], 0
        for stop in stops:
            last = case.last and stop <= width
            found.append(self.feed(ids[:, start:stop], mask[:, :stop], last=last))
            start = stop
        logits = np.concatenate(found, axis=1)
        if case.last:
            return list(logits)
        return [logits[at][mask[at].astype(bool)] for at in range(len(rows))]

    def feed(self, ids: Array, mask: Array, *, last: bool) -> Array:
        """Logits of all positions of ``ids``, or of the last real one of each row; the cache grows."""
        columns = ids.shape[1]
        positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, -columns:]
        index = np.broadcast_to(np.arange(columns), ids.shape)
        if last:
            index = np.max(np.where(mask[:, -columns:] == 1, index, 0), axis=1, keepdims=True)
        if not self.cache or mask.shape[1] == columns:
            self.cache = {v.name: np.zeros((len(ids), v.shape[1], 0, v.shape[3]), self.dtype) for v in self.past}
        fed = {"input_ids": ids, "position_ids": positions, "attention_mask": mask, "logits_index": np.array(index)}
        found = dict(zip(self.outputs, self.session.run(self.outputs, {**fed, **self.cache}), strict=True))
        self.cache = {name: found[name.replace("past_key_values.", "present.")] for name in self.cache}
        return np.asarray(found["logits"])


def _layout(case: _Case, rows: list[Array]) -> tuple[Array, Array]:
    """Ids and mask ``[batch, columns]`` of prompts and steps; padding between them where a prompt is short."""
    width, batch = max(case.lengths), len(rows)
    ids, mask = (np.zeros((batch, width + case.steps), np.int64) for _ in range(2))
    for at, (row, length) in enumerate(zip(rows, case.lengths, strict=True)):
        start = width - length if case.left else 0
        columns = [*range(start, start + length), *range(width, width + case.steps)]
        ids[at, columns], mask[at, columns] = row, 1
    return ids, mask


def _twin(path: Path, folder: Path) -> Path:
    """The model with float32 for float16 everywhere; weights are converted one at a time as they are written."""
    model = ir.load(path)
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT16:
            value.const_value = _single(value.const_value)
            value.type = ir.TensorType(ir.DataType.FLOAT)
    inner = [value for node in model.graph for value in node.outputs]
    for value in (*model.graph.inputs, *inner):
        if value.dtype == ir.DataType.FLOAT16:
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in model.graph:
        if node.op_type == "Cast" and node.attributes["to"].as_int() == int(ir.DataType.FLOAT16):
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
    twin = folder / path.name
    ir.save(model, twin, external_data=f"{path.name}.data")
    return twin


def _single(half: Any) -> ir.LazyTensor:
    def convert() -> ir.Tensor:
        return ir.tensor(half.numpy().astype(np.float32), name=half.name)

    return ir.LazyTensor(convert, dtype=ir.DataType.FLOAT, shape=half.shape, name=half.name)


def _half_weights(path: Path) -> set[str]:
    """Names of the checkpoint's float tensors that the model holds, rounded to float16."""
    graph = ir.load(path).graph
    names: set[str] = set()
    for name, value in graph.initializers.items():
        modules, _, part = str(name).rpartition(".")
        if part in ("weight", "bias") and value.dtype == ir.DataType.FLOAT16:
            whole = modules.removesuffix(".query").removesuffix(".key").removesuffix(".value")
            names.update(f"{module}.{part}" for module in whole.split("+"))
    tied = any(node.op_type == "Transpose" and _is_half(node.inputs[0]) for node in graph)
    return names | ({_HEAD} if tied or _OLD_HEAD in names else set())


def _is_half(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and value.dtype == ir.DataType.FLOAT16


@contextmanager
def _rounded_to_half(model: torch.nn.Module, names: set[str]) -> Iterator[None]:
    """Within, parameters called one of ``names`` (a base model's also without its prefix) hold float16 numbers."""
    kept = []
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        bare = name.removeprefix(f"{getattr(model, 'base_model_prefix', '')}.")
        if (name in names or bare in names) and parameter.dtype == torch.float32:
            kept.append((parameter, parameter.data))
            parameter.data = parameter.data.half().float()
    try:
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data
