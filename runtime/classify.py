"""Text classification: labels with their probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planish.errors import BundleError, RequestError
from planish.runtime.manifest import Manifest

__all__ = ["Classification", "classification", "label_names", "sigmoid", "softmax"]


@dataclass(frozen=True)
class Classification:
    """Labels and scores, best first; ``truncated`` says that the text was too long and its end was not read."""

    labels: tuple[str, ...]
    scores: tuple[float, ...]
    truncated: bool

    @property
    def label(self) -> str:
        """The best label."""
        return self.labels[0]

    @property
    def score(self) -> float:
        """The best label's probability."""
        return self.scores[0]


def classification(logits: NDArray[Any], manifest: Manifest, top_k: int | None, truncated: bool) -> Classification:
    """The result for one text from its logits [labels].

    Softmax where one label is right, sigmoid for multi-label models and for models with a single label, as the Hugging
    Face text-classification pipeline has it.
    """
    names = label_names(manifest, len(logits))
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise RequestError("top_k of at least 1", repr(top_k), "leave it out for all labels")
    several = manifest.problem_type == "multi_label_classification" or len(logits) == 1
    scores = sigmoid(logits) if several else softmax(logits)
    order = np.argsort(-scores, kind="stable")[:top_k]
    return Classification(tuple(names[i] for i in order), tuple(float(scores[i]) for i in order), truncated)


def label_names(manifest: Manifest, count: int) -> tuple[str, ...]:
    """The names of the model's ``count`` labels; LABEL_0, LABEL_1, ... when the checkpoint had none."""
    if manifest.labels is None:
        return tuple(f"LABEL_{index}" for index in range(count))
    if len(manifest.labels) != count:
        raise BundleError(f"{len(manifest.labels)} logits, one a label", f"{count}", "export the bundle again")
    return manifest.labels


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities over the last axis."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    powers = np.exp(shifted)
    result: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return result


def sigmoid(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities of independent labels, without overflow on either side."""
    result: NDArray[np.float64] = 0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64)))
    return result
