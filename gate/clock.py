"""Clocks, and where the measuring happens: what a time means depends on both."""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

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


def environment() -> dict[str, Any]:
    """What a latency figure depends on, as far as it can be read here; None where it cannot."""
    return {
        "cpu": cpu_model(),
        "cpus_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.platform(),
        "governor": read_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "frequency_khz": read_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"),
        "load": load_average(),
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "onnxruntime": onnxruntime_version(),
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


def read_line(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").strip() or None
    except OSError:
        return None


def load_average() -> float | None:
    """Runnable tasks, averaged over a minute."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def onnxruntime_version() -> str | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    return str(onnxruntime.__version__)
