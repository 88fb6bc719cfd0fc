"""Does an exported encoder compute what the checkpoint computes in torch?

Quantized activations make the plain question useless: where ``x / scale`` lies at a rounding boundary, the last bit of
a float decides the integer, one different integer disturbs the next layer's, and after a few layers two faithful
programs differ by as much as quantization itself costs. So torch is *teacher-forced*: every quantizer in it reads the
values the graph's own quantizer read, after they have been compared. Then nothing is amplified, all that is left is
the order of float sums, and the tolerance can be tight. Each inner comparison counts, not only the outputs.

The graph that is asked about its inner values is a copy with more outputs, whose weight-only layers may not round
their inputs (``accuracy_level`` 0); a second, loose check compares the shipped file with it, so that what only happens
in the shipped one is seen as well.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from planish.errors import InputError, ParityError
from planish.export.encoder import TWIN
from planish.export.golden import Arrays, encoder_inputs, run_torch
from planish.export.graph import Built, Progress
from planish.export.probe import quantizer_inputs, write_probe
from planish.export.quiet import quiet
from planish.runtime import golden_drift
from planish.runtime.dot_products import exact_options

__all__ = ["DEFAULT_ATOL", "check_encoder", "check_encoder_qdq", "golden_limit", "open_session", "report"]

DEFAULT_ATOL = 1e-3
"""Largest absolute difference. Measured: 1e-5 on MiniLM, float or INT8; fp32 sums in another order cost that much."""

_LARGE = 100.0
"""Inputs of quantizers beyond this are compared relative to it: feed-forward layers reach thousands in some models."""

_DRIFT = 0.5
"""Free-running difference of the shipped file from its probed copy, over the output's RMS; strangers have 1.4."""

_RAGGED = ((1,), (7,), (16, 9, 1), (64, 33, 2, 50), (128, 3))
"""Lengths of the rows of each batch; one row of the greatest length is added."""


def check_encoder(
    built: Built,
    model: Any,
    *,
    vocab_size: int,
    max_length: int,
    pad_token_id: int | None,
    atol: float | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compares the graph in ``built`` with a torch ``model`` on ragged, padded batches; returns the manifest's entry.

    Raises ``ParityError`` if any difference is above ``atol`` (default 1e-3), ``InputError`` if that is no tolerance.
    """
    return _check(built, built.files[0], None, model, vocab_size, max_length, pad_token_id, atol, progress)


def check_encoder_qdq(
    built: Built,
    model: Any,
    *,
    golden: tuple[Arrays, Arrays],
    vocab_size: int,
    max_length: int,
    pad_token_id: int | None,
    atol: float | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The same for a float16 graph: its float32 twin is held to torch, and it to the twin, loosely.

    The entry also says how far the float16 graph is from the ``golden`` outputs (relative RMS), and how far an engine
    made of it may be.
    """
    shipped = built.files[0]
    told = _check(built, TWIN, shipped, model, vocab_size, max_length, pad_token_id, atol, progress)
    inputs, outputs = golden
    found = _run(open_session(built.folder / shipped, built), inputs)
    drift = golden_drift(found, outputs, inputs.get("attention_mask"))
    if not drift <= _DRIFT:
        raise ParityError(
            f"the float16 graph within {_DRIFT:g} of the golden outputs", f"{drift:.2g}", "export for the dialect ort"
        )
    return told | {"golden_drift": _rounded(drift), "golden_limit": golden_limit(drift)}


def golden_limit(drift: float) -> float:
    """How far an engine may be from the golden outputs, relative RMS: other kernels round otherwise."""
    return _rounded(max(3 * drift, 0.05))


def _check(
    built: Built,
    exact: str,
    loose: str | None,
    model: Any,
    vocab_size: int,
    max_length: int,
    pad_token_id: int | None,
    atol: float | None,
    progress: Progress | None,
) -> dict[str, Any]:
    limit = tolerance(atol)
    names = [spec.name for spec in built.inputs]
    outputs = [spec.name for spec in built.outputs]
    batches = [*_RAGGED, (max_length,)]
    cases = []
    with _Probe(built, exact, loose or exact) as probe:
        for index, asked in enumerate(batches):
            if progress is not None:
                progress("parity", index, len(batches))
            lengths = [min(length, max_length) for length in asked]
            inputs = encoder_inputs(names, lengths, vocab_size=vocab_size, pad_token_id=pad_token_id, seed=index)
            cases.append(_case(probe, model, lengths, inputs, outputs))
    told = report(cases, limit)
    _check_drift(cases)
    return told


def tolerance(atol: float | None) -> float:
    """The tolerance to judge with."""
    limit = DEFAULT_ATOL if atol is None else float(atol)
    if not 0 < limit < float("inf"):
        raise InputError("a tolerance above 0", str(atol), "leave --atol out for the default")
    return limit


def report(cases: Sequence[dict[str, Any]], atol: float, default: float = DEFAULT_ATOL) -> dict[str, Any]:
    """The manifest's ``parity.ort``; raises ``ParityError`` if a case is above ``atol`` (NaN counts as above)."""
    worst = max(cases, key=lambda case: np.nan_to_num(case["max_abs_error"], nan=np.inf))
    error = float(worst["max_abs_error"])
    if not error <= atol:
        raise ParityError(
            f"the graph within {atol:g} of the checkpoint in torch",
            f"a difference of {error:.3g} in case {worst['name']}",
            "no bundle was written; if the difference is harmless, loosen --atol (the manifest will say so)",
        )
    return {
        "atol": atol,
        "default_atol": default,
        "loosened": atol > default,
        "max_abs_error": _rounded(error),
        "cases": [{**case, "max_abs_error": _rounded(float(case["max_abs_error"]))} for case in cases],
    }


def open_session(path: Path, built: Built) -> onnxruntime.InferenceSession:
    """A session as the runtime would open it, on one thread; integers are added exactly on every processor."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    for key, value in {**exact_options(built.dialect, built.precision), **built.session}.items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(
        str(path),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=list(built.disabled_optimizers) or None,
    )


class _Probe:
    """The shipped graph and its exact copy, which also returns what its quantizers read."""

    def __init__(self, built: Built, exact: str, shipped: str) -> None:
        self._built = built
        self._exact, self._shipped = exact, shipped

    def __enter__(self) -> _Probe:
        path = self._built.folder / self._exact
        self.shipped = open_session(self._built.folder / self._shipped, self._built)
        self.readers = quantizer_inputs(path)
        with tempfile.TemporaryDirectory(dir=self._built.folder) as folder:
            copy = write_probe(path, sorted(set(self.readers.values())), Path(folder))
            self.copy = open_session(copy, self._built)
        return self

    def __exit__(self, *_: object) -> None:
        del self.shipped, self.copy

    def run(self, inputs: Arrays) -> tuple[Arrays, Arrays]:
        """Outputs of the shipped graph, and outputs and inner values of the copy."""
        return _run(self.shipped, inputs), _run(self.copy, inputs)


def _run(session: onnxruntime.InferenceSession, inputs: Arrays) -> Arrays:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def _case(probe: _Probe, model: Any, lengths: list[int], inputs: Arrays, outputs: list[str]) -> dict[str, Any]:
    free, inner = probe.run(inputs)
    errors: list[float] = []
    with quiet(), _forced(model, {module: inner[value] for module, value in probe.readers.items()}, errors):
        expected = run_torch(model, inputs, outputs)
    errors += [_difference(inner[name], expected[name]) for name in outputs]
    name = f"batch {len(lengths)}, lengths {' '.join(map(str, lengths))}"
    drift = max(_relative(free[output], inner[output]) for output in outputs)
    return {"name": name, "max_abs_error": float(np.max(errors)), "drift": _rounded(drift)}


def _check_drift(cases: Sequence[dict[str, Any]]) -> None:
    for case in cases:
        if not case["drift"] <= _DRIFT:
            raise ParityError(
                "ONNX Runtime to compute the same with and without inner outputs",
                f"a relative difference of {case['drift']:.2g} in case {case['name']}",
                "report it with the checkpoint: a graph optimizer breaks this model",
            )


@contextmanager
def _forced(model: Any, values: Arrays, errors: list[float]) -> Iterator[None]:
    """Within, each module named in ``values`` reads that array; how far its own input was off goes to ``errors``.

    Of inputs that reach beyond 100 it is the share of a hundredth of the largest: float32 has seven digits.
    """

    def force(given: torch.Tensor) -> Any:
        def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            size = max(1.0, float(inputs[0].abs().max()) / _LARGE)
            errors.append(_difference(given.numpy(), inputs[0].numpy()) / size)
            return (given, *inputs[1:])

        return hook

    handles = [
        model.get_submodule(name).register_forward_pre_hook(force(torch.from_numpy(array)), prepend=True)
        for name, array in values.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _difference(got: Any, expected: Any) -> float:
    if got.shape != expected.shape:
        return float("inf")
    return float(np.max(np.abs(got - expected)))


def _relative(got: Any, expected: Any) -> float:
    return float(np.sqrt(np.mean((got - expected) ** 2) / (np.mean(expected**2) + 1e-12)))


def _rounded(error: float) -> float:
    """Two digits: the last bits of a difference depend on the processor, and bundles are to repeat."""
    return float(f"{error:.1e}")
