"""Clocks, and where the measuring happens: what a time means depends on both."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

from planish.gate.conditions import Conditions, read_conditions
from planish.runtime.device_time import device_time
from planish.runtime.placement import CPU

if TYPE_CHECKING:
    from planish.runtime.model import Model

__all__ = ["Clock", "Judged", "KeptClock", "ProcessClock", "Timing", "environment", "judged_on", "look", "since"]


class Timing(NamedTuple):
    """Seconds for one unit of work: processor time of all threads of the process, the wall clock, and what TensorRT
    engines computed by the device's clock (0 where there are none).
    """

    cpu: float
    wall: float
    device: float = 0.0

    def scaled(self, factor: float) -> Timing:
        """So many times as long on every clock."""
        return Timing(*(factor * seconds for seconds in self))


class Clock(Protocol):
    """Monotonic counters in seconds; tests inject one that work advances."""

    def cpu(self) -> float: ...

    def wall(self) -> float: ...

    def device(self) -> float: ...


class ProcessClock:
    """CPU time of the whole process (every engine thread), the monotonic wall clock, and the device's."""

    def cpu(self) -> float:
        return time.process_time()

    def wall(self) -> float:
        return time.perf_counter()

    def device(self) -> float:
        return device_time()


Judged = Literal["cpu", "wall", "device"]
KeptClock = Literal["cpu", "wall"]
"""What a baseline file keeps times of."""


def judged_on(models: Sequence[Model]) -> Judged:
    """The clock that speaks for engines: CPU time if all run on the CPU, the device's if all are TensorRT engines."""
    devices = [model.device for model in models]
    if all(device == CPU for device in devices):
        return "cpu"
    return "device" if all(device.startswith("tensorrt") for device in devices) else "wall"


def look(clock: Clock) -> Timing:
    """All three counters now."""
    return Timing(clock.cpu(), clock.wall(), clock.device())


def since(clock: Clock, start: Timing, units: int = 1) -> Timing:
    """Seconds on each clock for one of so many units of work."""
    return Timing(*((now - then) / units for now, then in zip(look(clock), start, strict=True)))


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
