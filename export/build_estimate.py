"""What a build will take, known before it begins: memory of the device and of this host, disk, and time.

Estimates from the profile's greatest shapes and the graph's weights, with factors measured on engines built with
TensorRT-RTX 1.7 for a BERT-type encoder of 23 M and a Llama-type decoder of 135 M parameters. Good to a factor of two,
which is enough to refuse what cannot fit; ``engine.json`` has what it took.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from planish.errors import HostError, PlanishError, ProfileError
from planish.export.build_graph import GraphFacts
from planish.profiles import Profile
from planish.profiles.host import read_memory
from planish.runtime import ShapeProfile
from planish.runtime.manifest import TensorInfo

__all__ = ["Estimate", "Host", "estimate", "look_at_host", "refusals"]

BASE_MEMORY = 340_000_000
"""Resident bytes of a process with the builder loaded, before it builds."""
BUILD_FACTOR = {"tensorrt_rtx": 5, "tensorrt": 4}
"""Bytes of memory a build takes for each byte of weights: measured for TensorRT-RTX, 3 to 4 reported for TensorRT."""
BUILD_NODE = 150_000
"""And for each node and optimization profile."""
PLAN_FACTOR, PLAN_NODE, PLAN_BASE = 1.2, 12_000, 2_000_000
"""Bytes of a plan: for each byte of weights; for each node and optimization profile, in kernels; at least."""
BUFFERS = 2.5
"""Buffers of the widest layer that are alive at once."""
RESERVE = 0.1
"""Share of a device's memory that the driver, the system and other programs keep."""
SECONDS = {"tensorrt_rtx": (1.0, 0.008), "tensorrt": (30.0, 0.25)}
"""Of a build: at least, and for each node and optimization profile. Full TensorRT times kernels on the device."""
ITEM = {"float16": 2, "bfloat16": 2, "float32": 4, "int64": 8, "int32": 4, "bool": 1, "int8": 1, "uint8": 1}


@dataclass(frozen=True)
class Estimate:
    """Bytes and seconds.

    ``device``: memory of the device while the engine serves, its cache included; ``build``: memory of the building
    process.
    """

    weights_bytes: int
    activation_bytes: int
    buffer_bytes: int
    device_bytes: int
    build_bytes: int
    disk_bytes: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self)


@dataclass(frozen=True)
class Host:
    """Free bytes of memory and of disk at this moment; None if they cannot be seen."""

    memory: int | None
    disk: int | None


def look_at_host(folder: Path) -> Host:
    """What is free now, for this process and under ``folder``."""
    memory = read_memory(Path("/"))
    known = [size for size in (memory.available, memory.limit) if size is not None] if memory else []
    return Host(min(known, default=None), shutil.disk_usage(folder).free)


def estimate(
    facts: GraphFacts,
    profiles: Sequence[ShapeProfile],
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    module: str,
) -> Estimate:
    """What building and serving the graph takes at the greatest shapes of ``profiles``."""
    axes = greatest(profiles, inputs)
    tokens = axes.get("batch", 1) * axes.get("sequence", 1)
    kept = axes.get("batch", 1) * axes.get("kept", 0)
    mask = 2 * tokens * axes.get("total", 0)  # a decoder's causal bias, made in the graph
    activations = int(BUFFERS * 2 * tokens * facts.widest) + mask + 2 * kept * facts.vocabulary
    buffers = sum(size_of(tensor, axes) for tensor in (*inputs, *outputs))
    least, each = SECONDS[module]
    compiled = facts.nodes * len(profiles)
    plan = int(facts.weights_bytes * PLAN_FACTOR) + compiled * PLAN_NODE + PLAN_BASE
    return Estimate(
        weights_bytes=facts.weights_bytes,
        activation_bytes=activations,
        buffer_bytes=buffers,
        device_bytes=plan + activations + buffers,
        build_bytes=BASE_MEMORY + BUILD_FACTOR[module] * facts.weights_bytes + compiled * BUILD_NODE,
        disk_bytes=plan,
        seconds=least + each * compiled,
    )


def greatest(profiles: Sequence[ShapeProfile], inputs: Sequence[TensorInfo]) -> dict[str, int]:
    """The greatest size of each named axis."""
    found: dict[str, int] = {}
    for profile in profiles:
        for tensor in inputs:
            sizes = profile.shapes[tensor.name].max if tensor.name in profile.shapes else ()
            for axis, size in zip(tensor.shape, sizes, strict=False):
                if isinstance(axis, str):
                    found[axis] = max(size, found.get(axis, 0))
    return found


def size_of(tensor: TensorInfo, axes: Mapping[str, int]) -> int:
    """Bytes of a tensor at the greatest shapes."""
    sizes = [axes.get(axis, 1) if isinstance(axis, str) else axis for axis in tensor.shape]
    return math.prod(sizes) * ITEM.get(tensor.dtype, 8)


def refusals(need: Estimate, profile: Profile, host: Host) -> list[PlanishError]:
    """Why it cannot fit, with numbers; empty if it can: on the profile's device, and in what this host has free now."""
    found: list[PlanishError] = []
    memory = profile.memory
    if memory is not None and need.device_bytes > memory.bytes * (1 - RESERVE):
        parts = f"weights {mb(need.weights_bytes)}, activations {mb(need.activation_bytes)}, inputs and outputs"
        found.append(
            ProfileError(
                f"an engine within {mb(int(memory.bytes * (1 - RESERVE)))}, which {profile.name} has for it",
                f"about {mb(need.device_bytes)} ({parts} {mb(need.buffer_bytes)})",
                "lower the last numbers of shapes.batch, shapes.sequence or shapes.past in a copy of the profile",
            )
        )
    if host.memory is not None and need.build_bytes > host.memory:
        got = f"{mb(host.memory)} free now"
        fix = "close other programs, add swap, or build on another host"
        found.append(HostError(f"about {mb(need.build_bytes)} of memory to build with", got, fix))
    if host.disk is not None and need.disk_bytes > host.disk:
        got = f"{mb(host.disk)} free now"
        found.append(HostError(f"about {mb(need.disk_bytes)} of disk for the engine", got, "free some space"))
    return found


def mb(count: float) -> str:
    """Bytes in decimal megabytes.

    >>> mb(23_540_000)
    '24 MB'
    """
    return f"{count / 1e6:.0f} MB"
