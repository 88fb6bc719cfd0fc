"""Clocks, and where the measuring happens: what a time means depends on both."""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from planish.gate.conditions import Conditions, read_conditions

__all__ = ["Clock", "ProcessClock", "Timing", "environment"]


class Timing(NamedTuple):
    """Seconds for one unit of work: processor time of all threads of the process, and the wall clock."""

    cpu: float
    wall: float


class Clock(Protocol):
    """Two monotonic counters in seconds; tests inject one that work advances."""

    def cpu(self) -> float: ...

    def wall(self) -> float: ...


class ProcessClock:
    """CPU time of the whole process (every engine thread), and the monotonic wall clock."""

    def cpu(self) -> float:
        return time.process_time()

    def wall(self) -> float:
        return time.perf_counter()


def environment(conditions: Conditions | None = None) -> dict[str, Any]:
    """What a latency figure depends on, as far as it can be read here; None where it cannot.

    ``conditions`` are those of a look that was taken; None looks now.
    """
    now = conditions or read_conditions()
    return {
        "cpu": cpu_model(),
        "cpus_usable": now.cpus,
        "machine": platform.machine(),
        "system": platform.platform(),
        "governor": " and ".join(now.governors) or None,
        "load": now.load,
        "power_mode": now.power_mode,
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "onnxruntime": onnxruntime_version(),
        "conditions": now.to_json(),
    }


def cpu_model() -> str | None:
    """The processor's name; on ARM the parts' numbers, which is what the kernel gives."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    names = {key.strip(): value.strip() for key, value in fields.items()}
    part = f"CPU implementer {names.get('CPU implementer')} part {names.get('CPU part')}"
    return names.get("model name") or names.get("Model") or (part if "CPU part" in names else None)


def onnxruntime_version() -> str | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    return str(onnxruntime.__version__)
