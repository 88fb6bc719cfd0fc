"""The conditions of the machine around a measurement: clocks, heat, throttling, load, power mode.

Every reader answers None where a thing cannot be read, and never raises. ``root`` reads the files of another machine
from a copy of its ``/proc`` and ``/sys``; commands and libraries, which speak of this one, are asked only at ``/``.
`planish.gate.drift` judges a change, `planish.gate.conditions_told` puts it into words.

Sources: the kernel's documentation of cpufreq, thermal sysfs, pressure stall information, ``proc/stat`` and
``thermal_throttle``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from planish.bindings import import_quietly
from planish.gate.gpu_state import GpuState, read_gpu
from planish.system_files import nvpmodel_mode, read_text

__all__ = ["Conditions", "power_mode", "read_conditions"]

HERE = Path("/")
COMMAND_SECONDS = 5
HOT_TRIPS = ("passive", "hot", "critical")  # "active" is where a fan starts


@dataclass(frozen=True)
class Conditions:
    """One look at the machine; every figure is None, or empty, where it cannot be read.

    Attributes:
        at: seconds of the monotonic clock.
        fastest_khz, slowest_khz: current frequencies among the usable cores.
        governors: of the usable cores, each once.
        temperature_c: of the hottest thermal zone; ``headroom_c``: from a zone to its trip point, the smallest.
        throttle_ms, throttle_events: for each core and package, how long and how often heat has held it down.
        load: runnable tasks, averaged over a minute.
        waited_us: how long some task has waited for a processor (PSI); ``quota_us``: ... for the container's quota.
        stolen, ticks: of the processors' time, what the hypervisor gave to others, and all of it.
        power_mode: see :func:`power_mode`.
        gpu: the card that is measured.
    """

    at: float
    cpus: int
    fastest_khz: int | None = None
    slowest_khz: int | None = None
    governors: tuple[str, ...] = ()
    temperature_c: float | None = None
    headroom_c: float | None = None
    throttle_ms: Mapping[str, int] = field(default_factory=dict)
    throttle_events: Mapping[str, int] = field(default_factory=dict)
    load: float | None = None
    waited_us: int | None = None
    quota_us: int | None = None
    stolen: int | None = None
    ticks: int | None = None
    power_mode: str | None = None
    gpu: GpuState | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object; of the throttle counters the sums."""
        counters = {"throttle_ms": self.throttle_ms, "throttle_events": self.throttle_events}
        sums = {name: sum(values.values()) if values else None for name, values in counters.items()}
        gpu = self.gpu.to_json() if self.gpu else None
        return {**asdict(self), **sums, "governors": list(self.governors), "gpu": gpu}


def read_conditions(
    root: Path = HERE, *, gpu: int | None = 0, mode: bool = True, nvml: Any | None = None, jtop: Any | None = None
) -> Conditions:
    """Look once. Cheap (some files a core) without ``mode``, which may start a command.

    Args:
        gpu: CUDA's number of the card to ask for, None for no card. At another root only if ``nvml`` is given.
        nvml, jtop: stand in for the libraries.
    """
    cores = usable_cores(root)
    speeds = [speed for core in cores if (speed := number_of(core / "cpufreq/scaling_cur_freq"))]
    zones = [zone for path in sorted(root.glob("sys/class/thermal/thermal_zone*")) if (zone := read_zone(path))]
    stolen, ticks = processor_time(root)
    asked = gpu is not None and (root == HERE or nvml is not None)
    return Conditions(
        at=time.monotonic(),
        cpus=len(cores) or (os.cpu_count() or 1),
        fastest_khz=max(speeds, default=None),
        slowest_khz=min(speeds, default=None),
        governors=tuple(sorted({name for core in cores if (name := read_text(core / "cpufreq/scaling_governor"))})),
        temperature_c=max((heat for heat, _ in zones), default=None),
        headroom_c=min((trip - heat for heat, trip in zones if trip is not None), default=None),
        throttle_ms=throttle_counters(cores, "throttle_total_time_ms"),
        throttle_events=throttle_counters(cores, "throttle_count"),
        load=load_average(root),
        waited_us=counter_in(root / "proc/pressure/cpu", r"some .*total=(\d+)"),
        quota_us=counter_in(root / "sys/fs/cgroup/cpu.stat", r"throttled_usec (\d+)"),
        stolen=stolen,
        ticks=ticks,
        power_mode=power_mode(root, jtop) if mode else None,
        gpu=read_gpu(gpu or 0, nvml) if asked else None,
    )


def usable_cores(root: Path) -> list[Path]:
    """``sys/devices/system/cpu/cpuN`` of the cores this process may use; of another root, all."""
    cores = {int(path.name[3:]): path for path in root.glob("sys/devices/system/cpu/cpu[0-9]*")}
    mine = os.sched_getaffinity(0) if root == HERE and hasattr(os, "sched_getaffinity") else set(cores)
    return [cores[number] for number in sorted(mine & set(cores))]


def read_zone(zone: Path) -> tuple[float, float | None] | None:
    """Degrees Celsius of a thermal zone, and of its lowest trip point at which something is slowed or shut."""
    heat = number_of(zone / "temp")
    if heat is None or heat <= 0:
        return None
    kinds = {path: read_text(path) for path in zone.glob("trip_point_*_type")}
    trips = [number_of(path.with_name(path.name[: -len("type")] + "temp")) for path, kind in kinds.items()
             if kind in HOT_TRIPS]  # fmt: skip
    return heat / 1000, min((trip / 1000 for trip in trips if trip and trip > 0), default=None)


def throttle_counters(cores: list[Path], kind: str) -> dict[str, int]:
    """A counter of Intel's ``thermal_throttle``, for each core and for its package."""
    found = {}
    for core in cores:
        for part in ("core", "package"):
            value = number_of(core / f"thermal_throttle/{part}_{kind}")
            if value is not None:
                found[f"{core.name} {part}"] = value
    return found


def processor_time(root: Path) -> tuple[int | None, int | None]:
    """Ticks stolen by the hypervisor, and all ticks, of ``proc/stat``. Guests' time is in user time already."""
    words = (read_text(root / "proc/stat") or "").split("\n")[0].split()
    if len(words) < 9 or words[0] != "cpu" or not all(word.isascii() and word.isdigit() for word in words[1:9]):
        return None, None
    ticks = [int(word) for word in words[1:9]]
    return ticks[7], sum(ticks)


def load_average(root: Path = HERE) -> float | None:
    """Runnable tasks, averaged over a minute."""
    found = re.match(r"\d{1,6}(\.\d{1,6})?(?= )", read_text(root / "proc/loadavg") or "")
    if found:
        return float(found[0])
    try:
        return round(os.getloadavg()[0], 2) if root == HERE else None
    except (AttributeError, OSError):
        return None


def power_mode(root: Path = HERE, jtop: Any | None = None) -> str | None:
    """The power mode's name: nvpmodel's on a Jetson ("MAXN", "15W"), elsewhere the firmware's platform profile."""
    found = nvpmodel_mode(root) or (nvpmodel_query() if root == HERE else None)
    return found or jtop_mode(root, jtop) or read_text(root / "sys/firmware/acpi/platform_profile")


def nvpmodel_query() -> str | None:
    """What ``nvpmodel -q`` says, where there is such a command."""
    command = shutil.which("nvpmodel")
    if command is None:
        return None
    try:
        done = subprocess.run([command, "-q"], capture_output=True, timeout=COMMAND_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"NV Power Mode:\s*(\S+)", done.stdout.decode("utf-8", errors="replace"))
    return found[1] if found else None


def jtop_mode(root: Path, jtop: Any | None) -> str | None:
    """What jtop's service says of nvpmodel; it is asked in containers, which see neither files nor command."""
    library = jtop or (import_quietly("jtop") if root == HERE else None)
    try:
        if library is None:
            return None
        with library.jtop() as jetson:
            mode = jetson.nvpmodel
            return None if mode is None else str(getattr(mode, "name", mode))
    except Exception:  # the service is optional: not running, no permission, another version
        return None


def counter_in(path: Path, pattern: str) -> int | None:
    """A number the pattern finds in a small file."""
    found = re.search(pattern, read_text(path) or "")
    return int(found[1][:18]) if found else None


def number_of(path: Path) -> int | None:
    """A file that holds one whole number."""
    text = read_text(path) or ""
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None
