"""How far a candidate says what its parent says, without labels.

Every measure keeps one row a sample. A sample on which one side failed counts as disagreement, with cosine 0; one on
which both failed as agreement, for the candidate is no worse there. In distances (logit RMSE) neither can stand. The
report names them all, and failures are judged by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from planish.errors import InputError
from planish.gate.metrics import Measured, mean_of, ratio_of_sums
from planish.gate.outputs import Output, Outputs

__all__ = ["agreement", "cosines"]

Floats = NDArray[np.float64]
Pair = tuple[Output | None, Output | None]


def agreement(task: str, candidate: Outputs, baseline: Outputs) -> list[Measured]:
    """The measures of a task; the first is the one that is judged.

    text-classification: labels equal, logit RMSE. token-classification: label equal at a token, entities equal (all of
    a text's), logit RMSE. question-answering: spans equal. fill-mask: best token equal at a mask.
    feature-extraction: cosine. text-generation, with references: what was written is equal.

    Raises:
        InputError: the outputs have different shapes, so these are not two versions of one model.
    """
    pairs = list(zip(candidate.items, baseline.items, strict=True))
    check_shapes(pairs)
    if task == "text-classification":
        return [equal("agreement", [(p and p.labels, q and q.labels) for p, q in pairs]), logit_rmse(pairs)]
    if task == "token-classification":
        spans = equal("entity agreement", [(p and p.spans, q and q.spans) for p, q in pairs])
        return [token_agreement(pairs), spans, logit_rmse(pairs)]
    if task == "question-answering":
        return [equal("agreement", [(p and p.answer_span, q and q.answer_span) for p, q in pairs])]
    if task == "fill-mask":
        return [token_agreement(pairs)]
    if task == "text-generation":
        return [equal("same continuation", [(p and p.answer, q and q.answer) for p, q in pairs])]
    return [mean_of("cosine mean", cosines(candidate, baseline))]


def check_shapes(pairs: Sequence[Pair]) -> None:
    for p, q in pairs:
        if p is not None and q is not None and (p.values.shape != q.values.shape or p.tokens.shape != q.tokens.shape):
            got = f"{p.values.size} values a sample against {q.values.size}"
            raise InputError("a baseline with outputs of the same shape", got, "give the bundle's own parent")


def equal(name: str, pairs: Sequence[tuple[object, object]]) -> Measured:
    """Share of samples on which both sides say the same."""
    return mean_of(name, [float(p == q) for p, q in pairs], binary=True)


def token_agreement(pairs: Sequence[Pair]) -> Measured:
    """Share of positions with the same best class; a failed sample counts as one position."""
    rows = [
        (float(p is q), 1.0) if p is None or q is None else (float(np.sum(p.tokens == q.tokens)), float(p.tokens.size))
        for p, q in pairs
    ]
    return Measured("token agreement", np.array(rows, dtype=np.float64).reshape(-1, 2), ratio_of_sums)


def logit_rmse(pairs: Sequence[Pair]) -> Measured:
    """Root mean square difference of the logits, over the samples both sides answered."""
    rows = [(0.0, 0.0) if p is None or q is None else (float(np.sum((p.values - q.values) ** 2)), float(p.values.size))
            for p, q in pairs]  # fmt: skip
    table = np.array(rows, dtype=np.float64).reshape(-1, 2)
    return Measured("logit RMSE", table, lambda sums: np.sqrt(ratio_of_sums(sums)), higher_is_better=False)


def cosines(candidate: Outputs, baseline: Outputs) -> Floats:
    """``[samples]`` cosine of the two embeddings; 0 where one failed or gave a zero vector, 1 where both failed."""
    found = np.zeros(len(candidate.items))
    for number, (p, q) in enumerate(zip(candidate.items, baseline.items, strict=True)):
        if p is None or q is None:
            found[number] = float(p is q)
            continue
        length = float(np.linalg.norm(p.values) * np.linalg.norm(q.values))
        found[number] = float(p.values @ q.values) / length if length > 0 else 0.0
    return found
