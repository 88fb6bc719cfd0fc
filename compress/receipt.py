"""Numbers for receipts: the state of the bench, and peak memory while a pass runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from planish.compress.bench import Bench
from planish.compress.digest import tensors_digest
from planish.compress.flops import costs
from planish.compress.memory import peak_bytes, reset_peak

__all__ = ["LENGTH", "measure", "state"]

LENGTH = 128
"""Tokens of the sequence whose FLOPs a receipt counts."""


def state(bench: Bench) -> dict[str, Any]:
    """Digest of all weights in memory, how many they are, the bytes a checkpoint would spend on them, and the work.

    ``flops`` are those of one sequence of :data:`LENGTH` tokens.
    """
    return {
        "digest": tensors_digest(dict(bench.model.named_parameters())),
        "parameters": bench.parameters(),
        "bytes": bench.bytes(),
        "flops": costs(bench.model, LENGTH).flops,
    }


@contextlib.contextmanager
def measure() -> Iterator[Callable[[], int]]:
    """Reset the peak of resident memory; the value yields the peak in bytes since then, when called."""
    reset_peak()
    yield peak_bytes
