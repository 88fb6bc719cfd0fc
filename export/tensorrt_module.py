"""Which TensorRT is here, and what it can build for.

``tensorrt`` builds for the device it runs on. ``tensorrt_rtx`` builds, without any device, for the compute capabilities
it was made for: Turing, Ampere, Ada and Blackwell cards, but neither Jetson nor data center Hopper and Blackwell.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any, cast

from planish.errors import HostError, InputError, ProfileError
from planish.export.tensorrt_api import Module
from planish.profiles import Profile
from planish.runtime import BuiltOn, engine_id

__all__ = ["ENGINES", "MODULES", "Chosen", "choose", "load_module", "offered"]

MODULES = ("tensorrt", "tensorrt_rtx")
"""In order of preference."""
ENGINES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
"""A module and the name of its engine in profiles."""
INSTALL = {
    "tensorrt": "install TensorRT from NVIDIA (on a Jetson: sudo apt install python3-libnvinfer)",
    "tensorrt_rtx": "pip install tensorrt_rtx_cu12",
}


@dataclass(frozen=True)
class Chosen:
    """A module to build with, ``tensorrt`` or ``tensorrt_rtx`` by ``name``.

    ``target`` is the compute capability to build for; ``device`` this host's GPU if it is of that capability.
    """

    name: str
    module: Module
    target: str
    device: BuiltOn | None

    @property
    def version(self) -> str:
        """The module's own version."""
        return self.module.__version__

    def engine_id(self, profile: Profile) -> str:
        """The folder of the engine in a bundle (docs/formats.md, section 5c)."""
        return engine_id(self.name, self.version, [self.target], profile.name)


def load_module(name: str) -> Module:
    """The module ``tensorrt`` or ``tensorrt_rtx``, which share one interface.

    Raises:
        HostError: it is not installed, or does not load.
    """
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        missing = importlib.util.find_spec(name) is None
        got = "none installed" if missing else f"one that does not load: {error}"
        raise HostError(f"the module {name}", got, INSTALL[name]) from error
    if not hasattr(module, "Builder"):  # the stub that the package index carries in place of the libraries
        raise HostError(f"the module {name}", "one without a builder", INSTALL[name])
    return cast(Module, module)


def offered(profile: Profile) -> list[str]:
    """The modules that serve a profile, in order of preference; raises ``ProfileError`` if there are none."""
    names = [name for name in MODULES if profile.engine(ENGINES[name])]
    if not names or profile.gpu is None:
        known = ", ".join(sorted(engine.name for engine in profile.engines))
        raise ProfileError("a profile with a TensorRT engine", f"{profile.name}, which has {known}", "choose another")
    return names


def choose(profile: Profile, device: BuiltOn | None, wanted: str | None = None) -> Chosen:
    """The module to build with on this host, for the GPU of ``profile``.

    Without ``wanted``: the first of ``tensorrt`` and ``tensorrt_rtx`` that can build for it here.

    Raises:
        ProfileError: the profile has no TensorRT engine.
        InputError: ``wanted`` is no module we know.
        HostError: what is here does not serve this profile, or cannot build for its device from this host; the message
            says where, and how.
    """
    names = offered(profile)
    if wanted is not None and wanted not in MODULES:
        raise InputError(f"--module {' or '.join(MODULES)}", repr(wanted), "leave it out to take what is here")
    assert profile.gpu is not None
    reasons: list[HostError] = []
    for name in [wanted] if wanted else list(MODULES):
        try:
            module = load_module(name)
            check_target(name, module, profile, device)
            check_offered(name, names, profile)
            return Chosen(name, module, profile.gpu.sm, device if device and device.sm == profile.gpu.sm else None)
        except HostError as error:
            reasons.append(error)
    raise nearest_reason(reasons, names, wanted)


def nearest_reason(reasons: list[HostError], names: list[str], wanted: str | None) -> HostError:
    """The refusal that says most: of the module asked for, else of one that is installed, else of the preferred one."""
    if wanted or len(reasons) == 1:
        return reasons[0]
    installed = [reason for reason in reasons if not reason.expected.startswith("the module ")]
    return installed[-1] if installed else reasons[MODULES.index(names[-1])]


def check_target(name: str, module: Module, profile: Profile, device: BuiltOn | None) -> None:
    """Raise ``HostError`` if this module, on this host, cannot build for the GPU of ``profile``."""
    assert profile.gpu is not None
    sm = profile.gpu.sm
    command = command_there(profile)
    if explicit_targets(module):
        known = targets(module)
        if sm not in known:
            here = f"{name} {module.__version__}, which builds for {', '.join(known)} only"
            raise HostError(
                f"a TensorRT that builds for compute capability {sm} ({profile.gpu.name})",
                here,
                f"install TensorRT on that device, copy the bundle there, and type there: {command}",
            )
        return
    if device is None:
        raise HostError(
            f"a GPU of compute capability {sm}, since {name} builds for the device it runs on",
            "no NVIDIA GPU on this host",
            f"copy the bundle to the device, and type there: {command}",
        )
    if device.sm != sm:
        raise HostError(
            f"a GPU of compute capability {sm} ({profile.gpu.name}), since {name} builds for the device it runs on",
            f"{device.name} with {device.sm}",
            f"copy the bundle to that device, and type there: {command}; or take the profile of this one",
        )


def check_offered(name: str, names: list[str], profile: Profile) -> None:
    """Raise ``HostError`` if the profile does not list this module's engine: NVIDIA does not support it there."""
    if name not in names:
        raise HostError(
            f"an engine that profile {profile.name} lists ({', '.join(ENGINES[known] for known in names)})",
            f"{name} alone, which could build for compute capability {profile.gpu.sm if profile.gpu else 'none'}",
            f"copy the bundle to the device, and type there: {command_there(profile)}",
        )


def command_there(profile: Profile) -> str:
    """What to type on the device itself."""
    return f"planish build BUNDLE --profile {profile.name} --module tensorrt"


def explicit_targets(module: Any) -> bool:
    """Whether the module builds for compute capabilities one names, and not for the device it finds."""
    return hasattr(module.IBuilderConfig, "set_compute_capability") and bool(targets(module))


def targets(module: Any) -> list[str]:
    """The compute capabilities a module names, as ("8.6", "12.0"); none in full TensorRT.

    >>> class Capability:
    ...     __members__ = {"NONE": 0, "CURRENT": 1, "SM75": 75, "SM120": 120}
    >>> class Fake:
    ...     ComputeCapability = Capability
    >>> targets(Fake)
    ['7.5', '12.0']
    """
    members = getattr(getattr(module, "ComputeCapability", None), "__members__", {})
    return [f"{name[2:-1]}.{name[-1]}" for name in members if name.startswith("SM") and name[2:].isdigit()]
