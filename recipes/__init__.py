"""Shipped recipes: one YAML a recipe, and the built-in texts they calibrate and are judged on.

>>> "int8" in names()
True
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["names", "path", "text"]

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def path(name: str) -> Path:
    """Where the shipped recipe ``name`` lies; the file need not exist."""
    return _FOLDER / f"{name}.yaml"


def text(kind: str) -> str:
    """Built-in text of Moby Dick: ``calibrate`` (the last chapters) or ``judge`` (the first; never calibrate on it)."""
    return (_FOLDER / f"text-{kind}.txt").read_text(encoding="utf-8")
