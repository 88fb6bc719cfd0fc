"""What ``/proc`` and ``/sys`` say of the CPU and the memory, from any root directory.

Every reader takes ``root`` and answers None, or an empty value, where a file is missing; the caller says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from planish.system_files import read_text

__all__ = ["CpuSeen", "MemorySeen", "read_cpu", "read_memory"]

IMPLEMENTERS = {0x41: "Arm", 0x4E: "NVIDIA", 0x61: "Apple", 0xC0: "Ampere", 0x51: "Qualcomm", 0x48: "HiSilicon"}
PARTS = {
    0xD03: "Cortex-A53",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse N1",
    0xD40: "Neoverse V1",
    0xD42: "Cortex-A78AE",
    0xD49: "Neoverse N2",
    0xD4F: "Neoverse V2",
    0xD83: "Neoverse V3AE",
    0xD84: "Neoverse V3",
    0xD8E: "Neoverse N3",
}
"""Arm's part numbers, as ``arch/arm64/include/asm/cputype.h`` of the Linux kernel lists them."""


@dataclass(frozen=True)
class CpuSeen:
    """``features`` are those every core has; ``usable`` cores are what a container's quota leaves."""

    arch: str
    vendor: str | None
    model: str | None
    features: tuple[str, ...]
    logical: int
    physical: int
    usable: float


@dataclass(frozen=True)
class MemorySeen:
    """Bytes: installed, available now, and the container's limit if there is one."""

    total: int
    available: int | None
    limit: int | None


def read_cpu(root: Path) -> CpuSeen | None:
    """The CPU, from ``proc/cpuinfo`` (x86 ``flags``, aarch64 ``Features``) and the cgroup's quota."""
    text = read_text(root / "proc/cpuinfo") or ""
    cores = [block for block in map(fields_of, re.split(r"\n\s*\n", text)) if "processor" in block]
    if not cores:
        return None
    words = [set((core.get("flags") or core.get("Features") or "").split()) for core in cores]
    features = tuple(sorted(set.intersection(*words)))
    arm = "CPU implementer" in cores[0]
    arch = "aarch64" if arm else "x86-64" if "lm" in features else "unknown"
    vendor, model = arm_name(cores[0]) if arm else (cores[0].get("vendor_id"), cores[0].get("model name"))
    pairs = {(core.get("physical id"), core.get("core id")) for core in cores if "core id" in core}
    quota = read_quota(root)
    usable = min(float(len(cores)), quota) if quota else float(len(cores))
    return CpuSeen(arch, vendor, model, features, len(cores), len(pairs) or len(cores), usable)


def fields_of(block: str) -> dict[str, str]:
    """``key : value`` lines as a dict."""
    pairs = (line.split(":", 1) for line in block.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def arm_name(core: dict[str, str]) -> tuple[str | None, str | None]:
    """Vendor and model from the numbers of an Arm core."""
    implementer, part = (hexadecimal(core.get(key, "")) for key in ("CPU implementer", "CPU part"))
    vendor = IMPLEMENTERS.get(implementer) if implementer is not None else None
    model = PARTS.get(part) if implementer == 0x41 and part is not None else None
    return vendor, model or (f"part {core['CPU part']}" if core.get("CPU part") else None)


def hexadecimal(text: str) -> int | None:
    """``0xd42`` as a number, None if it is none."""
    return int(text, 16) if re.fullmatch(r"0x[0-9a-fA-F]{1,8}", text) else None


def read_quota(root: Path) -> float | None:
    """Cores the control group may use (cgroup v2 ``cpu.max``, v1 ``cfs_quota_us``), None without a limit."""
    words = (read_text(root / "sys/fs/cgroup/cpu.max") or "").split()
    if not words:
        v1 = root / "sys/fs/cgroup/cpu"
        words = [read_text(v1 / "cpu.cfs_quota_us") or "", read_text(v1 / "cpu.cfs_period_us") or ""]
    if len(words) == 2 and all(word.isascii() and word.isdigit() for word in words) and int(words[1]):
        return int(words[0]) / int(words[1]) or None
    return None


def read_memory(root: Path) -> MemorySeen | None:
    """Memory, from ``proc/meminfo`` and the control group's limit."""
    text = read_text(root / "proc/meminfo") or ""
    sizes = {key: int(kib) * 1024 for key, kib in re.findall(r"^(\w+):\s+(\d{1,15}) kB", text, re.MULTILINE)}
    total = sizes.get("MemTotal")
    if not total:
        return None
    limits = [read_text(root / "sys/fs/cgroup" / name) or "" for name in ("memory.max", "memory/memory.limit_in_bytes")]
    real = [int(limit) for limit in limits if limit.isascii() and limit.isdigit() and 0 < int(limit) < total]
    return MemorySeen(total, sizes.get("MemAvailable"), min(real, default=None))
