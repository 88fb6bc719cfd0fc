"""Kernel timings of full TensorRT, kept from build to build: the second engine for a device takes far less time.

The file lies in the user's cache folder, one for each module version and GPU, since timings of another are worthless.
TensorRT-RTX chooses kernels when an engine is loaded, and has no use for one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from planish.errors import HostError
from planish.export.tensorrt_api import IBuilderConfig
from planish.export.tensorrt_module import Chosen
from planish.runtime.files import replace_file

__all__ = ["TimingCache", "cache_folder", "timing_cache_for"]


def cache_folder() -> Path:
    """``planish`` in ``XDG_CACHE_HOME``, by default ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "planish"


def timing_cache_for(chosen: Chosen) -> TimingCache | None:
    """The timing cache of full TensorRT on its device; None for ``tensorrt_rtx``."""
    if chosen.name != "tensorrt" or chosen.device is None:
        return None
    gpu = re.sub(r"[^A-Za-z0-9]+", "-", chosen.device.name).strip("-")
    return TimingCache(cache_folder() / "timing" / f"{chosen.name}-{chosen.version}-{gpu}-sm{chosen.target}.cache")


@dataclass(frozen=True)
class TimingCache:
    """A file that may be missing, stale or unreadable: a build then measures again, and says nothing."""

    path: Path

    def load_into(self, config: IBuilderConfig) -> None:
        """Gives the builder what was measured before; an empty cache if there is nothing, or nothing that fits."""
        data = b""
        with contextlib.suppress(OSError):
            data = self.path.read_bytes()
        cache = config.create_timing_cache(data)
        if cache is None or not config.set_timing_cache(cache, False):
            empty = config.create_timing_cache(b"")
            if empty is not None:
                config.set_timing_cache(empty, False)

    def save_from(self, config: IBuilderConfig) -> str:
        """Writes what is known now, whole or not at all; the sha256 of it, which pins what the plan was made with.

        A cache that cannot be written costs time later and nothing now.
        """
        data = bytes(config.get_timing_cache().serialize())
        with contextlib.suppress(OSError, HostError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.path, data)
        return hashlib.sha256(data).hexdigest()
