"""Trained checkpoint in, quantized checkpoint out. This half needs torch; the names load it when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planish.compress.checkpoint import Checkpoint, open_checkpoint
    from planish.compress.driver import CompressResult, compress
    from planish.compress.loader import load, read_layers
    from planish.compress.recipe import Recipe, load_recipe

__all__ = [
    "Checkpoint",
    "CompressResult",
    "Recipe",
    "compress",
    "load",
    "load_recipe",
    "open_checkpoint",
    "read_layers",
]

_HOMES = {
    "Checkpoint": "checkpoint",
    "CompressResult": "driver",
    "Recipe": "recipe",
    "compress": "driver",
    "load": "loader",
    "load_recipe": "recipe",
    "open_checkpoint": "checkpoint",
    "read_layers": "loader",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
