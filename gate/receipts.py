"""What receipts of passes say of quality: which figure is quoted, here and by `planish explain`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["HIGHER_IS_BETTER", "QUALITIES", "headline"]

QUALITIES = ("accuracy", "span_f1", "answer_f1", "perplexity", "cosine_mean", "similarity_correlation", "loss")
"""What is quoted of a pass's quality: the first that was measured."""

HIGHER_IS_BETTER = frozenset(QUALITIES) - {"perplexity", "loss"}


def headline(state: Mapping[str, Any] | None) -> str | None:
    """The name of the quality to quote of a receipt's ``before`` or ``after``; None where none was measured.

    >>> headline({"quality": {"kl": 0.1, "accuracy": 0.9}})
    'accuracy'
    """
    found = (state or {}).get("quality")
    return next((name for name in QUALITIES if name in found), None) if isinstance(found, Mapping) else None
