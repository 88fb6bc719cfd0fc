"""Where the CUDA runtime library is, and the few functions of it that are called, with their argument types.

Every function returns an error number. What is loaded here is only the library; whether there is a driver and a device
behind it, its functions tell (:mod:`planish.runtime.cuda`).
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Iterator
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from pathlib import Path
from typing import Any

from planish.errors import HostError

__all__ = ["load_cudart"]

VERSIONS = (13, 12)
_HANDLE = POINTER(c_void_p)

FUNCTIONS: dict[str, list[Any]] = {
    "cudaGetDeviceCount": [POINTER(c_int)],
    "cudaDeviceGetAttribute": [POINTER(c_int), c_int, c_int],
    "cudaGetDeviceProperties": [c_void_p, c_int],
    "cudaSetDevice": [c_int],
    "cudaDriverGetVersion": [POINTER(c_int)],
    "cudaRuntimeGetVersion": [POINTER(c_int)],
    "cudaMemGetInfo": [POINTER(c_size_t), POINTER(c_size_t)],
    "cudaMalloc": [_HANDLE, c_size_t],
    "cudaFree": [c_void_p],
    "cudaHostAlloc": [_HANDLE, c_size_t, c_uint],
    "cudaFreeHost": [c_void_p],
    "cudaMemcpyAsync": [c_void_p, c_void_p, c_size_t, c_int, c_void_p],
    "cudaStreamCreateWithFlags": [_HANDLE, c_uint],
    "cudaStreamDestroy": [c_void_p],
    "cudaStreamSynchronize": [c_void_p],
    "cudaEventCreate": [_HANDLE],
    "cudaEventDestroy": [c_void_p],
    "cudaEventRecord": [c_void_p, c_void_p],
    "cudaEventSynchronize": [c_void_p],
    "cudaEventElapsedTime": [POINTER(c_float), c_void_p, c_void_p],
    "cudaStreamBeginCapture": [c_void_p, c_int],
    "cudaStreamEndCapture": [c_void_p, _HANDLE],
    "cudaGraphInstantiateWithFlags": [_HANDLE, c_void_p, c_ulonglong],  # one signature from CUDA 11.4 to 13
    "cudaGraphLaunch": [c_void_p, c_void_p],
    "cudaGraphExecDestroy": [c_void_p],
    "cudaGraphDestroy": [c_void_p],
    "cudaGetLastError": [],
}


def load_cudart() -> Any:
    """The CUDA runtime library, its functions typed: the first of those found that this host's driver can serve.

    A driver serves runtimes of its own major version and of older ones. Raises HostError when there is no library.
    """
    found, tried = [], []
    for name in (*_system_names(), *_package_files()):
        try:
            library = _typed(ctypes.CDLL(name))
        except (OSError, AttributeError) as error:
            tried.append(str(error).splitlines()[0][:300])
            continue
        if _suits(library):
            return library
        found.append(library)
    if found:  # none suits: the first says so in its own words
        return found[0]
    fix = "install CUDA 12 or 13, or pip install nvidia-cuda-runtime-cu12; or pass device='cpu'"
    raise HostError("the CUDA runtime library (libcudart)", tried[0] if tried else "none", fix)


def _suits(library: Any) -> bool:
    runtime, driver = c_int(), c_int()
    codes = (library.cudaRuntimeGetVersion(byref(runtime)), library.cudaDriverGetVersion(byref(driver)))
    return codes == (0, 0) and runtime.value // 1000 <= driver.value // 1000


def _typed(library: ctypes.CDLL) -> ctypes.CDLL:
    for name, arguments in FUNCTIONS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, c_int
    library.cudaGetErrorString.argtypes, library.cudaGetErrorString.restype = [c_int], c_char_p
    library.cudaGetErrorName.argtypes, library.cudaGetErrorName.restype = [c_int], c_char_p
    return library


def _system_names() -> Iterator[str]:
    for version in VERSIONS:
        yield f"cudart64_{version}.dll" if sys.platform == "win32" else f"libcudart.so.{version}"


def _package_files() -> Iterator[str]:
    """Libraries in the folders of NVIDIA's packages: ``nvidia/cuda_runtime/lib`` (CUDA 12), ``nvidia/cu13/lib``."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        for pattern in ("*/lib/libcudart.so.*", "*/bin/cudart64_*.dll", "*/bin/*/cudart64_*.dll"):
            yield from sorted(map(str, Path(folder).glob(pattern)), reverse=True)
