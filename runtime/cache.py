"""The decoder's forward pass over one preallocated key/value buffer per layer, bound as past and as present.

GroupQueryAttention writes the new keys into the buffer it reads the old ones from, so a step copies nothing: only the
token ids and the length of the attention mask change. Everything here belongs to one call; the session is shared, and
is only read. Graph contract: docs/formats.md, section 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planish.errors import BundleError, HostError
from planish.runtime.manifest import Generation as DecoderInfo
from planish.runtime.sample import FloatArray, IntArray

__all__ = ["DecoderRun", "KVCache", "round_up"]

_BLOCK = 64  # a buffer's length is a multiple of this many positions
_AHEAD = (
    256  # positions reserved beyond the prompt; attention's scratch memory grows with the buffer, so not all at once
)
_PASS = 128  # positions of one prefill pass: as fast as 512 on a 135 M model, 20 MB less at the peak
_TOGETHER = 256  # rows times length up to which padding costs less than passes of their own
_TYPES: dict[str, type[np.generic]] = {"float32": np.float32, "float16": np.float16}


def round_up(positions: int) -> int:
    """``positions`` rounded up to whole blocks.

    >>> [round_up(n) for n in (1, 64, 65)]
    [64, 64, 128]
    """
    return -(-positions // _BLOCK) * _BLOCK


class KVCache:
    """Keys and values of all layers: arrays ``[rows, kv_heads, capacity, head_dim]``, grown when needed, never shrunk.

    Fresh memory is zero pages that cost nothing until written, so a large ``capacity`` alone takes no memory.
    """

    def __init__(self, info: DecoderInfo, rows: int, capacity: int) -> None:
        if info.cache_dtype not in _TYPES:
            raise BundleError("a cache of float32 or float16", info.cache_dtype, "export the bundle again")
        self.capacity = round_up(capacity)
        self._dtype = np.dtype(_TYPES[info.cache_dtype])
        self._heads, self._width = info.num_kv_heads, info.head_dim
        self._names = [f"{layer}.{part}" for layer in range(info.num_layers) for part in ("key", "value")]
        self._buffers = [self._fresh(rows) for _ in self._names]

    def _fresh(self, rows: int) -> NDArray[Any]:
        shape = (rows, self._heads, self.capacity, self._width)
        try:
            return np.zeros(shape, self._dtype)
        except MemoryError as error:
            got = f"no memory for {len(self._names)} buffers of {list(shape)}"
            raise HostError(
                "room for the key/value cache", got, "pass fewer prompts or a smaller batch_size"
            ) from error

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers)

    def grow(self, used: int, capacity: int) -> None:
        """Make room for ``capacity`` positions, keeping the first ``used``; one layer at a time is held twice."""
        self.capacity = round_up(capacity)
        for at, old in enumerate(self._buffers):
            new = self._fresh(old.shape[0])
            new[:, :, :used] = old[:, :, :used]
            self._buffers[at] = new

    def move(self, source: int, target: int, used: int) -> None:
        """Copy the first ``used`` positions of row ``source`` over row ``target``."""
        for buffer in self._buffers:
            buffer[target, :, :used] = buffer[source, :, :used]

    def bind(self, binding: Any, start: int, stop: int) -> None:
        """Bind rows ``start`` to ``stop`` of each buffer to its past input and its present output: the same memory."""
        from onnxruntime import OrtValue

        for name, buffer in zip(self._names, self._buffers, strict=True):
            value = OrtValue.ortvalue_from_numpy(buffer[start:stop])
            binding.bind_ortvalue_input(f"past_key_values.{name}", value)
            binding.bind_ortvalue_output(f"present.{name}", value)


class DecoderRun:
    """One batch on its way through the decoder: cache, bindings and lengths of its rows.

    ``limit`` is the most positions a row will take. Logits come as views of a buffer that the next call overwrites.
    Not for several threads; make one a call.
    """

    def __init__(
        self, session: Any, info: DecoderInfo, vocab_size: int, rows: int, *, longest: int, limit: int
    ) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._pad = info.pad_token_id or 0
        self._limit = limit
        self._cache = KVCache(info, rows, min(limit, longest + _AHEAD))
        self.lengths: IntArray = np.zeros(rows, np.int64)  # positions in the cache, row by row
        self._columns = np.arange(round_up(limit), dtype=np.int64)
        self._mask: IntArray = np.ones(0, np.int64)
        self._tokens: IntArray = np.zeros((rows, 1), np.int64)
        self._vocab, self._logits_type = _logits_spec(session, vocab_size)
        self._logits: NDArray[Any] = np.zeros((rows, 1, self._vocab), self._logits_type)
        self._stepping = False  # whether ids, logits and cache are bound in the shape of a decode step

    @property
    def rows(self) -> int:
        return int(self.lengths.size)

    @property
    def capacity(self) -> int:
        return self._cache.capacity

    def prefill(self, prompts: Sequence[IntArray]) -> FloatArray:
        """Logits ``[rows, vocab]`` after the last token of each prompt.

        Short prompts go together, padded on the right. Many or long ones go row by row and in chunks, since memory
        grows with the positions of a pass, and attention's with their square.
        """
        self.lengths = np.array([prompt.size for prompt in prompts], np.int64)
        if self.rows * int(self.lengths.max()) <= _TOGETHER:
            self._prefill_together(prompts)
        else:
            for row, prompt in enumerate(prompts):
                self._prefill_alone(row, prompt)
        return self._last_logits()

    def _prefill_together(self, prompts: Sequence[IntArray]) -> None:
        ids = np.full((self.rows, int(self.lengths.max())), self._pad, np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : prompt.size] = prompt
        self._binding.bind_cpu_input("input_ids", ids)
        self._bind_logits(self._logits)
        self._cache.bind(self._binding, 0, self.rows)
        self._bind_mask(ids.shape[1])
        self._run()

    def _prefill_alone(self, row: int, prompt: IntArray) -> None:
        self._bind_logits(self._logits[row : row + 1])
        self._cache.bind(self._binding, row, row + 1)
        for start in range(0, prompt.size, _PASS):
            chunk = prompt[start : start + _PASS]
            self._binding.bind_cpu_input("input_ids", chunk.reshape(1, -1))
            self._binding.bind_cpu_input("attention_mask", np.ones((1, start + chunk.size), np.int64))
            self._run()

    def step(self, tokens: Sequence[int]) -> FloatArray:
        """Append one token to each row; logits ``[rows, vocab]`` of what comes next."""
        self._advance(1)
        if not self._stepping:
            self._binding.bind_cpu_input("input_ids", self._tokens)
            self._bind_logits(self._logits)
            self._cache.bind(self._binding, 0, self.rows)
            self._stepping = True
        self._tokens[:, 0] = tokens
        self._bind_mask(int(self.lengths.max()))
        self._run()
        return self._last_logits()

    def extend(self, ids: IntArray) -> FloatArray:
        """Append ``ids`` to the only row; logits ``[len(ids), vocab]`` of every position (``logits_to_keep=0``).

        Only for runs that do nothing else.
        """
        self._advance(ids.size)
        self._binding.bind_cpu_input("input_ids", np.ascontiguousarray(ids, np.int64).reshape(1, -1))
        self._keep_all()
        # Not into a buffer of ours: shape inference may have taken the default of logits_to_keep for the truth, and a
        # buffer for more than one position is then refused. Bound before the cache, so it is the first output.
        self._binding.bind_output("logits", "cpu")
        self._cache.bind(self._binding, 0, 1)
        self._stepping = False
        self._bind_mask(int(self.lengths[0]))
        self._run()
        return np.require(self._binding.get_outputs()[0].numpy()[0], np.float32, ["W"])

    def _keep_all(self) -> None:
        keep = np.zeros(_keep_shape(self._session), np.int64)
        # By address: a numpy array can only be bound to a true input, and this one is an initializer.
        self._binding.bind_input("logits_to_keep", "cpu", 0, np.int64, keep.shape, keep.ctypes.data)
        self._keep = keep  # alive as long as it is bound

    def drop(self, row: int) -> None:
        """Forget ``row``; the last row takes its place."""
        last = self.rows - 1
        if row != last:
            self._cache.move(last, row, int(self.lengths[last]))
            self.lengths[row] = self.lengths[last]
        self.lengths = self.lengths[:last]
        self._tokens = self._tokens[:last]
        self._logits = self._logits[:last]
        self._stepping = False

    def close(self) -> None:
        """Nothing to do: the arrays go with the run. Runs on a device hold memory that does not."""

    def _advance(self, positions: int) -> None:
        used = int(self.lengths.max())
        self.lengths += positions
        if used + positions > self._cache.capacity:
            half_more = self._cache.capacity + self._cache.capacity // 2
            self._cache.grow(used, max(used + positions, min(self._limit, half_more)))
            self._stepping = False

    def _bind_logits(self, buffer: NDArray[Any]) -> None:
        self._binding.bind_output("logits", "cpu", 0, self._logits_type, buffer.shape, buffer.ctypes.data)

    def _run(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            got = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise HostError(
                "the engine to run this step", got, "try fewer prompts or a smaller max_new_tokens"
            ) from error

    def _bind_mask(self, total: int) -> None:
        """Row i of the mask is ``lengths[i]`` ones, then zeros. One row is all ones: a longer prefix of the same
        buffer.
        """
        rows = self.rows
        if self._mask.size < rows * total:
            self._mask = np.ones(rows * self._cache.capacity, np.int64)
        if rows > 1:
            mask = self._mask[: rows * total].reshape(rows, total)
            np.less(self._columns[:total], self.lengths[:, None], out=mask, casting="unsafe")
        else:
            self._mask[:total] = 1  # a batch that shrank to one row left zeros behind
        self._binding.bind_input("attention_mask", "cpu", 0, np.int64, (rows, total), self._mask.ctypes.data)

    def _last_logits(self) -> FloatArray:
        return np.asarray(self._logits[:, 0], np.float32)


def _logits_spec(session: Any, vocab_size: int) -> tuple[int, np.dtype[Any]]:
    """Width and type of the graph's logits; the head may be wider than the tokenizer's vocabulary."""
    output = next((o for o in session.get_outputs() if o.name == "logits"), None)
    if output is None:
        raise BundleError("a decoder with an output named logits", "none", "export the bundle again")
    width = output.shape[-1] if isinstance(output.shape[-1], int) else vocab_size
    return width, np.dtype(np.float16 if output.type == "tensor(float16)" else np.float32)


def _keep_shape(session: Any) -> tuple[int, ...]:
    """Shape of ``logits_to_keep`` in this graph: a scalar, or one element."""
    for value in session.get_overridable_initializers():
        if value.name == "logits_to_keep":
            return tuple(value.shape)
    raise BundleError("a decoder that can score (logits_to_keep)", "none", "export the bundle with this planish")
