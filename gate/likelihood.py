"""Two decoders on the same text: perplexities, next-token agreement and divergence, window by window.

Protocol as in `planish.runtime.score`: each text is tokenized whole and cut into windows that do not overlap; the first
token of a window is not predicted. A window is a sample. Logits are looked at 64 positions at a time, so that memory
stays at a few megabytes a side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from planish.errors import DataError
from planish.gate.metrics import Measured, perplexity, ratio_of_sums
from planish.gate.outputs import Failure, first_line
from planish.gate.paired import LEAST_SAMPLES
from planish.runtime.decoders import Run

if TYPE_CHECKING:
    from planish.runtime.model import Model

__all__ = ["Likelihood", "compare_likelihood", "cut_windows"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CHUNK = 64
CONTEXT = 512
SHORTEST = 32


@dataclass(frozen=True)
class Likelihood:
    """Both sides on the same windows.

    Attributes:
        candidate, baseline: perplexity, one row a window.
        top_1: share of positions at which both find the same token likeliest.
        divergence: mean Kullback-Leibler divergence of the candidate from the baseline, nats a token; None where the
            baseline's logits are not here.
    """

    candidate: Measured
    baseline: Measured
    top_1: Measured
    divergence: Measured | None
    tokens: int
    context: int
    failures: tuple[Failure, ...]


def cut_windows(ids: Sequence[Ints], context: int) -> list[Ints]:
    """Windows of at most ``context`` ids that do not overlap; a single id predicts nothing and is left out."""
    cut = (text[start : start + context] for text in ids for start in range(0, len(text), context))
    return [window for window in cut if len(window) > 1]


def context_for(ids: Sequence[Ints], limit: int) -> int:
    """512, or the model's limit; shorter when the text would give too few windows for an interval."""
    total = sum(len(text) for text in ids)
    return max(2, min(CONTEXT, limit, max(SHORTEST, total // (LEAST_SAMPLES + 4))))


def compare_likelihood(
    candidate: Model,
    baseline: Model,
    texts: Sequence[str],
    *,
    max_tokens: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Likelihood:
    """Run both models over the windows of ``texts``, at most ``max_tokens`` tokens in all.

    Raises:
        DataError: the texts have fewer than two tokens.
    """
    ids = tokenized(baseline, texts, max_tokens)
    generation = baseline.manifest.generation
    context = context_for(ids, generation.max_length if generation else CONTEXT)
    windows = cut_windows(ids, context)
    if not windows:
        raise DataError("text of at least two tokens", "less", "give more text")
    rows: list[Floats] = []
    failures: list[Failure] = []
    for number, window in enumerate(windows, 1):
        try:
            rows.append(window_row(candidate, baseline, window))
        except WindowError:
            failures += window_failures(candidate, baseline, window, number)
        if progress:
            progress("perplexity", number, len(windows))
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    new, old, same, divergence, tokens = table.T
    return Likelihood(
        candidate=perplexity(new, tokens),
        baseline=perplexity(old, tokens),
        top_1=Measured("next-token agreement", np.stack([same, tokens], axis=1), ratio_of_sums),
        divergence=Measured("KL divergence", np.stack([divergence, tokens], axis=1), ratio_of_sums),
        tokens=int(tokens.sum()),
        context=context,
        failures=tuple(failures),
    )


def tokenized(model: Model, texts: Sequence[str], max_tokens: int | None) -> list[Ints]:
    ids: list[Ints] = []
    left = max_tokens if max_tokens is not None else 1 << 62
    for text in texts:
        if left <= 0:
            break
        found = np.array(model.tokenizer.encode(text).ids[:left], dtype=np.int64)
        left -= len(found)
        ids.append(found)
    return ids


class WindowError(Exception):
    """One side failed on a window."""

    def __init__(self, side: str, message: str) -> None:
        super().__init__(message)
        self.side = side


def window_row(candidate: Model, baseline: Model, window: Ints) -> Floats:
    """``[5]``: both summed losses, positions of equal best token, summed divergence, predicted tokens."""
    sides = {"candidate": candidate, "baseline": baseline}
    runs = {side: decoder_run(model, window.size) for side, model in sides.items()}
    total = np.zeros(5)
    for start in range(0, window.size - 1, CHUNK):
        stop = min(start + CHUNK, window.size - 1)
        targets = window[start + 1 : stop + 1]
        logs = {side: log_probabilities(side, runs[side], window[start:stop]) for side in sides}
        total += chunk_row(logs["candidate"], logs["baseline"], targets)
    return total


def window_failures(candidate: Model, baseline: Model, window: Ints, number: int) -> list[Failure]:
    """Which sides fail on a window that one of them failed on."""
    failures = []
    for side, model in (("candidate", candidate), ("baseline", baseline)):
        try:
            log_probabilities(side, decoder_run(model, window.size), window)
        except WindowError as error:
            failures.append(Failure(side, number, str(error)))
    return failures


def decoder_run(model: Model, positions: int) -> Run:
    return model.decoder.start(1, longest=positions, limit=positions)


def log_probabilities(side: str, run: Run, ids: Ints) -> NDArray[np.float32]:
    """``[positions, vocab]`` of the next ``ids``."""
    try:
        logits = np.array(run.extend(ids), dtype=np.float32)  # a copy: the run's buffer is overwritten by the next call
    except Exception as error:  # whatever the engine says is a finding about this side
        raise WindowError(side, first_line(error)) from error
    if not np.all(np.isfinite(logits)):
        raise WindowError(side, "logits that are not finite")
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return logits


def chunk_row(candidate: NDArray[np.float32], baseline: NDArray[np.float32], targets: Ints) -> Floats:
    """The row of `window_row` for a few positions, from log probabilities ``[positions, vocab]``."""
    at = np.arange(targets.size)
    same = np.sum(candidate.argmax(axis=1) == baseline.argmax(axis=1))
    divergence = np.sum(np.exp(baseline) * (baseline - candidate), dtype=np.float64)
    new, old = (-side[at, targets].sum(dtype=np.float64) for side in (candidate, baseline))
    return np.array([new, old, same, divergence, targets.size], dtype=np.float64)
