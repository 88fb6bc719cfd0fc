"""What this host can do, what it lacks, and what to type to mend it. Imports no torch and touches no GPU."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from planish import __version__
from planish.extras import find_extras
from planish.profiles import Detection, detect
from planish.runtime import installed_plugins

__all__ = ["diagnose"]

OLDEST_ONNXRUNTIME = (1, 23)
BUILDS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn")
"""Distributions that all install the module ``onnxruntime``."""
INT8 = (
    ("amx_int8", "AMX multiplies INT8 tiles: expect INT8 encoders at two to three times fp32, or above."),
    ("avx512_vnni", "AVX-512 VNNI multiplies INT8: expect INT8 encoders at two to three times fp32."),
    ("avx_vnni", "AVX VNNI multiplies INT8 in 256 bits: INT8 is faster than fp32, less so than with AVX-512."),
    ("i8mm", "i8mm multiplies INT8 matrices: INT8 is clearly faster than fp32."),
    ("asimddp", "The Arm dot product multiplies INT8: INT8 is faster than fp32, less so than with i8mm."),
)
NO_VNNI = (
    "AVX2 without VNNI: expect INT8 encoders at 1.3 times fp32, or 1.4 with weight_bits: 7 in the pass int8-linear."
)
NO_INT8 = "No INT8 dot product (VNNI, i8mm or dotprod): INT8 saves memory and disk here, and little or no time."
SMALL_MEMORY, SMALL_DISK = 1 << 30, 2 << 30


def diagnose(root: Path = Path("/"), cwd: Path | None = None) -> dict[str, Any]:
    """Facts about this host as lists and dicts; ``problems`` holds pairs of ``what`` and ``fix``, empty if all is well.

    ``root`` reads another machine's ``/proc``, ``/sys`` and ``/etc``; ``cwd`` is where free disk is asked for.
    """
    seen, extras, disk = detect(root), find_extras(), find_disk(cwd or Path.cwd())
    best = seen.matches[0] if seen.matches else None
    return {
        "planish": __version__,
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "extras": extras,
        "onnxruntime": find_onnxruntime(seen),
        "tensorrt": {"tensorrt": seen.software.tensorrt, "tensorrt_rtx": seen.software.tensorrt_rtx},
        "cpu": find_cpu(seen),
        "memory": find_memory(seen),
        "disk": disk,
        "gpus": [f"{gpu.name}, compute capability {gpu.sm}, driver {gpu.driver}" for gpu in seen.gpus],
        "board": seen.to_json().get("board"),
        "profile": {"name": best.profile, "exact": best.exact, "reason": best.reason} if best else None,
        "unseen": list(seen.unseen),
        "problems": [{"what": what, "fix": fix} for what, fix in find_problems(seen, disk["free_bytes"])],
    }


def find_onnxruntime(seen: Detection) -> dict[str, Any]:
    """Version, providers, plugins (device word and package), whether it is new enough, which distributions it is."""
    version = seen.software.onnxruntime
    return {
        "version": version,
        "providers": list(seen.software.providers),
        "plugins": {word: plugin.module for word, plugin in installed_plugins().items()},
        "new_enough": version is not None and numbers(version) >= OLDEST_ONNXRUNTIME,
        "distributions": [name for name in BUILDS if installed(name)],
    }


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version.

    >>> numbers("1.23.2.dev5")
    (1, 23, 2)
    """
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def installed(distribution: str) -> bool:
    """Whether a distribution is installed in this environment."""
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def find_cpu(seen: Detection) -> dict[str, Any] | None:
    """The CPU, its INT8 instruction if it has one, and what that means in words."""
    if seen.cpu is None:
        return None
    has = [(name, meaning) for name, meaning in INT8 if name in seen.cpu.features]
    none = NO_VNNI if "avx2" in seen.cpu.features else NO_INT8
    return {
        "arch": seen.cpu.arch,
        "model": seen.cpu.model,
        "cores": {"logical": seen.cpu.logical, "physical": seen.cpu.physical, "usable": seen.cpu.usable},
        "int8": {"instruction": has[0][0] if has else None, "meaning": has[0][1] if has else none},
    }


def find_memory(seen: Detection) -> dict[str, int | None] | None:
    """Bytes of memory: installed, available, and the container's limit."""
    memory = seen.memory
    return (
        {"total_bytes": memory.total, "available_bytes": memory.available, "limit_bytes": memory.limit}
        if memory
        else None
    )


def find_disk(cwd: Path) -> dict[str, Any]:
    """Free bytes where bundles would be written."""
    try:
        return {"path": str(cwd), "free_bytes": shutil.disk_usage(cwd).free}
    except OSError:
        return {"path": str(cwd), "free_bytes": None}


def find_problems(seen: Detection, free: int | None) -> list[tuple[str, str]]:
    """What stands in the way of a good run, each with what to do."""
    problems = [*onnxruntime_problems(seen), *gpu_problems(seen)]
    cpu, memory = seen.cpu, seen.memory
    if cpu and cpu.usable < cpu.physical:
        threads = max(1, int(cpu.usable))
        what = f"this container may use {cpu.usable:g} of {cpu.physical} cores, and ONNX Runtime counts them all"
        problems.append((what, f"pass threads={threads} to planish.runtime.load"))
    left = min((size for size in (memory.available, memory.limit) if size), default=None) if memory else None
    if left is not None and left < SMALL_MEMORY:
        problems.append(
            (f"only {left / 1e6:.0f} MB of memory left", "close other programs, or raise the container's limit")
        )
    if free is not None and free < SMALL_DISK:
        problems.append(
            (f"only {free / 1e6:.0f} MB of disk left here", "free some, or write to another disk with --output")
        )
    if not seen.matches:
        problems.append(("no shipped profile fits this host", "write one after a shipped profile, and pass its path"))
    return problems


def onnxruntime_problems(seen: Detection) -> list[tuple[str, str]]:
    """ONNX Runtime absent, too old, or installed twice into one module."""
    facts = find_onnxruntime(seen)
    problems = []
    if facts["version"] is None:
        problems.append(("ONNX Runtime cannot be imported", "pip install 'onnxruntime>=1.23'"))
    elif not facts["new_enough"]:
        problems.append(
            (f"ONNX Runtime {facts['version']} is older than 1.23", "pip install --upgrade 'onnxruntime>=1.23'")
        )
    if len(facts["distributions"]) > 1:
        both = " ".join(facts["distributions"])
        problems.append(
            (f"{both} overwrite each other's files", f"pip uninstall -y {both}, then install the one you want")
        )
    return problems


def gpu_problems(seen: Detection) -> list[tuple[str, str]]:
    """A GPU that nothing installed here can use."""
    if seen.board:
        if seen.software.tensorrt is None:
            what = "this is a Jetson, and Python does not see its TensorRT"
            return [(what, "sudo apt install python3-libnvinfer, and make the venv with --system-site-packages")]
        return []
    engines = (seen.software.tensorrt, seen.software.tensorrt_rtx, "CUDAExecutionProvider" in seen.software.providers)
    if seen.gpus and not any(engines):
        fix = "pip uninstall -y onnxruntime, then pip install onnxruntime-gpu; or install tensorrt"
        return [(f"{seen.gpus[0].name} is there, and no engine installed here can use it", fix)]
    return []
