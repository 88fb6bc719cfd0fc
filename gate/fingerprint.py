"""What figures of a bundle are tied to: the device, the engine and the libraries that gave them.

Kept to what does not move while the machine runs: clocks, heat and load are `planish.gate.conditions`' affair. How many
processors a container was given is no part of it, as the gate times on one thread.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from planish.errors import HostError
from planish.gate.clock import environment
from planish.runtime.manifest import canonical
from planish.runtime.placement import CPU, parse_device

if TYPE_CHECKING:
    from planish.runtime.engine_info import BuiltOn
    from planish.runtime.model import Model

__all__ = ["Fingerprint", "fingerprint_of"]

SHORT = 8


@dataclass(frozen=True)
class Fingerprint:
    """Where and with what a bundle ran; None where there is no such thing, or it cannot be read.

    Attributes:
        cpu, machine: the processor's name and architecture.
        gpu, compute_capability, driver: of the GPU the model ran on, None on the CPU; ``driver`` is the CUDA version
            it offers.
        engine: ONNX Runtime's execution provider, or TensorRT's module and version.
        threads: of the engine where it was timed; None is the engine's own choice.
        power_mode: nvpmodel's on a Jetson, elsewhere the firmware's profile.
    """

    cpu: str | None
    machine: str
    gpu: str | None
    compute_capability: str | None
    driver: str | None
    engine: str
    onnxruntime: str | None
    numpy: str
    threads: int | None
    power_mode: str | None

    @property
    def digest(self) -> str:
        """The first eight hexadecimal digits of the sha256 of the fields' canonical JSON."""
        return hashlib.sha256(canonical(self.to_json())).hexdigest()[:SHORT]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def differences(self, other: Fingerprint) -> list[tuple[str, Any, Any]]:
        """Fields that differ: name, value here, value in ``other``."""
        pairs = ((field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return [(name, mine, its) for name, mine, its in pairs if mine != its]


def fingerprint_of(model: Model, device: str, threads: int | None) -> Fingerprint:
    """Of an open model.

    Args:
        device: the word it was loaded with; its number says which GPU.
        threads: with which it is timed.
    """
    seen, gpu = environment(), gpu_of(model, device)
    return Fingerprint(
        cpu=seen["cpu"],
        machine=seen["machine"],
        gpu=gpu.name if gpu else None,
        compute_capability=gpu.sm if gpu else None,
        driver=gpu.driver if gpu else None,
        engine=engine_of(model),
        onnxruntime=seen["onnxruntime"],
        numpy=seen["numpy"],
        threads=threads,
        power_mode=seen["power_mode"],
    )


def gpu_of(model: Model, device: str) -> BuiltOn | None:
    """The GPU the model runs on; None on the CPU, and for providers of other makers' devices."""
    if model.device == CPU:
        return None
    from planish.runtime.cuda import device_facts

    try:
        return device_facts(parse_device(device).number or 0)
    except HostError:
        return None


def engine_of(model: Model) -> str:
    """The provider, or module and version of a TensorRT engine: the head of its id (docs/formats.md, section 5c)."""
    return model.device if model.engine_id is None else model.engine_id.split("-sm")[0]
