"""What a bundle's graphs and weights take on disk."""

from __future__ import annotations

from pathlib import Path

__all__ = ["onnx_bytes"]


def onnx_bytes(bundle: Path) -> int:
    """Bytes of all files below ``bundle/onnx``: graphs and their external data, for every engine."""
    return sum(path.stat().st_size for path in (bundle / "onnx").rglob("*") if path.is_file())
