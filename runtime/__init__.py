"""The half that runs on the device: numpy, one engine, and the tokenizer; no torch.

Reading and verifying bundles lies here too, since the runtime refuses what it cannot trust. Names are loaded when
first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planish.runtime.answer import Answer
    from planish.runtime.classify import Classification
    from planish.runtime.fill import Filled
    from planish.runtime.integrity import verify
    from planish.runtime.loader import load
    from planish.runtime.manifest import Manifest, read_manifest, update_manifest, write_manifest
    from planish.runtime.model import Model
    from planish.runtime.tag import Entity

__all__ = [
    "Answer",
    "Classification",
    "Entity",
    "Filled",
    "Manifest",
    "Model",
    "load",
    "read_manifest",
    "update_manifest",
    "verify",
    "write_manifest",
]

_HOMES = {
    "Answer": "answer",
    "Classification": "classify",
    "Entity": "tag",
    "Filled": "fill",
    "Manifest": "manifest",
    "Model": "model",
    "load": "loader",
    "read_manifest": "manifest",
    "update_manifest": "manifest",
    "verify": "integrity",
    "write_manifest": "manifest",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # No module here may be called like a public name: importing it would hide the function.
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
