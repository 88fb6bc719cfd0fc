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
    from planish.runtime.cuda import device_facts
    from planish.runtime.engine_info import (
        BuiltOn,
        EngineInfo,
        Range,
        ShapeProfile,
        engine_id,
        read_engine_info,
        write_engine_info,
    )
    from planish.runtime.engines import add_engine, remove_engine
    from planish.runtime.fill import Filled
    from planish.runtime.golden import golden_drift
    from planish.runtime.integrity import verify
    from planish.runtime.loader import load
    from planish.runtime.manifest import Manifest, read_manifest, update_manifest, write_manifest
    from planish.runtime.model import Model
    from planish.runtime.plugins import installed_plugins
    from planish.runtime.prove import prove_engine, try_engine
    from planish.runtime.tag import Entity

__all__ = [
    "Answer",
    "BuiltOn",
    "Classification",
    "EngineInfo",
    "Entity",
    "Filled",
    "Manifest",
    "Model",
    "Range",
    "ShapeProfile",
    "add_engine",
    "device_facts",
    "engine_id",
    "golden_drift",
    "installed_plugins",
    "load",
    "prove_engine",
    "read_engine_info",
    "read_manifest",
    "remove_engine",
    "try_engine",
    "update_manifest",
    "verify",
    "write_engine_info",
    "write_manifest",
]

_HOMES = {
    "Answer": "answer",
    "BuiltOn": "engine_info",
    "Classification": "classify",
    "EngineInfo": "engine_info",
    "Entity": "tag",
    "Filled": "fill",
    "Manifest": "manifest",
    "Model": "model",
    "Range": "engine_info",
    "ShapeProfile": "engine_info",
    "add_engine": "engines",
    "device_facts": "cuda",
    "engine_id": "engine_info",
    "golden_drift": "golden",
    "installed_plugins": "plugins",
    "load": "loader",
    "prove_engine": "prove",
    "try_engine": "prove",
    "read_engine_info": "engine_info",
    "read_manifest": "manifest",
    "remove_engine": "engines",
    "update_manifest": "manifest",
    "verify": "integrity",
    "write_engine_info": "engine_info",
    "write_manifest": "manifest",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # No module here may be called like a public name: importing it would hide the function.
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
