"""What a device is: profiles as data, and a look at the host.

>>> from planish import profiles
>>> profiles.load("jetson-orin-nano-8gb").gpu.sm
'8.7'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .detection import Detection, detect
    from .journey import Journey, journeys
    from .loading import load, names
    from .schema import Profile

__all__ = ["Detection", "Journey", "Profile", "detect", "journeys", "load", "names"]

_HOMES = {
    "Detection": "detection",
    "detect": "detection",
    "Journey": "journey",
    "journeys": "journey",
    "load": "loading",
    "names": "loading",
    "Profile": "schema",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: who only reads ``host`` or ``schema`` pays for no YAML parser."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
