"""From a checkpoint to a verified bundle: trace or emit the graph, spell it in a dialect, compare it with torch, write.

Names are loaded when first used: importing the package loads neither torch nor onnx.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planish.export.build_bundle import BuildResult, build
    from planish.export.driver import ExportResult, export
    from planish.export.graph import Built, TensorSpec
    from planish.export.reader import CheckpointReader

__all__ = ["BuildResult", "Built", "CheckpointReader", "ExportResult", "TensorSpec", "build", "export"]

_HOMES = {
    "BuildResult": "build_bundle",
    "Built": "graph",
    "CheckpointReader": "reader",
    "ExportResult": "driver",
    "TensorSpec": "graph",
    "build": "build_bundle",
    "export": "driver",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
