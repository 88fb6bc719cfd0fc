"""What NVML says of the GPU that is measured: clocks, heat, power limit, why it slows, who else is on it.

NVML only asks the driver; no CUDA context is made. A figure the card or the driver does not give is None, and so is
the whole where there is no NVML: nothing here raises but :func:`handle_of`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from planish.bindings import decoded, import_quietly
from planish.errors import InconclusiveError
from planish.runtime.placement import parse_device

__all__ = ["SLOWING", "GpuState", "card_of", "handle_of", "nvml_session", "read_gpu"]

CLOCK_SM, CLOCK_MEMORY, SENSOR_GPU, THRESHOLD_SLOWDOWN, POLICY_THERMAL = 1, 2, 0, 1, 1  # nvml.h
SLOWING = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""Bits of the clocks' event reasons (nvml.h) that mean trouble. A power cap (0x04) is how most cards run when busy, and
an idle card (0x01) or clocks set by the owner (0x02) are no fault either: they are told, not judged."""


@dataclass(frozen=True)
class GpuState:
    """One card now: megahertz, degrees Celsius, watts.

    Attributes:
        reasons: bits that say why the clock is below the highest, see :data:`SLOWING`.
        slowed_ns: how long heat has held the clock down since the driver was loaded.
        processes: other processes that compute on the card.
    """

    name: str | None = None
    sm_mhz: int | None = None
    memory_mhz: int | None = None
    temperature_c: int | None = None
    slowdown_c: int | None = None
    power_limit_w: float | None = None
    reasons: int | None = None
    slowed_ns: int | None = None
    persistence: bool | None = None
    processes: int | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def card_of(asked: str, used: str) -> int | None:
    """CUDA's number of the card a model runs on, None elsewhere.

    Args:
        asked: the device as the user gave it ("auto", "cuda:1"); used: `planish.runtime.Model.device`.

    >>> [card_of("cuda:1", "CUDAExecutionProvider"), card_of("auto", "tensorrt:0"), card_of("cpu", "CPU")]
    [1, 0, None]
    """
    nvidia = used.lower().startswith(("cuda", "tensorrt", "nvtensorrt"))
    return parse_device(asked).number or 0 if nvidia else None


@contextmanager
def nvml_session(nvml: Any | None = None) -> Iterator[Any | None]:
    """NVML, started, or None. ``nvml`` stands in for the module ``pynvml``."""
    nvml = nvml or import_quietly("pynvml")
    try:
        if nvml is not None:
            nvml.nvmlInit()
    except Exception:  # NVML has its own tree of errors, and any OSError of a broken driver
        nvml = None
    try:
        yield nvml
    finally:
        if nvml is not None:
            nvml.nvmlShutdown()


def handle_of(nvml: Any, index: int, environ: Mapping[str, str] = os.environ) -> Any:
    """NVML's handle of CUDA's device ``index``. CUDA counts the visible devices, the fastest first; NVML all, by bus.

    Raises:
        InconclusiveError: cards of several kinds, of which it cannot be told which one CUDA counts as ``index``.
    """
    visible = [word.strip() for word in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
    entry = visible[index] if index < len(visible) else str(index)
    if not entry.isdigit():
        return nvml.nvmlDeviceGetHandleByUUID(entry)
    handles = [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount())]
    names = sorted({decoded(nvml.nvmlDeviceGetName(handle)) for handle in handles})
    if len(names) > 1 and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        fix = "export CUDA_DEVICE_ORDER=PCI_BUS_ID"
        raise InconclusiveError("GPUs of one kind, or counted by their bus", " and ".join(names), fix)
    if int(entry) >= len(handles):
        raise InconclusiveError(f"GPU {entry}", f"{len(handles)} GPUs", "correct CUDA_VISIBLE_DEVICES")
    return handles[int(entry)]


def read_gpu(index: int = 0, nvml: Any | None = None) -> GpuState | None:
    """CUDA's device ``index`` as NVML sees it, None where there is no NVML or no such card."""
    with nvml_session(nvml) as library:
        if library is None:
            return None
        try:
            handle = handle_of(library, index)
        except Exception:
            return None
        return ask(library, handle)


def ask(nvml: Any, handle: Any) -> GpuState:
    """Figure by figure: integrated and virtual GPUs answer some questions with "not supported"."""

    def answer(question: Callable[[], Any]) -> Any:
        try:
            return question()
        except Exception:
            return None

    def others() -> int:
        return sum(one.pid != os.getpid() for one in nvml.nvmlDeviceGetComputeRunningProcesses(handle))

    def reasons() -> int:
        name = "nvmlDeviceGetCurrentClocksEventReasons"  # its name before driver 535:
        return int((getattr(nvml, name, None) or nvml.nvmlDeviceGetCurrentClocksThrottleReasons)(handle))

    return GpuState(
        name=answer(lambda: decoded(nvml.nvmlDeviceGetName(handle))),
        sm_mhz=answer(lambda: int(nvml.nvmlDeviceGetClockInfo(handle, CLOCK_SM))),
        memory_mhz=answer(lambda: int(nvml.nvmlDeviceGetClockInfo(handle, CLOCK_MEMORY))),
        temperature_c=answer(lambda: int(nvml.nvmlDeviceGetTemperature(handle, SENSOR_GPU))),
        slowdown_c=answer(lambda: int(nvml.nvmlDeviceGetTemperatureThreshold(handle, THRESHOLD_SLOWDOWN))),
        power_limit_w=answer(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000),
        reasons=answer(reasons),
        slowed_ns=answer(lambda: int(nvml.nvmlDeviceGetViolationStatus(handle, POLICY_THERMAL).violationTime)),
        persistence=answer(lambda: bool(nvml.nvmlDeviceGetPersistenceMode(handle))),
        processes=answer(others),
    )
