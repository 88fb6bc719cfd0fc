"""Does an engine fit this host? Answered from ``engine.json`` and the host's facts, before the plan is touched.

Looked at in an order in which nothing can harm: the CUDA library, a driver and a device, its compute capability, the
Python module and its version, the driver's version. TensorRT's ``Runtime`` is made by none of this.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from types import ModuleType

from planish.errors import BundleError, HostError
from planish.runtime.cuda import Cuda
from planish.runtime.engine_info import BuiltOn, EngineInfo
from planish.runtime.manifest import Dialect

__all__ = ["check_key", "check_tensors", "engine_module", "fits", "module_version"]

INSTALL = {
    "tensorrt": "install TensorRT {version} (on a Jetson: apt install python3-libnvinfer, and a venv made with "
    "--system-site-packages)",
    "tensorrt_rtx": "pip install tensorrt_rtx_cu12=={version}, or the cu13 one",
}


def module_version(name: str) -> str | None:
    """The version of an installed TensorRT module, None where it is not; imports it, which needs no driver."""
    try:
        if importlib.util.find_spec(name) is None:
            return None
        return str(importlib.import_module(name).__version__)
    except (ImportError, OSError, RuntimeError, AttributeError, ValueError):  # bindings whose libraries are missing
        return None


def engine_module(info: EngineInfo) -> ModuleType:
    """The module an engine needs, of its very version. Raises HostError."""
    found = module_version(info.module)
    wanted = f"{info.module} {info.version}"
    if found is None:
        raise HostError(wanted, "no such module here", INSTALL[info.module].format(version=info.version))
    if found != info.version:
        raise HostError(f"{wanted}, with which the engine was built", f"{info.module} {found}", rebuild(info))
    return importlib.import_module(info.module)


def check_key(info: EngineInfo, facts: BuiltOn) -> None:
    """Raises HostError when the GPU or its driver is not one the engine was built for."""
    if facts.sm not in info.targets:
        got = f"{facts.name}, compute capability {facts.sm}"
        raise HostError(f"a GPU of compute capability {' or '.join(info.targets)}", got, rebuild(info))
    built = info.device.driver if info.device is not None else None
    if built is not None and _numbers(facts.driver or "0") < _numbers(built):
        fix = f"update the driver, or {rebuild(info)}"
        raise HostError(f"a driver with CUDA {built} or newer, as the engine was built with", f"{facts.driver}", fix)


def check_tensors(info: EngineInfo, dialect: Dialect) -> None:
    """Raises BundleError when the engine's inputs or outputs are not those of its graph."""
    for what in ("inputs", "outputs"):
        mine, wanted = ({t.name: (t.dtype, len(t.shape)) for t in getattr(side, what)} for side in (info, dialect))
        if mine != wanted:
            odd = min(name for name in mine.keys() | wanted.keys() if mine.get(name) != wanted.get(name))
            raise BundleError(f"{odd} among the {what}, {wanted.get(odd)}", f"{mine.get(odd)}", rebuild(info))


def fits(info: EngineInfo, cuda: Cuda) -> ModuleType:
    """The module to open the engine with on this device. Raises HostError naming the first thing that does not fit."""
    check_key(info, cuda.facts)
    return engine_module(info)


def rebuild(info: EngineInfo) -> str:
    """The command that builds an engine that fits."""
    return f"build it here: planish build BUNDLE --profile {info.profile}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
