"""What a candidate is compared with: an open bundle, or what a baseline file says of one.

Both give the same two things, so that the gate's checks cannot tell them apart: the answers on samples, and, for
decoders, the likelihoods of windows. Only the divergence is missing from a file: it takes every position's every logit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from planish.errors import InputError
from planish.gate.data import Dataset
from planish.gate.likelihood import (
    CHUNK,
    Likelihood,
    WindowError,
    compare_likelihood,
    cut_windows,
    decoder_run,
    log_probabilities,
    tokenized,
)
from planish.gate.metrics import Measured, perplexity, ratio_of_sums
from planish.gate.outputs import Failure, Outputs, collect

if TYPE_CHECKING:
    from planish.gate.baseline_file import BaselineFile
    from planish.runtime.model import Model

__all__ = ["OpenParent", "Parent", "RecordedParent", "window_alone", "windows_digest"]

Ints = NDArray[np.int64]
Progress = Callable[[str, int, int], None] | None


class Parent(Protocol):
    """The baseline, as the gate's session asks it."""

    def answers(self, data: Dataset, progress: Progress) -> Outputs:
        """What it says on the samples."""
        ...

    def likelihood(self, candidate: Model, texts: Sequence[str], most: int | None, progress: Progress) -> Likelihood:
        """Both sides on the windows of ``texts``, at most ``most`` tokens of them."""
        ...


@dataclass(frozen=True)
class OpenParent:
    """A bundle that is open in this session."""

    model: Model

    def answers(self, data: Dataset, progress: Progress) -> Outputs:
        return collect(self.model, data, "baseline", progress)

    def likelihood(self, candidate: Model, texts: Sequence[str], most: int | None, progress: Progress) -> Likelihood:
        return compare_likelihood(candidate, self.model, texts, max_tokens=most, progress=progress)


@dataclass(frozen=True)
class RecordedParent:
    """A baseline file; that it was asked the same data was seen before."""

    file: BaselineFile

    def answers(self, data: Dataset, progress: Progress) -> Outputs:
        return self.file.outputs

    def likelihood(self, candidate: Model, texts: Sequence[str], most: int | None, progress: Progress) -> Likelihood:
        """Raises InputError where the candidate's tokenizer cuts other windows than the baseline's did."""
        wanted = self.file.windows
        assert wanted is not None  # the file's own check: it has windows where the task generates
        windows = cut_windows(tokenized(candidate, texts, most), wanted.context)
        same = windows_digest(windows) == wanted.digest and len(windows) == len(self.file.samples)
        pairs = zip(self.file.samples, windows, strict=True) if same else ()
        if not same or any(said.loss is not None and said.top.size + 1 != window.size for said, window in pairs):
            expected = "a candidate that makes of the text the tokens the baseline made"
            raise InputError(expected, f"others, {sum(map(len, windows))}", "give a baseline with the same tokenizer")
        return beside_recorded(candidate, windows, self.file, progress)


def windows_digest(windows: Sequence[Ints]) -> str:
    """``sha256:`` over the windows' lengths and ids, as little-endian 64-bit integers."""
    digest = hashlib.sha256()
    for window in windows:
        digest.update(np.array([len(window), *window], dtype="<i8").tobytes())
    return f"sha256:{digest.hexdigest()}"


def window_alone(side: str, model: Model, window: Ints) -> tuple[float, Ints]:
    """The summed loss in nats of a window's predicted tokens, and the likeliest token at each of their positions.

    Chunk by chunk as `planish.gate.likelihood.window_row` goes, so that the sums are the same to the bit. Raises
    WindowError.
    """
    run, total, top = decoder_run(model, window.size), np.float64(0), []
    for start in range(0, window.size - 1, CHUNK):
        stop = min(start + CHUNK, window.size - 1)
        logs = log_probabilities(side, run, window[start:stop])
        total += -logs[np.arange(stop - start), window[start + 1 : stop + 1]].sum(dtype=np.float64)
        top.append(logs.argmax(axis=1))
    return float(total), np.concatenate(top)


def beside_recorded(candidate: Model, windows: Sequence[Ints], file: BaselineFile, progress: Progress) -> Likelihood:
    """The candidate's likelihood of each window beside the recorded one; a window one side failed on is left out."""
    rows: list[tuple[float, float, float, float]] = []
    failures = list(file.outputs.failures)
    for number, (window, old) in enumerate(zip(windows, file.samples, strict=True), 1):
        try:
            loss, top = window_alone("candidate", candidate, window)
        except WindowError as error:
            failures.append(Failure("candidate", number, str(error)))
        else:
            if old.loss is not None:
                rows.append((loss, old.loss, float(np.sum(top == old.top)), float(top.size)))
        if progress:
            progress("perplexity", number, len(windows))
    new, before, same, tokens = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    return Likelihood(
        candidate=perplexity(new, tokens),
        baseline=perplexity(before, tokens),
        top_1=Measured("next-token agreement", np.stack([same, tokens], axis=1), ratio_of_sums),
        divergence=None,
        tokens=int(tokens.sum()),
        context=file.windows.context if file.windows else 0,
        failures=tuple(failures),
    )
