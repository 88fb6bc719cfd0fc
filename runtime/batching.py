"""Many pieces of text through an engine: sorted by length, so that little of a batch is padding."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from planish.errors import BundleError, RequestError
from planish.runtime.engine import Engine
from planish.runtime.pieces import Piece

if TYPE_CHECKING:
    from planish.runtime.plan_engine import PlanEngine

__all__ = ["Forward", "Row", "batches", "pad"]


@dataclass(frozen=True)
class Row:
    """What the model said about one piece: its outputs without padding, ``index`` its place among the pieces."""

    index: int
    outputs: dict[str, NDArray[Any]]


def batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of at most ``batch_size``, longest first, so that a lack of memory shows at once.

    >>> batches([3, 9, 4], 2)
    [[1, 2], [0]]
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise RequestError("batch_size of at least 1", repr(batch_size), "32 is a good start")
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def pad(
    pieces: Sequence[Piece], pad_token_id: int, typed: bool = True, length: int | None = None
) -> dict[str, NDArray[np.int64]]:
    """``input_ids``, ``attention_mask`` and ``token_type_ids`` (0 unless ``typed``), int64 [pieces, length].

    Padded on the right, to the longest piece unless ``length`` says more.
    """
    shape = (len(pieces), length or max(len(piece) for piece in pieces))
    ids = np.full(shape, pad_token_id, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    types = np.zeros(shape, dtype=np.int64)
    for row, piece in enumerate(pieces):
        length = len(piece)
        ids[row, :length] = piece.ids
        mask[row, :length] = 1
        if typed:
            types[row, :length] = piece.type_ids
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


@dataclass(frozen=True)
class Forward:
    """How pieces go through an engine: ``workers`` batches at a time, each of at most ``batch_size`` pieces, or as many
    as the engine was built for.
    """

    engine: Engine | PlanEngine
    pad_token_id: int
    typed: bool = True
    workers: int = 1

    def __call__(self, pieces: Sequence[Piece], batch_size: int) -> Iterator[Row]:
        """Runs all pieces and yields a row for each, batch by batch, not in the order of the pieces.

        Outputs with a sequence axis are cut to the piece's length. Raises BundleError when an output is not finite.
        """
        lengths = [len(piece) for piece in pieces]
        plan = batches(lengths, batch_size)
        most = self.engine.max_rows
        if most is not None and batch_size > most:
            plan = batches(lengths, most)
        if self.workers == 1 or len(pieces) < 2:
            for batch in plan:
                yield from self._rows(batch, pieces)
            return
        if len(plan) < self.workers:
            plan = batches(lengths, -(-len(pieces) // self.workers))
        with ThreadPoolExecutor(self.workers) as pool:
            # No more batches under way than workers: their outputs may be large.
            waiting = deque(pool.submit(self._rows, batch, pieces) for batch in plan[: self.workers])
            for batch in plan[self.workers :]:
                yield from waiting.popleft().result()
                waiting.append(pool.submit(self._rows, batch, pieces))
            while waiting:
                yield from waiting.popleft().result()

    def _rows(self, batch: Sequence[int], pieces: Sequence[Piece]) -> list[Row]:
        chosen = [pieces[index] for index in batch]
        length = self.engine.padded(max(len(piece) for piece in chosen))
        inputs = pad(chosen, self.pad_token_id, self.typed, length)
        names = self.engine.input_names
        outputs = self.engine.run({name: array for name, array in inputs.items() if name in names})
        for name, array in outputs.items():
            if not np.isfinite(array).all():
                fix = "run `planish verify`, then export again"
                raise BundleError(f"finite numbers in {name}", "NaN or infinity", fix)
        ragged = {info.name for info in self.engine.dialect.outputs if info.shape[1:2] == ("sequence",)}
        return [Row(index, _cut(outputs, row, len(pieces[index]), ragged)) for row, index in enumerate(batch)]


def _cut(outputs: dict[str, NDArray[Any]], row: int, length: int, ragged: set[str]) -> dict[str, NDArray[Any]]:
    return {name: array[row, :length] if name in ragged else array[row] for name, array in outputs.items()}
