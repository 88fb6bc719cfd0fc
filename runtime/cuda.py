"""One CUDA device, thinly: memory, copies, a stream, graphs. Each error number becomes a HostError in CUDA's own words.

Called in this order, as :func:`open_cuda` does: the library, then a driver and a device, then its compute capability.
Only then may TensorRT's ``Runtime`` be made, which can end the process where one of them is missing.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_void_p
from typing import Any

from planish.errors import HostError
from planish.runtime.cudart import load_cudart
from planish.runtime.engine_info import BuiltOn

__all__ = ["Cuda", "CudaError", "DeviceMemoryError", "device_count", "device_facts", "open_cuda"]

MEMORY_ALLOCATION, INSUFFICIENT_DRIVER, STUB_LIBRARY, NO_DEVICE = 2, 35, 34, 100
MAJOR, MINOR = 75, 76  # cudaDevAttrComputeCapabilityMajor and Minor
DEFAULT_KIND = 4  # cudaMemcpyDefault: the direction follows from the addresses
NON_BLOCKING = 1  # a stream that does not wait for the legacy default stream
THREAD_LOCAL = 1  # other threads may allocate while this one captures
PROPERTIES = 1 << 14  # cudaDeviceProp is 1 to 2 KB and begins with the name, in every release so far


class CudaError(HostError):
    """A call that CUDA refused; ``code`` is its error number."""

    def __init__(self, expected: str, got: str, fix: str, code: int) -> None:
        super().__init__(expected, got, fix)
        self.code = code


class DeviceMemoryError(CudaError):
    """The GPU's memory (or the host's pinned memory) does not hold what was asked for."""


def device_count(library: Any) -> int:
    """How many devices the driver offers. Raises HostError when there is no driver, or none."""
    count = c_int(0)
    code = library.cudaGetDeviceCount(byref(count))
    if code in (INSUFFICIENT_DRIVER, STUB_LIBRARY):
        fix = "install NVIDIA's driver (`nvidia-smi` has to work), or pass device='cpu'"
        raise CudaError("an NVIDIA driver that fits this CUDA runtime", _words(library, code), fix, code)
    if code == NO_DEVICE or (code == 0 and count.value == 0):
        fix = "look with `nvidia-smi`; in a container pass --gpus all; or pass device='cpu'"
        raise CudaError("a CUDA device", _words(library, NO_DEVICE), fix, NO_DEVICE)
    if code:
        raise CudaError("a list of CUDA devices", _words(library, code), "look with `nvidia-smi`", code)
    return count.value


def open_cuda(device: int = 0, library: Any = None) -> Cuda:
    """A device, after the guards. Raises HostError naming the one that does not hold."""
    library = load_cudart() if library is None else library
    count = device_count(library)
    if device >= count:
        raise HostError(f"CUDA device {device}", f"only 0 to {count - 1}", "pass another number")
    return Cuda(library, device)


def device_facts(device: int = 0) -> BuiltOn:
    """Name, compute capability and the driver's CUDA version of a GPU. Raises HostError where there is none."""
    return open_cuda(device).facts


class Cuda:
    """A device of a loaded library. Make it with :func:`open_cuda`."""

    def __init__(self, library: Any, device: int) -> None:
        self.library = library
        self.device = device
        self.facts = BuiltOn(self._name(), self._capability(), self._driver())

    def activate(self) -> None:
        """Makes this the calling thread's device; CUDA keeps one a thread."""
        self._do("to be chosen", "cudaSetDevice", self.device)

    def allocate(self, nbytes: int) -> int:
        """The address of ``nbytes`` of device memory. Raises DeviceMemoryError."""
        address = c_void_p()
        code = self.library.cudaMalloc(byref(address), nbytes)
        if code == MEMORY_ALLOCATION:
            self.library.cudaGetLastError()
            free, total = self.memory()
            got = f"{free} of {total} free ({_words(self.library, code)})"
            fix = "use a smaller batch or shorter inputs, or close what else uses the GPU"
            raise DeviceMemoryError(f"{nbytes} bytes of GPU memory", got, fix, code)
        self._check(code, f"{nbytes} bytes of GPU memory")
        return int(address.value or 0)

    def free(self, address: int) -> None:
        self._do("to free memory", "cudaFree", address)

    def allocate_host(self, nbytes: int) -> int:
        """The address of ``nbytes`` of host memory that copies can reach directly. Raises DeviceMemoryError."""
        address = c_void_p()
        code = self.library.cudaHostAlloc(byref(address), nbytes, 0)
        if code == MEMORY_ALLOCATION:
            self.library.cudaGetLastError()
            fix = "use a smaller batch or shorter inputs"
            raise DeviceMemoryError(f"{nbytes} bytes of pinned memory", _words(self.library, code), fix, code)
        self._check(code, f"{nbytes} bytes of pinned memory")
        return int(address.value or 0)

    def free_host(self, address: int) -> None:
        self._do("to free pinned memory", "cudaFreeHost", address)

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the device."""
        free, total = c_size_t(), c_size_t()
        self._do("to tell its memory", "cudaMemGetInfo", byref(free), byref(total))
        return free.value, total.value

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Copies on the stream; both ends have to hold still until it is synchronized."""
        if nbytes:
            self._do(f"to copy {nbytes} bytes", "cudaMemcpyAsync", target, source, nbytes, DEFAULT_KIND, stream)

    def stream(self) -> int:
        return self._handle("a stream", self.library.cudaStreamCreateWithFlags, NON_BLOCKING)

    def destroy_stream(self, stream: int) -> None:
        self._do("to end a stream", "cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        """Waits for all work on the stream; what failed there is raised here."""
        self._do("to finish its work", "cudaStreamSynchronize", stream)

    def event(self) -> int:
        return self._handle("an event", self.library.cudaEventCreate)

    def record(self, event: int, stream: int) -> None:
        self._do("to record an event", "cudaEventRecord", event, stream)

    def milliseconds(self, start: int, stop: int) -> float:
        """Time between two recorded events, after waiting for the second."""
        elapsed = c_float()
        self._do("to reach an event", "cudaEventSynchronize", stop)
        self._do("to time events", "cudaEventElapsedTime", byref(elapsed), start, stop)
        return float(elapsed.value)

    def destroy_event(self, event: int) -> None:
        self._do("to end an event", "cudaEventDestroy", event)

    def begin_capture(self, stream: int) -> None:
        """From here on, work on the stream is recorded, not done."""
        self._do("to capture a graph", "cudaStreamBeginCapture", stream, THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """The recorded work as something :meth:`launch` repeats."""
        graph = self._handle("a captured graph", lambda handle: self.library.cudaStreamEndCapture(stream, handle))
        try:
            return self._handle("a graph that runs", self.library.cudaGraphInstantiateWithFlags, graph, 0)
        finally:
            self._do("to free a graph", "cudaGraphDestroy", graph)

    def abandon_capture(self, stream: int) -> None:
        """Ends a capture in which something failed, whatever CUDA says to it."""
        graph = c_void_p()
        if self.library.cudaStreamEndCapture(stream, byref(graph)) == 0 and graph.value:
            self.library.cudaGraphDestroy(graph.value)
        self.library.cudaGetLastError()

    def launch(self, graph: int, stream: int) -> None:
        self._do("to launch a graph", "cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._do("to free a graph", "cudaGraphExecDestroy", graph)

    def _do(self, what: str, function: str, *arguments: Any) -> None:
        self._check(getattr(self.library, function)(*arguments), f"the GPU {what}")

    def _handle(self, what: str, function: Any, *arguments: Any) -> int:
        handle = c_void_p()
        self._check(function(byref(handle), *arguments), what)
        return int(handle.value or 0)

    def _check(self, code: int, expected: str) -> None:
        if code:
            words = _words(self.library, code)
            self.library.cudaGetLastError()
            fix = "look at `nvidia-smi` and the kernel's log, then start the program again; or pass device='cpu'"
            raise CudaError(expected, words, fix, code)

    def _capability(self) -> str:
        parts = []
        for attribute in (MAJOR, MINOR):
            value = c_int()
            code = self.library.cudaDeviceGetAttribute(byref(value), attribute, self.device)
            self._check(code, "the GPU's compute capability")
            parts.append(value.value)
        return f"{parts[0]}.{parts[1]}"

    def _driver(self) -> str:
        version = c_int()
        self._do("to tell its driver's version", "cudaDriverGetVersion", byref(version))
        return f"{version.value // 1000}.{version.value % 1000 // 10}"

    def _name(self) -> str:
        properties = ctypes.create_string_buffer(PROPERTIES)
        self._do("to tell its name", "cudaGetDeviceProperties", properties, self.device)
        return c_char_p(properties.raw[:256]).value.decode("utf-8", "replace")  # type: ignore[union-attr]


def _words(library: Any, code: int) -> str:
    name, text = library.cudaGetErrorName(code), library.cudaGetErrorString(code)
    said = [part.decode("utf-8", "replace") for part in (name, text) if part]
    return f"{': '.join(said) or 'an unknown error'} ({code})"
