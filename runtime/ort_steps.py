"""Passes of a ``qdq`` decoder in ONNX Runtime, its cache in host memory bound by address."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planish.errors import BundleError, HostError

__all__ = ["HostMemory", "OrtSteps"]

_PASS = 512  # rows times positions of one pass; its memory grows with them


class HostMemory:
    """Blocks of host memory. Fresh ones are zero pages that cost nothing until written."""

    def __init__(self) -> None:
        self._held: dict[int, NDArray[Any]] = {}

    def allocate(self, nbytes: int) -> int:
        try:
            block = np.zeros(nbytes + 1, np.uint8)
        except MemoryError as error:
            fix = "pass fewer prompts or a smaller max_new_tokens"
            raise HostError("room for the key/value cache", f"no memory for {nbytes} bytes", fix) from error
        self._held[block.ctypes.data] = block
        return int(block.ctypes.data)

    def free(self, address: int) -> None:
        self._held.pop(address, None)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        ctypes.memmove(target, source, nbytes)


class OrtSteps:
    """One session; each pass has its own bindings, so threads may share it."""

    max_rows: int | None = None

    def __init__(self, session: Any) -> None:
        self.memory = HostMemory()
        self._session = session
        types = {value.name: value.type for value in session.get_inputs()}
        found = re.fullmatch(r"tensor\((float16|float)\)", types.get("past_key_values.0.key", ""))
        if found is None:
            got = types.get("past_key_values.0.key", "no input of that name")
            raise BundleError("past_key_values.0.key of float16 or float32", got, "export the bundle again")
        self.cache_dtype = "float16" if found[1] == "float16" else "float32"

    def take(self, rows: int, past: int, wanted: int, *, every: bool) -> int:
        return min(wanted, max(1, _PASS // rows))

    def __call__(
        self,
        inputs: Mapping[str, NDArray[Any]],
        shape: tuple[int, ...],
        past: Mapping[str, int],
        present: Mapping[str, int],
    ) -> NDArray[Any]:
        binding = self._session.io_binding()
        kind = np.dtype(self.cache_dtype).type
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        binding.bind_output("logits", "cpu")
        for name, address in past.items():
            binding.bind_input(name, "cpu", 0, kind, shape, address)
        rows, heads, used, width = shape
        total = (rows, heads, used + inputs["input_ids"].shape[1], width)
        for name, address in present.items():
            binding.bind_output(name, "cpu", 0, kind, total, address)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            got = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            fix = "try fewer prompts or a smaller max_new_tokens"
            raise HostError("the engine to run this step", got, fix) from error
        return np.asarray(binding.get_outputs()[0].numpy())
