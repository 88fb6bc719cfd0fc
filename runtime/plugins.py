"""Execution providers that come as packages of their own (OpenVINO, TensorRT-RTX, WebGPU, ...), found by their names.

Such a package is a module ``onnxruntime_ep_<word>`` with ``get_library_path()`` and ``get_ep_names()``, as ONNX
Runtime's packaging guidance asks (version 1.23 and newer can load them). Finding one imports nothing: importing some
changes the process. A device ``<word>`` chooses it; a provider's name in ``providers`` does, too.
"""

from __future__ import annotations

import importlib
import pkgutil
import threading
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from planish.errors import HostError

__all__ = ["KNOWN", "Plugin", "installed_plugins", "plugin_devices", "plugin_of_provider"]

PREFIX = "onnxruntime_ep_"
KNOWN = {
    "openvino": "OpenVINOExecutionProvider",
    "nv-tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
    "mlx": "MLXExecutionProvider",
}
"""Device words worth naming where nothing is installed, and the provider behind each."""

_registered: set[str] = set()
_lock = threading.Lock()


@dataclass(frozen=True)
class Plugin:
    """An installed package with a provider; ``word`` is the device that chooses it."""

    word: str
    module: str

    @property
    def install(self) -> str:
        return f"pip install onnxruntime-ep-{self.word}"


def installed_plugins() -> dict[str, Plugin]:
    """Plugins by device word. Looks at the names on the path, and imports nothing."""
    found = sorted(module.name for module in pkgutil.iter_modules() if module.name.startswith(PREFIX))
    plugins = [Plugin(name[len(PREFIX) :].replace("_", "-"), name) for name in found]
    return {plugin.word: plugin for plugin in plugins}


def plugin_of_provider(provider: str) -> Plugin | None:
    """The installed plugin that has a provider of this name; imports those it has to ask."""
    for word, plugin in installed_plugins().items():
        if KNOWN.get(word) == provider or provider in _names(plugin):
            return plugin
    return None


def plugin_devices(library: ModuleType, plugin: Plugin, number: int | None = None) -> tuple[str, list[Any]]:
    """The provider's name and its devices on this host (one of them if ``number`` says which), ready for a session.

    Registers the plugin's library with ONNX Runtime, once a process. Raises HostError when it cannot be loaded or
    offers no device here.
    """
    names = _names(plugin)
    _register(library, plugin)
    devices = [device for device in library.get_ep_devices() if device.ep_name in names]
    if not devices:
        got = f"none: {plugin.module} sees nothing here that it can use"
        raise HostError(f"a device for {' or '.join(names)}", got, "pass device='cpu', or look at its driver")
    if number is not None and number >= len(devices):
        raise HostError(f"device {number} of {plugin.word}", f"only 0 to {len(devices) - 1}", "pass another number")
    # One session's devices belong to one provider.
    chosen = devices if number is None else [devices[number]]
    name: str = chosen[0].ep_name
    return name, [device for device in chosen if device.ep_name == name]


def _names(plugin: Plugin) -> list[str]:
    module = _load(plugin)
    if hasattr(module, "get_ep_names"):
        return [str(name) for name in module.get_ep_names()]
    return [str(module.get_ep_name())]


def _load(plugin: Plugin) -> ModuleType:
    try:
        module = importlib.import_module(plugin.module)
        if hasattr(module, "get_library_path") and (hasattr(module, "get_ep_names") or hasattr(module, "get_ep_name")):
            return module
        got = "none of them"
    except (ImportError, OSError) as error:
        got = (str(error).splitlines() or [type(error).__name__])[0][:200]
    raise HostError(f"get_library_path and get_ep_names in {plugin.module}", got, f"{plugin.install} again")


def _register(library: ModuleType, plugin: Plugin) -> None:
    with _lock:
        if plugin.module in _registered:
            return
        try:
            library.register_execution_provider_library(plugin.module, str(_load(plugin).get_library_path()))
        except Exception as error:  # ONNX Runtime's errors, and FileNotFoundError of a package without its library
            got = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            fix = f"upgrade onnxruntime, or {plugin.install} again"
            raise HostError(f"a library of {plugin.module} that this onnxruntime loads", got, fix) from error
        _registered.add(plugin.module)
