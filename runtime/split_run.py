"""The decoder's forward pass where past and present are two buffers a layer that change places after each pass.

Nothing is copied but a dropped row's place. The buffer a pass writes can be replaced by a larger one before the pass,
since what it holds is two passes old; so growing copies nothing either. Graph contract: docs/formats.md, section 5b.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from planish.errors import BundleError, RequestError
from planish.runtime.cache import round_up
from planish.runtime.manifest import Generation as DecoderInfo
from planish.runtime.sample import FloatArray, IntArray

__all__ = ["Memory", "SplitRun", "Steps", "SwapCache"]

_ALIGN = 256  # bytes; what TensorRT asks of an address
_AHEAD = 256  # positions reserved beyond the prompt
_WIDTHS = {"float16": 2, "float32": 4}


class Memory(Protocol):
    """Where a cache lies."""

    def allocate(self, nbytes: int) -> int:
        """The address of a new block; raises HostError."""

    def free(self, address: int) -> None: ...

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Done before whatever pass comes next; the two do not overlap."""


class Steps(Protocol):
    """What runs passes. Threads may share it."""

    memory: Memory
    max_rows: int | None
    cache_dtype: str

    def take(self, rows: int, past: int, wanted: int, *, every: bool) -> int:
        """How many of ``wanted`` new positions the next pass may take behind ``past``, with logits of all (``every``)
        or of one. Raises RequestError when it is none.
        """

    def __call__(
        self,
        inputs: Mapping[str, NDArray[Any]],
        shape: tuple[int, ...],
        past: Mapping[str, int],
        present: Mapping[str, int],
    ) -> NDArray[Any]:
        """Logits ``[rows, kept, vocab]`` of one pass; ``past`` and ``present`` map names to addresses, ``shape`` is
        the past's.
        """


class SwapCache:
    """Keys and values of all layers in two blocks of memory, read from one and written to the other.

    In a block, tensors lie one behind the other in regions of the same size, each tightly packed
    ``[rows, kv_heads, used, head_dim]``.
    """

    def __init__(self, memory: Memory, info: DecoderInfo, dtype: str, rows: int, capacity: int) -> None:
        if dtype not in _WIDTHS:
            raise BundleError("a cache of float16 or float32", dtype, "export the bundle again")
        self.rows, self.used, self.capacity = rows, 0, round_up(capacity)
        self._memory = memory
        self._heads, self._width = info.num_kv_heads, info.head_dim
        self._row = info.num_kv_heads * info.head_dim * _WIDTHS[dtype]  # bytes of one row's position
        parts = [f"{layer}.{part}" for layer in range(info.num_layers) for part in ("key", "value")]
        self._past = [f"past_key_values.{part}" for part in parts]
        self._present = [f"present.{part}" for part in parts]
        self._blocks: list[tuple[int, int]] = []  # (address, bytes of a region): the one read, the one written
        try:
            for _ in range(2):
                self._blocks.append(self._allocate(self.capacity))
        except BaseException:
            self.close()
            raise

    @property
    def shape(self) -> tuple[int, ...]:
        """Of each past tensor."""
        return (self.rows, self._heads, self.used, self._width)

    @property
    def is_whole(self) -> bool:
        """Whether both blocks are there."""
        return len(self._blocks) == 2

    @property
    def nbytes(self) -> int:
        return sum(region * len(self._past) for _, region in self._blocks)

    def addresses(self) -> tuple[dict[str, int], dict[str, int]]:
        """Of past and present tensors, by name."""
        (past, stride), (present, other) = self._blocks
        return (
            {name: past + at * stride for at, name in enumerate(self._past)},
            {name: present + at * other for at, name in enumerate(self._present)},
        )

    def make_room(self, total: int, most: int) -> None:
        """Makes the block to be written large enough for ``total`` positions; half as much again, up to ``most``."""
        if self.rows * self._row * total <= self._blocks[1][1]:
            return
        if total > self.capacity:
            self.capacity = round_up(max(total, min(most, self.capacity + self.capacity // 2)))
        self._memory.free(self._blocks.pop()[0])
        self._blocks.append(self._allocate(self.capacity))

    def advance(self, positions: int) -> None:
        """After a pass: what was written is the past now."""
        self._blocks.reverse()
        self.used += positions

    def drop(self, row: int) -> None:
        """The last row takes the place of ``row``. Rows are outermost, so the rest stays where it is."""
        self.rows -= 1
        if row == self.rows:
            return
        address, region = self._blocks[0]
        size = self._row * self.used
        for at in range(len(self._past)):
            base = address + at * region
            self._memory.copy(base + row * size, base + self.rows * size, size)

    def close(self) -> None:
        while self._blocks:
            self._memory.free(self._blocks.pop()[0])

    def _allocate(self, capacity: int) -> tuple[int, int]:
        region = -(-self.rows * self._row * capacity // _ALIGN) * _ALIGN
        return self._memory.allocate(region * len(self._past)), region


class SplitRun:
    """One batch on its way through a decoder of the ``qdq`` dialect; see :class:`planish.runtime.decoders.Run`.

    A batch padded on the right keeps the holes in its cache: columns of the cache are columns of the mask.
    """

    def __init__(self, steps: Steps, info: DecoderInfo, rows: int, *, longest: int, limit: int) -> None:
        self._steps = steps
        self._pad = info.pad_token_id or 0
        self._limit = limit
        if limit > 2:  # the last token that is chosen is never fed
            steps.take(rows, limit - 2, 1, every=False)
        self.lengths: IntArray = np.zeros(rows, np.int64)
        self._mask: IntArray = np.zeros((rows, limit), np.int64)
        self._cache = SwapCache(steps.memory, info, steps.cache_dtype, rows, min(limit, longest + _AHEAD))

    @property
    def rows(self) -> int:
        return int(self.lengths.size)

    @property
    def capacity(self) -> int:
        return self._cache.capacity

    def prefill(self, prompts: Sequence[IntArray]) -> FloatArray:
        """Logits ``[rows, vocab]`` after the last token of each prompt.

        Prompts go together, padded on the right, in as many passes as the engine's shapes ask for.
        """
        lengths = np.array([prompt.size for prompt in prompts], np.int64)
        longest = int(lengths.max())
        ids = np.full((self.rows, longest), self._pad, np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : prompt.size] = prompt
        real = np.arange(longest) < lengths[:, None]
        result: FloatArray | None = None
        start = 0
        while start < longest:
            stop = start + self._steps.take(self.rows, start, longest - start, every=False)
            last = lengths - 1 - start  # of each row, in this pass
            index = np.clip(last, 0, stop - start - 1)[:, None]
            logits = self._pass(ids[:, start:stop], real[:, start:stop], index)[:, 0]
            if result is None:
                result = np.zeros(logits.shape, np.float32)
            here = (last >= 0) & (last < stop - start)
            result[here] = logits[here]
            start = stop
        assert result is not None
        return result

    def step(self, tokens: Sequence[int]) -> FloatArray:
        """Append one token to each row; logits ``[rows, vocab]`` of what comes next."""
        ids = np.asarray(tokens, np.int64).reshape(-1, 1)
        ones = np.ones(ids.shape, bool)
        return np.asarray(self._pass(ids, ones, np.zeros_like(ids))[:, 0], np.float32)

    def extend(self, ids: IntArray) -> FloatArray:
        """Append ``ids`` to the only row; logits ``[len(ids), vocab]`` of every position."""
        parts = []
        start = 0
        while start < ids.size:
            stop = start + self._steps.take(1, self._cache.used, ids.size - start, every=True)
            part = np.asarray(ids[start:stop], np.int64).reshape(1, -1)
            index = np.arange(part.size, dtype=np.int64)[None]
            parts.append(np.array(self._pass(part, np.ones(part.shape, bool), index)[0], np.float32))
            start = stop
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def drop(self, row: int) -> None:
        """Forget ``row``; the last row takes its place."""
        last = self.rows - 1
        self._cache.drop(row)
        self.lengths[row], self._mask[row] = self.lengths[last], self._mask[last]
        self.lengths, self._mask = self.lengths[:last], self._mask[:last]

    def close(self) -> None:
        """Free the cache; twice is fine."""
        self._cache.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # one that was never made has no cache; an engine may be gone
            self._cache.close()

    def _pass(self, ids: IntArray, real: NDArray[np.bool_], index: IntArray) -> NDArray[Any]:
        """One forward pass of new columns, of which ``real`` are tokens; ``index``: whose logits are wanted."""
        if not self._cache.is_whole:
            raise RequestError("an open run", "one that was closed, or for which memory ran out", "start another")
        past, total = self._cache.used, self._cache.used + ids.shape[1]
        before: IntArray = np.cumsum(real, axis=1, dtype=np.int64) - real
        self._cache.make_room(total, self._limit)
        self._mask[:, past:total] = real
        inputs = {
            "input_ids": ids,
            "position_ids": self.lengths[:, None] + before,
            "attention_mask": self._mask[:, :total],
            "logits_index": index,
        }
        inputs = {name: np.ascontiguousarray(array, np.int64) for name, array in inputs.items()}
        addresses = self._cache.addresses()
        logits = self._steps(inputs, self._cache.shape, *addresses)
        self._cache.advance(ids.shape[1])
        self.lengths = self.lengths + real.sum(axis=1)
        return logits
