"""How large the inputs of a layer are: a histogram of |x| in fixed bins, and the range to quantize that it suggests.

A bin is a float32's exponent and its six highest mantissa bits, so 64 bins an octave over all finite floats, each
1.6 % wide at most. The bins are the same for every layer and every text: histograms add up in any order, to the bit,
in 130 kB a layer however much text runs through.

Ranges: ``absmax`` keeps everything; ``percentile`` that share of the values; ``mse`` the least squared error of
rounding to 8 bits; ``entropy`` the least Kullback-Leibler divergence between the values and the rounded values
(Migacz, "8-bit Inference with TensorRT", GTC 2017).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from planish.compress.activations import HALF_STEPS
from planish.errors import DataError

__all__ = ["Magnitudes", "Range"]

Range = Literal["absmax", "percentile", "mse", "entropy"]

_SHIFT = 23 - 6  # mantissa bits of a float32 that are dropped
_BINS = 0x7F800000 >> _SHIFT  # up to infinity
_LEVELS = 128  # of the entropy method: magnitudes an int8 can tell apart
_FINE = 2048  # its linear bins
_CANDIDATES = 8 * 64  # ranges tried by mse: the eight octaves below the largest value


class Magnitudes:
    """Counts of |x| by bin, and the largest one exactly."""

    def __init__(self) -> None:
        self.counts = torch.zeros(_BINS, dtype=torch.int64)
        self.largest = 0.0

    def add(self, values: Tensor, name: str = "the input") -> None:
        """Count a float tensor of any shape.

        Raises:
            DataError: a value is infinite or no number; ``name`` says whose it is.
        """
        magnitudes = values.detach().float().abs().reshape(-1)
        if magnitudes.numel() == 0:
            return
        largest = float(magnitudes.max())
        if not largest < float("inf"):
            raise DataError(f"finite inputs of {name} on calibration text", str(largest), "check the weights")
        bins = magnitudes.contiguous().view(torch.int32) >> _SHIFT
        self.counts += torch.bincount(bins, minlength=_BINS)
        self.largest = max(self.largest, largest)

    def merge(self, other: Magnitudes) -> None:
        """Add the counts of ``other``; the order of merging does not matter."""
        self.counts += other.counts
        self.largest = max(self.largest, other.largest)

    def limit(self, method: Range, percentile: float = 99.99) -> float:
        """The magnitude that becomes 127.5 steps; larger ones are cut to it. 0 where all values are 0."""
        if method == "absmax" or self.largest == 0:
            return self.largest
        found = {"percentile": lambda: self._percentile(percentile), "mse": self._mse, "entropy": self._entropy}
        return min(found[method](), self.largest)

    def _percentile(self, percentile: float) -> float:
        """Upper edge of the first bin by which so many percent of the values are counted."""
        reached = torch.cumsum(self.counts, 0) >= self.counts.sum() * (percentile / 100)
        return float(_edges()[int(reached.nonzero()[0]) + 1])

    def _mse(self) -> float:
        centres, weights = self._occupied()
        last = int(self.counts.nonzero()[-1])
        limits = _edges()[max(1, last + 2 - _CANDIDATES) : last + 2].clamp(max=self.largest).double()
        steps = (limits / HALF_STEPS)[:, None]
        rounded = (centres / steps).round().clamp(max=127) * steps
        errors = ((centres - rounded).square() * weights).sum(1)
        return float(limits[int(errors.argmin())])

    def _entropy(self) -> float:
        fine = self._linear(_FINE)
        best, kept = float("inf"), _FINE
        for bins in range(_LEVELS, _FINE + 1, 16):
            divergence = _divergence(fine, bins)
            if divergence < best:
                best, kept = divergence, bins
        return kept * self.largest / _FINE

    def _occupied(self) -> tuple[Tensor, Tensor]:
        """Centres and counts (float64) of the bins that hold anything."""
        bins = self.counts.nonzero().flatten()
        edges = _edges().double()
        return (edges[bins] + edges[bins + 1]) / 2, self.counts[bins].double()

    def _linear(self, bins: int) -> Tensor:
        """The counts in ``bins`` bins of equal width up to the largest value, float64; zeros are left out.

        Exact zeros say nothing about a range, and a peak of them hides the rest.
        """
        centres, weights = self._occupied()
        keep = centres > float(_edges()[1])
        index = (centres[keep] * (bins / self.largest)).long().clamp(max=bins - 1)
        return torch.zeros(bins, dtype=torch.float64).index_add_(0, index, weights[keep])


def _edges() -> Tensor:
    """Lower edges of all bins and the end of the last, float32 ``[bins + 1]``; the last is infinity."""
    return (torch.arange(_BINS + 1, dtype=torch.int32) << _SHIFT).view(torch.float32)


def _divergence(fine: Tensor, bins: int) -> float:
    """KL divergence of the first ``bins`` counts, the rest added to the last, from the same in ``_LEVELS`` levels."""
    reference = fine[:bins].clone()
    reference[-1] += fine[bins:].sum()
    level = torch.arange(bins) * _LEVELS // bins
    occupied = (fine[:bins] > 0).double()
    totals = torch.zeros(_LEVELS, dtype=torch.float64).index_add_(0, level, fine[:bins])
    members = torch.zeros(_LEVELS, dtype=torch.float64).index_add_(0, level, occupied)
    spread = (totals / members.clamp_min(1))[level] * occupied
    if spread.sum() == 0 or reference.sum() == 0:
        return float("inf")
    p, q = reference / reference.sum(), spread / spread.sum()
    here = p > 0
    return float((p[here] * (p[here] / q[here].clamp_min(1e-12)).log()).sum())
