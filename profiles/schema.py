"""What a profile says of a device, as frozen dataclasses.

Units: memory and sizes in bytes, bandwidth in bytes per second, throughput in 10^12 operations per second without
sparsity, power in watts, latency in milliseconds. Memory sizes are a data sheet's gigabytes read as 10^9 bytes: the
smaller of the two readings, and close to what the operating system of an 8 GB Jetson reports.

Every hardware figure needs a source: ``sources`` maps the dotted path of a figure, or of a section, to a document.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = [
    "ARCHES",
    "BUILDS",
    "DIALECTS",
    "ENGINES",
    "KINDS",
    "PRECISIONS",
    "RECIPES",
    "TENSORRT_PRECISIONS",
    "Budgets",
    "Cpu",
    "Engine",
    "Gpu",
    "Memory",
    "PowerMode",
    "Profile",
    "Release",
    "Shapes",
]

ARCHES = ("x86-64", "aarch64")
DIALECTS = ("ort", "qdq")
BUILDS = ("nothing", "device", "anywhere")
KINDS = ("shared", "device")
ENGINES: Mapping[str, str] = {
    "onnxruntime-cpu": "ort",
    "onnxruntime-cuda": "ort",
    "tensorrt": "qdq",
    "tensorrt-rtx": "qdq",
}
"""Each engine and the dialect it is fed."""
PRECISIONS: Mapping[str, float] = {
    "fp32": 0.0,
    "fp16": 0.0,
    "bf16": 8.0,
    "int8": 0.0,
    "int8-weight": 0.0,
    "int4-weight": 7.5,
    "fp8": 8.9,
    "fp4": 10.0,
}
"""Each precision and the lowest compute capability with it. ``-weight`` leaves activations alone."""
TENSORRT_PRECISIONS: Mapping[str, float] = {**PRECISIONS, "int4-weight": 8.0}
"""The same where TensorRT asks for more (TensorRT support matrix: no weight-only INT4 on Turing)."""

RECIPES: Mapping[str, str] = {
    "int8": "int8",
    "fp8": "fp8",
    "int8-weight-only": "int8-weight",
    "int4-symmetric": "int4-weight",
}
"""Each shipped recipe whose checkpoint TensorRT reads, and the precision an engine needs for it."""

BUILD_FIGURES = ("build_memory", "recipes", "install")
"""What an engine says of its build; each has a source of its own, or its engine's."""


@dataclass(frozen=True)
class Cpu:
    """Instruction set features, spelled as ``/proc/cpuinfo`` spells them, and the number of cores."""

    features: tuple[str, ...] = ()
    cores: int | None = None


@dataclass(frozen=True)
class Gpu:
    """``sm`` is the compute capability ("8.7"); ``reported_as`` the names NVML gives the card."""

    name: str
    sm: str
    reported_as: tuple[str, ...] = ()
    dense_fp16_tflops: float | None = None
    dense_int8_tops: float | None = None
    dense_fp8_tflops: float | None = None
    dense_fp4_tflops: float | None = None


@dataclass(frozen=True)
class Memory:
    """``kind``: ``shared`` between CPU and GPU, or ``device`` memory of a card."""

    bytes: int
    kind: str
    bandwidth: int | None = None


@dataclass(frozen=True)
class Engine:
    """``build`` says where its engine file is made: ``nothing`` to build, on the ``device``, or ``anywhere``.

    ``build_memory``: bytes of memory a build takes for each byte of weights, besides the builder's own. ``recipes``:
    the shipped recipes it reads, the one to begin with first. ``install``: what pip installs for it, where pip does.
    """

    name: str
    precisions: tuple[str, ...]
    build: str = "nothing"
    build_memory: float | None = None
    recipes: tuple[str, ...] = ()
    install: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shapes:
    """Each ``(min, opt, max)``; ``past`` counts the tokens already in a decoder's KV cache."""

    batch: tuple[int, int, int]
    sequence: tuple[int, int, int]
    past: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Budgets:
    """What a bundle for this device may cost; None means no limit."""

    latency_ms: float | None = None
    size_bytes: int | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class PowerMode:
    """A power mode; ``watts`` is None for the mode without a cap."""

    name: str
    watts: float | None = None


@dataclass(frozen=True)
class Release:
    """Versions that come together, such as one JetPack.

    ``apt``: the packages that hold its CUDA and its TensorRT for Python. ``onnxruntime``: the wheel to install with it,
    where the newest is not the one.
    """

    jetpack: str | None = None
    cuda: str | None = None
    tensorrt: str | None = None
    python: str | None = None
    apt: tuple[str, ...] = ()
    onnxruntime: str | None = None


@dataclass(frozen=True)
class Profile:
    """A device. ``engines`` stand in order of preference; ``threads`` None means one per physical core."""

    name: str
    description: str
    arch: str
    engines: tuple[Engine, ...]
    dialects: tuple[str, ...]
    shapes: Shapes
    threads: int | None = None
    cpu: Cpu = Cpu()
    gpu: Gpu | None = None
    memory: Memory | None = None
    boards: tuple[str, ...] = ()
    budgets: Budgets = Budgets()
    power_modes: tuple[PowerMode, ...] = ()
    software: tuple[Release, ...] = ()
    notes: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)

    def engine(self, name: str) -> Engine | None:
        """The engine called ``name``, or None if the device has none."""
        return next((engine for engine in self.engines if engine.name == name), None)

    def figures(self) -> Iterator[str]:
        """The dotted paths of all hardware figures: what needs a source."""
        for part in ("cpu", "gpu", "memory"):
            told = bare(asdict(getattr(self, part))) if getattr(self, part) else {}
            yield from (f"{part}.{key}" for key in told)
        for engine in self.engines:
            yield f"engines.{engine.name}"
            yield from (f"engines.{engine.name}.{key}" for key in bare(asdict(engine)) if key in BUILD_FIGURES)
        told = {key for release in self.software for key in bare(asdict(release))}
        yield from (f"software.{key}" for key in sorted(told))
        yield from (part for part in ("boards", "power_modes") if getattr(self, part))

    def to_json(self) -> dict[str, Any]:
        """The mapping ``parsing.parse`` makes an equal profile from: lists and dicts only, nothing absent."""
        told: dict[str, Any] = {"schema": 1, **bare(asdict(self))}
        return told


def bare(value: Any) -> Any:
    """``value`` with tuples as lists and without None and empty entries."""
    if isinstance(value, Mapping):
        kept = {key: bare(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item is not None and item not in ([], {})}
    return [bare(item) for item in value] if isinstance(value, (list, tuple)) else value
