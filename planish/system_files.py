"""Small files of ``/proc``, ``/sys``, ``/etc`` and ``/var``, from any root directory: what a host and its board say."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["nvpmodel_mode", "read_text"]

LARGEST = 1 << 22  # bytes; cpuinfo of hundreds of cores is below


def read_text(path: Path) -> str | None:
    """A small file's text, None where it is missing, empty or may not be read. NULs end device-tree strings."""
    try:
        with path.open("rb") as stream:
            return stream.read(LARGEST).decode("utf-8", errors="replace").replace("\0", " ").strip() or None
    except OSError:
        return None


def nvpmodel_mode(root: Path) -> str | None:
    """The name of a Jetson's power mode ("MAXN", "15W"), of which nvpmodel keeps the number and the names apart."""
    status = re.search(r"pmode:(\d{1,9})", read_text(root / "var/lib/nvpmodel/status") or "")
    modes = re.findall(r"<\s*POWER_MODEL ID=(\d{1,9}) NAME=(\S+?)\s*>", read_text(root / "etc/nvpmodel.conf") or "")
    return {int(number): name for number, name in modes}.get(int(status[1])) if status else None
