"""From logits to the next token: penalty, temperature, top-k, top-p, min-p, and a reproducible draw.

The order and the meaning of each step are those of the Hugging Face generation processors, which the tests compare
with: repetition penalty (Keskar et al. 2019, CTRL), then, when sampling, temperature, top-k (Fan et al. 2018), top-p
(Holtzman et al. 2020) and min-p (Nguyen et al. 2024). Everything is per row: a row's draw depends on its seed and its
logits, never on the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planish.errors import BundleError, RequestError

__all__ = ["FloatArray", "IntArray", "Sampler", "Sampling", "candidates", "draw", "log_sum_exp", "penalize"]

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

# Looking first only at tokens this near to the best (logit differences) saves ordering a whole vocabulary, which would
# be most of a step's time outside the model; the last look takes all.
_LOOKS = (-8.0, -16.0, -math.inf)
_BLOCK = 256

PENALTIES = (0.01, 100.0)
"""Least and greatest repetition penalty; in use are 1 to 2."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; ``temperature=0`` is greedy and ignores ``top_k``, ``top_p`` and ``min_p``.

    ``top_k=0`` and ``top_p=1`` switch those filters off. ``repetition_penalty`` goes from 0.01 to 100 (1 switches it
    off; far outside, float32 logits overflow). Raises :class:`RequestError` on a value outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, 0.0, math.inf, "0 is greedy, 1 leaves the distribution as it is")
        _number("top_p", self.top_p, 0.0, 1.0, "1 switches the filter off", above=True)
        _number("repetition_penalty", self.repetition_penalty, *PENALTIES, "1 switches the penalty off")
        if self.min_p is not None:
            _number("min_p", self.min_p, 0.0, 1.0, "None switches the filter off")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, Integral) or self.top_k < 0:
            raise RequestError("top_k as a whole number >= 0", repr(self.top_k), "0 switches the filter off")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


def _number(name: str, value: Any, low: float, high: float, fix: str, *, above: bool = False) -> None:
    try:
        real = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int too large for a float
        real = False
    if real and (low < value if above else low <= value) and value <= high:
        return
    bound = f"{'>' if above else '>='} {low:g}" + (f" and <= {high:g}" if math.isfinite(high) else "")
    raise RequestError(f"{name} as a number {bound}", repr(value), fix)


def penalize(logits: FloatArray, seen: IntArray, penalty: float) -> None:
    """Make the ``seen`` ids less likely, in place: positive logits are divided by ``penalty``, negative multiplied."""
    score = logits[seen]
    logits[seen] = np.where(score < 0, score * np.float32(penalty), score / np.float32(penalty))


def candidates(logits: FloatArray, sampling: Sampling) -> tuple[IntArray, FloatArray]:
    """The ids left after temperature, top-k, top-p and min-p, with their unnormalized weights (the best has weight 1).

    ``logits`` is ``[vocab]``; the ids come in no promised order.
    """
    ids: IntArray | None = None  # None: all of them, which spares gathering a whole vocabulary
    with np.errstate(over="ignore", under="ignore"):  # a tiny temperature sends all but the best to -inf: as meant
        scaled = logits - logits.max()
        scaled /= np.float32(max(sampling.temperature, np.finfo(np.float32).tiny))
        if 0 < sampling.top_k < scaled.size:
            ids = _best(scaled, sampling.top_k)
            scaled = scaled[ids]
        weights = np.exp(scaled, out=scaled)
    if sampling.top_p < 1.0:
        kept = _nucleus(weights, sampling.top_p)
        ids, weights = kept if ids is None else ids[kept], weights[kept]
    if sampling.min_p:
        kept = np.flatnonzero(weights >= np.float32(sampling.min_p))  # the best weighs 1, so min_p needs no scaling
        ids, weights = kept if ids is None else ids[kept], weights[kept]
    return np.arange(weights.size) if ids is None else ids, weights


def _best(scaled: FloatArray, count: int) -> IntArray:
    """Positions of the ``count`` highest values; ties with the last of them stay, as in the reference."""
    for cut in _LOOKS:
        near = np.flatnonzero(scaled >= cut)
        if near.size >= count:
            break
    values = scaled[near]
    best: IntArray = near[values >= np.partition(values, -count)[-count]]
    return best


def _nucleus(weights: FloatArray, top_p: float) -> IntArray:
    """Positions of the smallest set of heaviest weights whose mass reaches ``top_p`` of the whole."""
    target = top_p * float(weights.sum(dtype=np.float64))
    for cut in _LOOKS:
        heavy = np.flatnonzero(weights >= np.float32(math.exp(cut)))
        if float(weights[heavy].sum(dtype=np.float64)) >= target:
            break
    order = heavy[np.argsort(-weights[heavy], kind="stable")]
    mass = np.cumsum(weights[order], dtype=np.float64)
    above = mass - weights[order]  # the mass of everything heavier: a token stays while this is short of the target
    return order[: max(1, int(np.searchsorted(above, target, side="left")))]


def draw(ids: IntArray, weights: FloatArray, uniform: float) -> int:
    """The id at quantile ``uniform`` (in ``[0, 1)``) of the discrete distribution ``weights`` over ``ids``."""
    # First the block, then the place in it: summing blocks is many times faster than a running sum over a vocabulary.
    whole = weights.size // _BLOCK
    blocks = np.cumsum(weights[: whole * _BLOCK].reshape(whole, _BLOCK).sum(axis=1, dtype=np.float64))
    rest = float(weights[whole * _BLOCK :].sum(dtype=np.float64))
    wanted = uniform * (rest + (blocks[-1] if whole else 0.0))
    block = int(np.searchsorted(blocks, wanted, side="right"))
    start = block * _BLOCK
    mass = np.cumsum(weights[start : start + _BLOCK], dtype=np.float64) + (blocks[block - 1] if block else 0.0)
    at = start + int(np.searchsorted(mass, wanted, side="right"))
    return int(ids[min(at, ids.size - 1)])


def log_sum_exp(logits: FloatArray) -> float:
    """``log(sum(exp(logits)))`` of one row, without overflow."""
    top = float(logits.max())
    return top + math.log(float(np.exp(logits - np.float32(top)).sum(dtype=np.float64)))


class Sampler:
    """Chooses the tokens of one row: its settings, its random stream, and the ids it has seen (prompt included)."""

    def __init__(self, sampling: Sampling, seed: int | None, prompt: Sequence[int] | IntArray, vocab_size: int) -> None:
        self._sampling = sampling
        self._plain = sampling.greedy and sampling.repetition_penalty == 1.0
        self._random = None if sampling.greedy else np.random.default_rng(seed)
        self._seen = np.unique(np.asarray(prompt, np.int64)) if sampling.repetition_penalty != 1.0 else None
        self._new = np.ones(vocab_size, bool) if self._seen is not None else None
        if self._seen is not None and self._new is not None:
            self._new[self._seen] = False

    def __call__(self, logits: FloatArray) -> int:
        """The next token for ``logits`` ``[vocab]``; the penalty is applied to them in place.

        Raises :class:`BundleError` if the model's logits are not numbers.
        """
        if not self._plain and self._seen is not None:
            penalize(logits, self._seen, self._sampling.repetition_penalty)
        best = int(logits.argmax())  # argmax stops at the first NaN, so looking at the winner is enough
        if not math.isfinite(logits[best]):
            raise BundleError(
                "a model with finite logits", f"{logits[best]}", "run `planish verify`, then export again"
            )
        token = best if self._random is None else draw(*candidates(logits, self._sampling), self._random.random())
        self._remember(token)
        return token

    def _remember(self, token: int) -> None:
        if self._seen is not None and self._new is not None and self._new[token]:
            self._new[token] = False
            self._seen = np.append(self._seen, token)
