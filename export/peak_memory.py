"""The peak of this process's resident memory during a stretch of work."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

__all__ = ["read_peak", "reset_peak"]


def reset_peak() -> None:
    """Forgets this process's peak of resident memory (Linux; elsewhere the peak is since its start)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def read_peak() -> int | None:
    """This process's peak of resident memory, in bytes; None where it cannot be read."""
    with contextlib.suppress(OSError):
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    return None
