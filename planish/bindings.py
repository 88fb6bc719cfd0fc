"""Python bindings that a device may have, of what its maker ships (NVML, jtop): optional, and sometimes broken."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

__all__ = ["decoded", "import_quietly"]


def import_quietly(name: str) -> Any | None:
    """A module if it is there and loads; the deprecated package ``pynvml`` warns on import, which is nobody's news."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except Exception:  # a broken installation is as good as none
            return None


def decoded(value: str | bytes) -> str:
    """What a library of C answers; older bindings answer bytes.

    >>> decoded(b"NVIDIA H200"), decoded("NVIDIA H200")
    ('NVIDIA H200', 'NVIDIA H200')
    """
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value
