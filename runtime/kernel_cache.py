"""TensorRT-RTX compiles kernels when an engine first runs; a cache file spares the next start that time.

Only on request (``load(..., runtime_cache=folder)``), since the file holds code that is executed: keep the folder as
safe as the program. A file is named after plan, device and driver, and TensorRT-RTX checks it again.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from planish.errors import BundleError, HostError, RequestError
from planish.runtime.engine_info import BuiltOn
from planish.runtime.files import read_limited, replace_file

__all__ = ["KernelCache"]

MAX_BYTES = 1 << 30


class KernelCache:
    """One plan's file. Raises RequestError when ``folder`` is no folder."""

    def __init__(self, folder: str | os.PathLike[str], plan_sha256: str, facts: BuiltOn) -> None:
        root = Path(folder)
        if not root.is_dir():
            raise RequestError("a folder for runtime_cache", f"{root}", "make it first")
        self.path = root / f"{plan_sha256[:16]}-sm{facts.sm}-driver{facts.driver}.rtxcache"
        self._cache: Any = None

    def attach(self, config: Any) -> None:
        """Gives a runtime configuration the cache, with what earlier runs left; every context shares one."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            if self.path.is_file():
                # A damaged or outdated file is no reason to fail: TensorRT-RTX refuses it and compiles anew.
                with contextlib.suppress(BundleError, RuntimeError):
                    self._cache.deserialize(read_limited(self.path, MAX_BYTES))
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Writes what was compiled, atomically. A full disk loses the cache, not the answer."""
        if self._cache is None:
            return
        with contextlib.suppress(HostError, OSError, RuntimeError):
            data = self._cache.serialize()
            if data is not None:
                replace_file(self.path, bytes(data), self.path.parent)
