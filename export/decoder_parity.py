"""Does an emitted decoder compute what the checkpoint computes in torch, with every way of holding the cache?

Two questions, because the fast kernels quantize their inputs to 8 bits and so never equal float arithmetic:

1. *Exact.* A copy of the graph whose MatMulNBits nodes may not round their inputs (``accuracy_level`` 0) must equal
   torch within a tight tolerance, for each case: a prefill with an empty past, a prefill followed by single steps, a
   prompt in two chunks, ragged batches padded on the right, and one buffer shared by past and present. The copy has
   the same weights file. What torch is compared with is always a full recompute of the whole row.
2. *Drift.* The shipped file must stay near torch, too: the median over positions of how far its logits are, where
   common offsets do not count, in units of their spread. Measured on SmolLM2 with 4-bit weights: 0.04 on text, 0.05 to
   0.08 on random tokens; of unrelated logits it is 1.4. Single positions are no measure: after an odd first token a
   position can reach 1.9 (whether it becomes an attention sink hangs by a thread), and text is judged the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from planish.errors import ParityError
from planish.export.decoder_cases import RAGGED, STEPS, largest, random_rows, relative, torch_logits
from planish.export.golden import Arrays
from planish.export.graph import Built, Progress
from planish.export.parity import open_session, report, tolerance

__all__ = ["DEFAULT_ATOL", "DRIFT", "check_decoder", "decoder_golden"]

Array = NDArray[Any]

DEFAULT_ATOL = 5e-3
"""Largest absolute difference of a logit. Measured: 1.5e-4 on SmolLM2-135M (logits up to 34), 1e-5 on tiny models."""

DRIFT = 0.25
"""Most that 8-bit inputs may change, in units of the spread of a position's logits."""


@dataclass(frozen=True)
class _Case:
    """Rows of token ids; all but the last ``steps`` of each are the prompt, read in ``chunks`` pieces.

    ``shared``: one buffer under past and present, and of the prompt only the logits of last tokens: the runtime's way.
    """

    name: str
    lengths: tuple[int, ...]
    steps: int = 0
    chunks: int = 1
    shared: bool = False


_CASES = (
    _Case("prefill, empty past", (24,)),
    _Case("prefill and steps", (24,), steps=STEPS),
    _Case("prompt in two chunks", (24,), chunks=2),
    _Case("ragged batch", RAGGED),
    _Case("ragged batch and steps", RAGGED, steps=STEPS),
    _Case("ragged batch and steps, one buffer", RAGGED, steps=STEPS, shared=True),
)


def check_decoder(
    built: Built, model: Any, *, vocab_size: int, atol: float | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Compares ``built`` with the torch ``model`` (eval mode, float32); returns the manifest's ``parity.ort``.

    Raises ``ParityError`` if an exact case is above ``atol`` (default 5e-3) or the shipped file drifts, ``InputError``
    if ``atol`` is no tolerance.
    """
    limit = DEFAULT_ATOL if atol is None else tolerance(atol)
    path = built.folder / built.files[0]
    cases = []
    with tempfile.TemporaryDirectory(dir=built.folder) as folder:
        exact = _Decoder(open_session(_exact_copy(path, Path(folder)), built))
        shipped = _Decoder(open_session(path, built))
        for index, case in enumerate(_CASES):
            if progress is not None:
                progress("parity", index, len(_CASES))
            cases.append(_judge(case, exact, shipped, model, vocab_size, index))
    return report(cases, limit, DEFAULT_ATOL)


def decoder_golden(model: Any, *, vocab_size: int, lengths: Sequence[int] = (12, 5)) -> tuple[Arrays, Arrays]:
    """A small ragged batch, padded on the right, and torch's logits ``[batch, 1, vocab]`` of its last real tokens."""
    rows = random_rows(lengths, vocab_size, seed=99)
    ids, mask = _pad(rows, max(lengths))
    logits = np.stack([torch_logits(model, row)[-1:] for row in rows])
    return {"input_ids": ids, "attention_mask": mask}, {"logits": logits}


def _judge(case: _Case, exact: _Decoder, shipped: _Decoder, model: Any, vocab_size: int, seed: int) -> dict[str, Any]:
    rows = random_rows([length + case.steps for length in case.lengths], vocab_size, seed)
    got, free = (_run(decoder, case, rows) for decoder in (exact, shipped))
    wanted = [torch_logits(model, row) for row in rows]
    pairs = [(wanted[row][at], ours, theirs) for row, at, ours, theirs in _pairs(case, got, free)]
    error = max(largest(ours - expected) for expected, ours, _ in pairs)
    drift = float(np.median(np.concatenate([relative(theirs, expected) for expected, _, theirs in pairs])))
    if not drift <= DRIFT:
        raise ParityError(
            f"8-bit inputs to change logits by at most {DRIFT:g} of their spread",
            f"{drift:.2g} in case {case.name}",
            "report it with the checkpoint, or export a recipe with more bits",
        )
    return {"name": case.name, "max_abs_error": error, "drift": float(f"{drift:.1e}")}


def _run(decoder: _Decoder, case: _Case, rows: list[Array]) -> list[Array]:
    try:
        logits = decoder.run(case, rows)
    except Exception as error:  # ONNX Runtime's errors have no base of their own
        raise _refused(case, " ".join(str(error).split())[:200]) from error
    shapes = [array.shape[:2] for array in logits]
    longest = max(case.lengths)
    prompt = 1 if case.shared else longest - _chunk(case) * (case.chunks - 1)
    if shapes != [(len(rows), prompt), *[(len(rows), 1)] * case.steps]:
        raise _refused(case, f"logits of shapes {shapes}")
    return logits


def _refused(case: _Case, got: str) -> ParityError:
    fix = "report it with the checkpoint: the emitter is wrong"
    return ParityError(f"a graph that answers case {case.name}", got, fix)


def _chunk(case: _Case) -> int:
    return -(-max(case.lengths) // case.chunks)


def _pairs(case: _Case, got: list[Array], free: list[Array]) -> list[tuple[int, slice, Array, Array]]:
    """Row, positions, and what both graphs gave there: positions of the last prompt chunk, then one a step."""
    pairs = []
    for row, length in enumerate(case.lengths):
        start = length - got[0].shape[1] if case.chunks > 1 or case.shared else 0
        count = length - start
        pairs.append((row, slice(start, length), got[0][row, :count], free[0][row, :count]))
        for step in range(case.steps):
            at = slice(length + step, length + step + 1)
            pairs.append((row, at, got[1 + step][row], free[1 + step][row]))
    return pairs


class _Decoder:
    """A session, and the two ways of carrying its cache."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session
        self.past = [value for value in session.get_inputs() if value.name.startswith("past_key_values.")]
        self.outputs = [value.name for value in session.get_outputs()]

    def run(self, case: _Case, rows: list[Array]) -> list[Array]:
        """Logits of the last chunk of the prompt (all positions, or the last real one), then of each step."""
        longest = max(case.lengths)
        feed = self._shared(len(rows), longest + case.steps) if case.shared else self._growing(len(rows))
        ids, mask = _pad([row[:length] for row, length in zip(rows, case.lengths, strict=True)], longest)
        for start in range(0, longest, _chunk(case)):
            stop = min(start + _chunk(case), longest)
            logits = [feed(ids[:, start:stop], mask[:, :stop], int(case.shared))]
        for step in range(case.steps):
            token = np.array([[row[length + step]] for row, length in zip(rows, case.lengths, strict=True)])
            real = np.asarray(case.lengths)[:, None] + step + 1
            logits.append(feed(token, (np.arange(longest + step + 1) < real).astype(np.int64), 1))
        return logits

    def _growing(self, batch: int) -> Callable[[Array, Array, int], Array]:
        """Past and present apart: each run returns a longer cache."""
        cache = {v.name: np.zeros((batch, v.shape[1], 0, v.shape[3]), np.float32) for v in self.past}

        def feed(ids: Array, mask: Array, keep: int) -> Array:
            inputs = {"input_ids": ids, "attention_mask": mask, "logits_to_keep": np.array(keep, np.int64), **cache}
            found = dict(zip(self.outputs, self.session.run(self.outputs, inputs), strict=True))
            for name in cache:
                cache[name] = found[name.replace("past_key_values.", "present.")]
            return np.asarray(found["logits"])

        return feed

    def _shared(self, batch: int, total: int) -> Callable[[Array, Array, int], Array]:
        """One buffer under both names, longer than needed and full of what must not matter."""
        binding = self.session.io_binding()
        for value in self.past:
            filled = np.full((batch, value.shape[1], total + 5, value.shape[3]), 1e3, np.float32)
            buffer = onnxruntime.OrtValue.ortvalue_from_numpy(filled)
            binding.bind_ortvalue_input(value.name, buffer)
            binding.bind_ortvalue_output(value.name.replace("past_key_values.", "present."), buffer)

        def feed(ids: Array, mask: Array, keep: int) -> Array:
            binding.bind_cpu_input("input_ids", np.ascontiguousarray(ids))
            binding.bind_cpu_input("attention_mask", np.ascontiguousarray(mask))
            # by value: binding arrays by name only knows inputs that have to be fed
            value = onnxruntime.OrtValue.ortvalue_from_numpy(np.array(keep, np.int64))
            binding.bind_ortvalue_input("logits_to_keep", value)
            binding.bind_output("logits", "cpu")
            self.session.run_with_iobinding(binding)
            return np.asarray(binding.get_outputs()[-1].numpy())

        return feed


def _exact_copy(path: Path, folder: Path) -> Path:
    """The model without 8-bit inputs; its weights file is linked, not copied."""
    model = ir.load(path)
    for node in model.graph:
        if node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 0)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            target = folder / Path(tensor.location).name
            if not target.exists():
                target.hardlink_to(path.parent / tensor.location)
    copy = folder / path.name
    ir.save(model, copy)
    return copy


def _pad(rows: Sequence[Array], width: int) -> tuple[Array, Array]:
    ids = np.zeros((len(rows), width), np.int64)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = row
    mask = np.arange(width) < np.array([[len(row)] for row in rows])
    return ids, mask.astype(np.int64)
