"""What can be seen of NVIDIA hardware without touching it: NVML, the PCI bus, and a Jetson's own files.

NVML only asks the driver; no CUDA context is made. Nothing here raises: what cannot be read becomes a line of
``unseen``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from planish.bindings import decoded, import_quietly
from planish.system_files import nvpmodel_mode, read_text

__all__ = ["BoardSeen", "GpuSeen", "read_board", "read_gpus", "with_jtop"]

JETPACKS = {
    "36.4.0": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5.0": "6.2.2",
    "38.2.0": "7.0",
    "38.2.1": "7.0",
    "38.2.2": "7.0",
    "38.4.0": "7.1",
    "39.2.0": "7.2",
    "39.2.1": "7.2.1",
    "39.2.2": "7.2.2",
}
"""Jetson Linux release to JetPack, after NVIDIA's JetPack archive page."""


@dataclass(frozen=True)
class GpuSeen:
    """A card: ``sm`` is its compute capability ("8.9"), ``memory`` in bytes."""

    name: str
    sm: str | None = None
    memory: int | None = None
    driver: str | None = None


@dataclass(frozen=True)
class BoardSeen:
    """A Jetson: the device tree's model, the Jetson Linux release ("36.4.7"), JetPack and power mode if known."""

    model: str
    l4t: str | None = None
    jetpack: str | None = None
    power_mode: str | None = None
    module: str | None = None


def read_gpus(root: Path, nvml: Any | None, unseen: list[str]) -> tuple[GpuSeen, ...]:
    """The NVIDIA GPUs NVML reports. ``nvml`` stands in for the module ``pynvml``; None looks for it at root ``/``."""
    on_bus = count_on_bus(root)
    if nvml is None and root == Path("/"):
        nvml = import_quietly("pynvml")
    if nvml is None:
        if on_bus:
            unseen.append(f"{on_bus} NVIDIA device(s) on the PCI bus, but not which: pip install nvidia-ml-py")
        else:
            unseen.append(
                "GPUs: no NVML bindings to ask (pip install nvidia-ml-py) and no NVIDIA device on the PCI bus"
            )
        return ()
    try:
        nvml.nvmlInit()
    except Exception as error:  # NVML raises its own tree, and any OSError of a broken driver
        found = f"{on_bus} NVIDIA device(s) on the PCI bus" if on_bus else "no NVIDIA device on the PCI bus"
        unseen.append(f"GPUs: NVML does not start ({error}), {found}")
        return ()
    try:
        return tuple(ask(nvml, index, unseen) for index in range(nvml.nvmlDeviceGetCount()))
    except Exception as error:
        unseen.append(f"GPUs: NVML started and then failed ({error})")
        return ()
    finally:
        nvml.nvmlShutdown()


def ask(nvml: Any, index: int, unseen: list[str]) -> GpuSeen:
    """One card, figure by figure: integrated GPUs answer some questions with "not supported"."""
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    name = decoded(nvml.nvmlDeviceGetName(handle))

    def answer(figure: str, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except Exception as error:
            unseen.append(f"{figure} of GPU {index} ({name}): {error}")
            return None

    sm = answer("compute capability", lambda: nvml.nvmlDeviceGetCudaComputeCapability(handle))
    memory = answer("memory", lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total))
    driver = answer("driver version", lambda: decoded(nvml.nvmlSystemGetDriverVersion()))
    return GpuSeen(name, f"{sm[0]}.{sm[1]}" if sm else None, memory, driver)


def count_on_bus(root: Path) -> int:
    """Display controllers (class 03xxxx) of NVIDIA (vendor 10de) on the PCI bus."""
    devices = root / "sys/bus/pci/devices"
    try:
        found = [device for device in devices.iterdir() if read_text(device / "vendor") == "0x10de"]
    except OSError:
        return 0
    return sum((read_text(device / "class") or "").startswith("0x03") for device in found)


def read_board(root: Path, unseen: list[str]) -> BoardSeen | None:
    """The Jetson, from ``etc/nv_tegra_release``, the device tree and nvpmodel's files; None where it is no Jetson."""
    release = read_text(root / "etc/nv_tegra_release")
    model = read_text(root / "proc/device-tree/model") or read_text(root / "sys/firmware/devicetree/base/model")
    if release is None and not (model or "").startswith("NVIDIA Jetson"):
        return None
    match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", release or "")
    l4t = f"{match[1]}.{match[2]}" if match else None
    if l4t is None:
        unseen.append("Jetson Linux release: /etc/nv_tegra_release is missing (a container?) or unreadable")
    if model is None:
        unseen.append("Jetson model: the device tree is not readable here (a container?)")
    jetpack = JETPACKS.get(l4t or "") or JETPACKS.get(f"{l4t}.0")
    if l4t and not jetpack:
        unseen.append(f"JetPack version: Jetson Linux {l4t} is not in our table")
    return BoardSeen(model or "an unknown Jetson", l4t, jetpack, nvpmodel_mode(root))


def with_jtop(board: BoardSeen, root: Path, jtop: Any | None, unseen: list[str]) -> BoardSeen:
    """``board`` with what jtop's service adds. ``jtop`` stands in for the module; None looks for it at root ``/``."""
    if jtop is None and root == Path("/"):
        jtop = import_quietly("jtop")
    if jtop is None:
        if not board.power_mode:
            unseen.append(
                "power mode: nvpmodel's files are not readable and jtop is not there (pip install jetson-stats)"
            )
        return board
    try:
        with jtop.jtop() as jetson:
            hardware, mode = jetson.board["hardware"], jetson.nvpmodel
            name = str(getattr(mode, "name", mode)) if mode is not None else None
            return replace(board, module=hardware.get("Module") or None, power_mode=board.power_mode or name)
    except Exception as error:  # the service is optional: not running, no permission, another version
        unseen.append(f"jtop: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
        return board
