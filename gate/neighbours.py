"""What a search would find: the nearest texts of each text, under the candidate and under the baseline.

Overlap at k is the share of the k nearest neighbours by cosine that both have in common (as recall@k in Malkov and
Yashunin 2016, with the baseline for the truth). Neighbours that are as near as the k-th count as found, so that ties,
which rounding breaks one way or the other, are no difference.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planish.gate.metrics import Measured, mean_of
from planish.gate.outputs import Outputs

__all__ = ["NEIGHBOURS", "neighbour_overlap"]

Floats = NDArray[np.float64]

NEIGHBOURS = 10
MOST_ASKED = 2_000  # texts whose neighbours are looked for; all texts are looked at
CELLS = 2_000_000  # cosines held at once
TIE = 1e-6  # of a cosine; float32 embeddings give no more digits


def neighbour_overlap(candidate: Outputs, baseline: Outputs, k: int = NEIGHBOURS) -> Measured | None:
    """The mean share in common, a row a text; None for fewer than ``2 * k + 1`` texts, of which any two lists of
    ``k`` would share half by chance.

    Args:
        candidate, baseline: embeddings of the same distinct texts, one entry each. A text on which one side failed has
            no neighbour in common; the widths of the two sides may differ.
    """
    n = len(candidate.items)
    if n <= 2 * k:
        return None
    new, old = directions(candidate), directions(baseline)
    asked = np.unique(np.linspace(0, n - 1, min(n, MOST_ASKED)).round().astype(np.int64))
    step = max(1, CELLS // n)
    shares = np.concatenate([shared(new, old, asked[at : at + step], k) for at in range(0, len(asked), step)])
    failed = np.array([(p is None) != (q is None) for p, q in zip(candidate.items, baseline.items, strict=True)])
    shares[failed[asked]] = 0.0
    return mean_of(f"overlap@{k}", shares)


def directions(said: Outputs) -> Floats:
    """``[texts, hidden]`` embeddings of length 1; zeros where the model failed."""
    width = next((output.values.size for output in said.items if output is not None), 1)
    vectors = np.stack([np.zeros(width) if output is None else output.values for output in said.items])
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1.0))


def shared(new: Floats, old: Floats, asked: NDArray[np.int64], k: int) -> Floats:
    """``[asked]``: of the ``k`` texts nearest by ``new``, the share that is among the ``k`` nearest by ``old``."""
    at = np.arange(len(asked))[:, None]
    near, true = new[asked] @ new.T, old[asked] @ old.T
    near[at, asked[:, None]] = true[at, asked[:, None]] = -np.inf  # a text is not its own neighbour
    found = np.argpartition(-near, k - 1, axis=1)[:, :k]
    last = -np.partition(-true, k - 1, axis=1)[:, k - 1 : k]
    return np.asarray(np.mean(true[at, found] >= last - TIE, axis=1))
