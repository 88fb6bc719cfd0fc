"""Buffers that only grow, on the device and beside it; one owner frees them all."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planish.runtime.cuda import Cuda

__all__ = ["Pool", "array_at"]

_STEP = 256  # bytes; TensorRT wants buffers aligned so, and an empty tensor needs an address, too


def array_at(address: int, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Host memory at ``address`` as an array; whoever owns the memory has to keep it."""
    count = math.prod(shape)
    if count == 0:
        return np.empty(tuple(shape), dtype)
    memory = memoryview((ctypes.c_char * (count * dtype.itemsize)).from_address(address)).cast("B")
    array: NDArray[Any] = np.frombuffer(memory, dtype, count)
    return array.reshape(tuple(shape))


class Pool:
    """Named buffers of device memory, or of pinned host memory. Not for several threads.

    A buffer that is too small is freed before its successor is asked for, so growing costs no second copy; what it held
    is gone. ``moves`` counts how often any address changed.
    """

    def __init__(self, cuda: Cuda, *, pinned: bool = False) -> None:
        self._allocate: Callable[[int], int] = cuda.allocate_host if pinned else cuda.allocate
        self._free: Callable[[int], None] = cuda.free_host if pinned else cuda.free
        self._buffers: dict[str, tuple[int, int]] = {}
        self.moves = 0

    @property
    def nbytes(self) -> int:
        return sum(size for _, size in self._buffers.values())

    def address(self, name: str, nbytes: int) -> int:
        """The address of a buffer of at least ``nbytes``. Raises DeviceMemoryError; other buffers stay as they are."""
        held = self._buffers.get(name)
        if held is not None and held[1] >= nbytes:
            return held[0]
        if held is not None:
            del self._buffers[name]
            self._free(held[0])
        size = max(1, -(-nbytes // _STEP)) * _STEP
        address = self._allocate(size)
        self._buffers[name] = (address, size)
        self.moves += 1
        return address

    def close(self) -> None:
        """Frees everything; an error of one buffer does not keep the others."""
        errors = []
        while self._buffers:
            _, (address, _) = self._buffers.popitem()
            try:
                self._free(address)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]
