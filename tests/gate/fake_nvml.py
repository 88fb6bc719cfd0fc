"""NVML as ``pynvml`` offers it, for cards that are not here: what it answers is set, what it lacks raises."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

__all__ = ["FakeNvml", "NotSupported"]


class NotSupported(Exception):
    """NVML's answer to a question the card does not know."""

    def __str__(self) -> str:
        return "Not Supported"


class FakeNvml:
    """Cards by name; ``answers`` by the function's name without ``nvmlDeviceGet``."""

    def __init__(self, names: tuple[str | bytes, ...] = ("NVIDIA L4",), **answers: Any) -> None:
        self.names, self.answers = names, answers
        self.open = 0
        self.asked: list[int] = []

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return ["GPU-a", "GPU-b", "GPU-c"].index(uuid)

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        return self.names[handle]

    def answer(self, name: str, handle: int) -> Any:
        assert self.open, "NVML has to be started first"
        self.asked.append(handle)
        if name not in self.answers:
            raise NotSupported
        value = self.answers[name]
        return value.pop(0) if isinstance(value, list) else value

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> Any:
        return self.answer({1: "sm", 2: "memory"}[kind], handle)

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> Any:
        assert sensor == 0
        return self.answer("temperature", handle)

    def nvmlDeviceGetTemperatureThreshold(self, handle: int, threshold: int) -> Any:
        assert threshold == 1, "the slowdown's"
        return self.answer("threshold", handle)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> Any:
        return self.answer("power_limit", handle)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> Any:
        return self.answer("reasons", handle)

    def nvmlDeviceGetViolationStatus(self, handle: int, policy: int) -> Any:
        assert policy == 1, "thermal"
        return SimpleNamespace(violationTime=self.answer("violation", handle), referenceTime=0)

    def nvmlDeviceGetPersistenceMode(self, handle: int) -> Any:
        return self.answer("persistence", handle)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> Any:
        return self.answer("processes", handle)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> Any:
        return self.answer("energy", handle)
