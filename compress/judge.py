"""How good the model on the bench is, measured the same way before and after each pass.

Labelled validation examples give the task's metric; all give the agreement with the parent. Measured states are kept in
the work folder, so that a run that continues does not measure again.
"""

from __future__ import annotations

from typing import Any

from planish.compress.bench import Bench, Progress
from planish.compress.digest import tensors_digest
from planish.compress.material import Material
from planish.compress.quality import Reference, evaluate
from planish.compress.resume import Pieces

__all__ = ["Judge"]

COMPARED = 256
"""Examples on which the model is compared with its parent; the metric is of all."""


class Judge:
    """Measures on the validation examples; the parent is the reference, measured first."""

    def __init__(self, material: Material, pieces: Pieces, progress: Progress) -> None:
        self._material = material
        self._pieces = pieces
        self._progress = progress
        self._reference: Reference | None = None

    def quality(self, bench: Bench) -> dict[str, float]:
        """Numbers by name, as :mod:`planish.compress.quality` calls them."""
        examples = self._material.examples()
        if self._reference is None:
            self._reference = Reference.of(bench.model, examples, limit=COMPARED)
        tag = examples.digest + tensors_digest(dict(bench.model.named_parameters()))
        saved = self._pieces.load_state("quality", tag)
        if saved is not None:
            return dict(saved[1])
        found: dict[str, Any] = evaluate(bench.model, examples, progress=self._progress)
        found |= self._reference.compare(bench.model, examples)
        self._pieces.save_state("quality", tag, {}, found)
        return found
