"""Versions of what would run a bundle, found without loading anything that could touch a GPU."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path

from planish.system_files import read_text

__all__ = ["SoftwareSeen", "importable", "read_software"]

TENSORRT = ("tensorrt", "tensorrt_cu13", "tensorrt_cu12", "tensorrt_cu13_bindings", "tensorrt_cu12_bindings")
TENSORRT_RTX = ("tensorrt_rtx", "tensorrt_rtx_cu13", "tensorrt_rtx_cu12")


@dataclass(frozen=True)
class SoftwareSeen:
    """Versions, None where a package is absent; ``providers`` are ONNX Runtime's, in its order."""

    python: str
    onnxruntime: str | None = None
    providers: tuple[str, ...] = ()
    tensorrt: str | None = None
    tensorrt_rtx: str | None = None


def find_spec(module: str) -> ModuleSpec | None:
    """Where a module is, without importing it; None if it is not there or its parent is broken."""
    try:
        return importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None


def importable(module: str) -> bool:
    """Whether a module is there, without importing it."""
    return find_spec(module) is not None


def read_software(unseen: list[str]) -> SoftwareSeen:
    """This interpreter's packages. TensorRT is not imported: its runtime without a driver can end a process."""
    version, providers = read_onnxruntime(unseen)
    trt, rtx = package_version("tensorrt", TENSORRT), package_version("tensorrt_rtx", TENSORRT_RTX)
    return SoftwareSeen(platform.python_version(), version, providers, trt, rtx)


def read_onnxruntime(unseen: list[str]) -> tuple[str | None, tuple[str, ...]]:
    """ONNX Runtime's version and the providers it was built with; listing them loads none."""
    if not importable("onnxruntime"):
        unseen.append("ONNX Runtime: not installed here (pip install onnxruntime)")
        return None, ()
    try:
        import onnxruntime
    except Exception as error:  # a wheel for another platform, a missing library
        unseen.append(f"ONNX Runtime: installed, but does not load ({error})")
        return None, ()
    return str(onnxruntime.__version__), tuple(onnxruntime.get_available_providers())


def package_version(module: str, distributions: tuple[str, ...]) -> str | None:
    """The version of an importable module from its metadata, or from its source where apt installed it without."""
    spec = find_spec(module)
    if spec is None:
        return None
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    for place in spec.submodule_search_locations or ():
        found = re.search(r"^__version__ = [\"']([\w.]+)", read_text(Path(place) / "__init__.py") or "", re.MULTILINE)
        if found:
            return found[1]
    return "unknown"
