"""What an engine is, in its own words: ``engine.json`` beside the plan (docs/formats.md, section 5c).

The builder writes it, the runtime compares it with the host before a byte of the plan reaches TensorRT.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from planish.errors import BundleError
from planish.runtime.decode import decode, encode
from planish.runtime.files import read_limited, replace_file
from planish.runtime.manifest import TensorInfo, canonical

__all__ = [
    "BuiltOn",
    "EngineInfo",
    "Range",
    "ShapeProfile",
    "engine_id",
    "parse_engine_info",
    "read_engine_info",
    "write_engine_info",
]

MAX_BYTES = 4 << 20
MODULES = ("tensorrt", "tensorrt_rtx")


@dataclass(frozen=True)
class Range:
    """Sizes of one input that an optimization profile takes: every axis from ``min`` to ``max``, tuned for ``opt``."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Whether a shape lies inside.

        >>> Range((1, 1), (1, 8), (4, 16)).holds((4, 17))
        False
        """
        return len(shape) == len(self.min) and all(
            low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True)
        )


@dataclass(frozen=True)
class ShapeProfile:
    """One optimization profile: a range for each input whose shape varies."""

    name: str
    shapes: Mapping[str, Range]


@dataclass(frozen=True)
class BuiltOn:
    """The GPU an engine was built on. ``driver`` is the CUDA version its driver offers, such as ``13.0``."""

    name: str
    sm: str
    driver: str | None = None


@dataclass(frozen=True)
class EngineInfo:
    """All of ``engine.json``. ``targets`` are compute capabilities such as ``8.9``."""

    schema: Literal[1]
    planish: str
    module: Literal["tensorrt", "tensorrt_rtx"]
    version: str
    targets: tuple[str, ...]
    device: BuiltOn | None
    profile: str
    dialect: str
    onnx_sha256: Mapping[str, str]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    profiles: tuple[ShapeProfile, ...]
    build: Mapping[str, Any]
    diagnostic: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The file's object, as plain dicts and lists."""
        return dict(encode(self))


def engine_id(module: str, version: str, targets: tuple[str, ...] | list[str], profile: str) -> str:
    """The name of an engine's folder.

    >>> engine_id("tensorrt_rtx", "1.7.1.116", ["8.9", "12.0"], "rtx-4090")
    'tensorrt_rtx-1.7.1.116-sm89+120-rtx-4090'
    """
    return f"{module}-{version}-sm{'+'.join(target.replace('.', '') for target in targets)}-{profile}"


def parse_engine_info(data: bytes, where: str = "engine.json") -> EngineInfo:
    """An EngineInfo from the bytes of its file; raises BundleError for anything that does not fit the schema."""
    try:
        raw = json.loads(data.decode("utf-8"))
        same = data == canonical(raw)
    except (ValueError, RecursionError, TypeError) as error:
        raise BundleError(f"canonical JSON in {where}", str(error)[:200], _BUILD) from error
    if not same:
        raise BundleError(f"canonical JSON in {where}", "another spelling", _BUILD)
    info = decode(EngineInfo, raw, where)
    _check(info, where)
    return info


def read_engine_info(path: str | os.PathLike[str]) -> EngineInfo:
    """The ``engine.json`` at ``path``, checked. Raises BundleError."""
    return parse_engine_info(read_limited(Path(path), MAX_BYTES), Path(path).name)


def write_engine_info(path: str | os.PathLike[str], info: EngineInfo) -> None:
    """Writes ``engine.json`` atomically, after reading it as the runtime will. Raises BundleError, HostError.

    For folders that no manifest names: the temporary file lies in the same one.
    """
    data = canonical(info.to_json())
    parse_engine_info(data, Path(path).name)
    replace_file(Path(path), data, Path(path).parent)


def _check(info: EngineInfo, where: str) -> None:
    """What types cannot say."""
    for target in (*info.targets, *([info.device.sm] if info.device else [])):
        if not re.fullmatch(r"\d{1,2}\.\d", target):
            raise BundleError(f"compute capabilities such as 8.9 in {where}", repr(target), _BUILD)
    if not info.targets or not info.profiles or not info.inputs or not info.outputs or not info.onnx_sha256:
        raise BundleError(f"targets, profiles, inputs, outputs and onnx_sha256 in {where}", "an empty one", _BUILD)
    ranks = {tensor.name: len(tensor.shape) for tensor in info.inputs}
    for profile in info.profiles:
        for name, sizes in profile.shapes.items():
            if not {len(sizes.min), len(sizes.opt), len(sizes.max)} == {ranks.get(name, -1)}:
                raise BundleError(f"a range for every axis of {name} in {where}", repr(sizes), _BUILD)
            if any(
                not 0 <= low <= best <= high for low, best, high in zip(sizes.min, sizes.opt, sizes.max, strict=True)
            ):
                raise BundleError(f"0 <= min <= opt <= max for {name} in {where}", repr(sizes), _BUILD)


_BUILD = "build the engine again: planish build BUNDLE --profile P"
