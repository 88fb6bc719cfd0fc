"""The CUDA runtime library as a Python object, at the border where `planish.runtime.cuda` calls it through ctypes.

Device memory is host memory. Streams are queues: copies, executions and graph launches happen when a stream is
synchronized (or memory is freed), so a result that is read too early is garbage here as on a device. Every address is
checked against what is allocated; `live` counts what has not been given back.
"""

from __future__ import annotations

import ctypes
import itertools
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

__all__ = ["FakeCudart"]

NOT_READY = 600
MEMORY, INVALID, NO_DEVICE, NO_DRIVER, ILLEGAL_ADDRESS, NOT_CAPTURABLE = 2, 1, 100, 35, 700, 900
NAMES = {
    NOT_READY: ("cudaErrorNotReady", "device not ready"),
    INVALID: ("cudaErrorInvalidValue", "invalid argument"),
    MEMORY: ("cudaErrorMemoryAllocation", "out of memory"),
    NO_DRIVER: ("cudaErrorInsufficientDriver", "CUDA driver version is insufficient for CUDA runtime version"),
    NO_DEVICE: ("cudaErrorNoDevice", "no CUDA-capable device is detected"),
    ILLEGAL_ADDRESS: ("cudaErrorIllegalAddress", "an illegal memory access was encountered"),
    NOT_CAPTURABLE: ("cudaErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"),
}
POISON = 0xA5  # what fresh memory holds
ALIGNMENT = 256


class FakeCudart:
    """One device. Set the attributes to make another machine of it; `fail` makes a call fail."""

    def __init__(self, *, sm: str = "8.9", driver: int = 13000, name: str = "Fake 4090", total: int = 1 << 30) -> None:
        self.sm, self.driver, self.name, self.total = sm, driver, name, total
        self.devices, self.count_code = 1, 0
        self.calls: Counter[str] = Counter()
        self.blocks: dict[int, tuple[Any, int, str]] = {}  # address: (memory, bytes, kind)
        self.streams: dict[int, list[Callable[[], None]]] = {}
        self.recording: dict[int, list[Callable[[], None]]] = {}
        self.graphs: dict[int, tuple[list[Callable[[], None]], str]] = {}
        self.events: dict[int, float | None] = {}  # when the stream came to it, seconds
        self.pending_error = 0
        self.plain_from = 32 << 20
        self._failures: dict[str, tuple[int, int]] = {}
        self._handles = itertools.count(0x1000, 0x10)

    def fail(self, function: str, code: int, after: int = 0) -> None:
        """The call of `function` after the next `after` ones returns `code`, once."""
        self._failures[function] = (self.calls[function] + after, code)

    @property
    def live(self) -> Counter[str]:
        """Everything allocated and not freed, by kind."""
        kinds = Counter(kind for _, _, kind in self.blocks.values())
        kinds.update(kind for _, kind in self.graphs.values())
        return +(kinds + Counter(stream=len(self.streams), event=len(self.events)))

    @property
    def used(self) -> int:
        return sum(size for _, size, kind in self.blocks.values() if kind == "device")

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if not name.startswith("cuda") or name in ("cudaGetErrorName", "cudaGetErrorString"):
            return found

        def call(*arguments: Any) -> int:
            at = self.calls[name]
            self.calls[name] += 1
            planned = self._failures.get(name)
            if planned is not None and planned[0] == at:
                return planned[1]
            return int(found(*arguments) or 0)

        return call

    def enqueue(self, stream: int, work: Callable[[], None]) -> int:
        """Work of a stream: recorded while it is captured, else done when it is synchronized."""
        if stream not in self.streams:
            return INVALID
        self.recording.get(stream, self.streams[stream]).append(work)
        return 0

    def within(self, address: int, nbytes: int) -> bool:
        """Whether memory lies in one block that is allocated."""
        return any(start <= address and address + nbytes <= start + size for start, (_, size, _) in self.blocks.items())

    def cudaGetDeviceCount(self, count: Any) -> int:
        count._obj.value = self.devices
        return self.count_code

    def cudaDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> int:
        value._obj.value = int(self.sm.split(".")[{75: 0, 76: 1}[attribute]])
        return 0 if device < self.devices else INVALID

    def cudaGetDeviceProperties(self, properties: Any, device: int) -> None:
        ctypes.memmove(properties, self.name.encode() + b"\0", len(self.name) + 1)

    def cudaDriverGetVersion(self, version: Any) -> None:
        version._obj.value = self.driver

    def cudaSetDevice(self, device: int) -> int:
        return 0 if device < self.devices else INVALID

    def cudaMemGetInfo(self, free: Any, total: Any) -> None:
        free._obj.value, total._obj.value = self.total - self.used, self.total

    def cudaMalloc(self, address: Any, nbytes: int) -> int:
        if self.used + nbytes > self.total:
            return MEMORY
        return self._allocate(address, nbytes, "device")

    def cudaHostAlloc(self, address: Any, nbytes: int, flags: int) -> int:
        return self._allocate(address, nbytes, "pinned")

    def _allocate(self, address: Any, nbytes: int, kind: str) -> int:
        if nbytes < 1:
            return INVALID
        memory = ctypes.create_string_buffer(bytes([POISON]) * (nbytes + ALIGNMENT), nbytes + ALIGNMENT + 1)
        start = -(-ctypes.addressof(memory) // ALIGNMENT) * ALIGNMENT
        address._obj.value = start
        self.blocks[start] = (memory, nbytes, kind)
        return 0

    def cudaFree(self, address: int) -> int:
        return self._free(address, "device")

    def cudaFreeHost(self, address: int) -> int:
        return self._free(address, "pinned")

    def _free(self, address: int, kind: str) -> int:
        for stream in self.streams:  # as on a device, freeing waits
            self._drain(stream)
        if address not in self.blocks or self.blocks[address][2] != kind:
            return INVALID
        del self.blocks[address]
        return 0

    def cudaMemcpyAsync(self, target: int, source: int, nbytes: int, kind: int, stream: int) -> int:
        plain = nbytes >= self.plain_from  # so large a copy may come out in memory CUDA does not know
        if not (self.within(target, nbytes) or plain) or not self.within(source, nbytes):
            return INVALID
        return self.enqueue(stream, lambda: ctypes.memmove(target, source, nbytes) and None)

    def cudaStreamCreateWithFlags(self, stream: Any, flags: int) -> None:
        stream._obj.value = next(self._handles)
        self.streams[stream._obj.value] = []

    def cudaStreamDestroy(self, stream: int) -> int:
        return 0 if self.streams.pop(stream, None) is not None else INVALID

    def cudaStreamSynchronize(self, stream: int) -> int:
        if stream in self.recording:
            return NOT_CAPTURABLE
        self._drain(stream)
        code, self.pending_error = self.pending_error, 0
        return code if stream in self.streams else INVALID

    def _drain(self, stream: int) -> None:
        queue = self.streams.get(stream, [])
        while queue:
            queue.pop(0)()

    def cudaEventCreate(self, event: Any) -> None:
        event._obj.value = next(self._handles)
        self.events[event._obj.value] = None

    def cudaEventDestroy(self, event: int) -> int:
        self.events.pop(event, None)
        return 0

    def cudaEventRecord(self, event: int, stream: int) -> int:
        if event not in self.events or stream not in self.streams:
            return INVALID
        self.streams[stream].append(lambda: self.events.update({event: time.perf_counter()}))
        return 0

    def cudaEventSynchronize(self, event: int) -> int:
        return 0 if event in self.events else INVALID

    def cudaEventElapsedTime(self, elapsed: Any, start: int, stop: int) -> int:
        begun, ended = self.events[start], self.events[stop]
        if begun is None or ended is None:
            return NOT_READY
        elapsed._obj.value = 1000 * (ended - begun)
        return 0

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> int:
        if stream not in self.streams or stream in self.recording:
            return INVALID
        self.recording[stream] = []
        return 0

    def cudaStreamEndCapture(self, stream: int, graph: Any) -> int:
        if stream not in self.recording:
            return INVALID
        graph._obj.value = next(self._handles)
        self.graphs[graph._obj.value] = (self.recording.pop(stream), "graph")
        return 0

    def cudaGraphInstantiateWithFlags(self, executable: Any, graph: int, flags: int) -> int:
        executable._obj.value = next(self._handles)
        self.graphs[executable._obj.value] = (self.graphs[graph][0], "executable graph")
        return 0

    def cudaGraphDestroy(self, graph: int) -> int:
        return 0 if self.graphs.pop(graph, None) is not None else INVALID

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaGraphLaunch(self, graph: int, stream: int) -> int:
        if graph not in self.graphs or self.graphs[graph][1] != "executable graph":
            return INVALID
        for work in self.graphs[graph][0]:
            self.enqueue(stream, work)
        return 0

    def cudaGetLastError(self) -> int:
        return 0

    def cudaGetErrorName(self, code: int) -> bytes:
        return NAMES.get(code, ("cudaErrorUnknown", ""))[0].encode()

    def cudaGetErrorString(self, code: int) -> bytes:
        return NAMES.get(code, ("", "unknown error"))[1].encode()
