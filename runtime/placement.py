"""Where a session runs: from a device's name, the bundle's profile and what this host has. Nothing is tried out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from planish.errors import HostError, RequestError, nearest
from planish.runtime import plugins

__all__ = ["CPU", "CUDA", "Device", "Placement", "parse_device", "place", "place_on"]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
NUMBERED = ("cuda", "tensorrt")
MEANT = {"gpu": "cuda", "nvidia": "cuda", "trt": "tensorrt", "intel": "openvino", "host": "cpu"}
"""What people type, and the word for it here."""


@dataclass(frozen=True)
class Device:
    """A device as a caller named it: ``auto``, ``cpu``, ``cuda``, ``tensorrt`` or a plugin's word, and its number."""

    word: str
    number: int | None = None


@dataclass(frozen=True)
class Placement:
    """Execution providers in order, and the options of each; ``ep_devices`` where the first is a plugin's."""

    providers: tuple[str, ...]
    options: tuple[Mapping[str, Any], ...]
    ep_devices: tuple[Any, ...] = ()


def parse_device(device: Any) -> Device:
    """The parts of ``cuda:1``, say. Raises RequestError for words that mean nothing.

    >>> parse_device("tensorrt:0")
    Device(word='tensorrt', number=0)
    """
    match = re.fullmatch(r"([a-z0-9-]+)(?::(\d{1,3}))?", str(device))
    words = ["auto", "cpu", *NUMBERED, *plugins.KNOWN]
    if match is None or match[1] not in words:
        words += plugins.installed_plugins()  # only now: it looks through every folder of the path
    if match is None or match[1] not in words or (match[2] is not None and match[1] in ("auto", "cpu")):
        asked = str(device).split(":")[0]
        fix = f"did you mean {MEANT[asked]!r}?" if asked in MEANT else nearest(asked, words)
        raise RequestError("device auto, cpu, cuda, tensorrt (both also :N) or a plugin's", repr(device), fix)
    return Device(match[1], None if match[2] is None else int(match[2]))


def place_on(
    library: ModuleType,
    device: Device,
    profile: str | None,
    providers: Sequence[Any] | None = None,
    provider_options: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
) -> Placement:
    """As :func:`place`, plugins included, for the ONNX Runtime of this process."""
    available = library.get_available_providers()
    if device.word == "auto" and providers is None and CUDA in available and not _cuda_may_be_here():
        available = [name for name in available if name != CUDA]
    plugin, number = None, None
    if providers is None and device.word not in ("auto", "cpu", "cuda"):
        provider = plugins.KNOWN.get(device.word, device.word)
        if provider in available:  # a build of ONNX Runtime that has it inside
            return place(available, "auto", profile, [provider, CPU], provider_options)
        plugin, number = plugins.installed_plugins().get(device.word), device.number
        if plugin is None:
            fix = f"{plugins.Plugin(device.word, '').install}, or pass device='cpu'"
            raise HostError(f"the provider {provider}", f"only {', '.join(available)}", fix)
    elif providers is not None:
        named = _named_providers(providers)
        if named and named[0][0] not in available:
            plugin = plugins.plugin_of_provider(named[0][0])
    if plugin is None:
        word = device.word if device.number is None else f"{device.word}:{device.number}"
        return place(available, word, profile, providers, provider_options)
    name, found = plugins.plugin_devices(library, plugin, number)
    chosen = [(name, named[0][1] if providers is not None else {})]
    return Placement((name,), _merge_options(chosen, provider_options), tuple(found))


def _cuda_may_be_here() -> bool:
    """False where the driver or the device is missing; a library that only ONNX Runtime finds is given a chance."""
    from planish.runtime.cuda import CudaError, device_count
    from planish.runtime.cudart import load_cudart

    try:
        library = load_cudart()
    except HostError:
        return True
    try:
        return device_count(library) > 0
    except CudaError:
        return False


def place(
    available: Sequence[str],
    device: str,
    profile: str | None,
    providers: Sequence[Any] | None = None,
    provider_options: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
) -> Placement:
    """Execution providers for a device, or those asked for, unchanged.

    ``auto`` is CUDA when the bundle was made for a GPU and this host has it, else the CPU. ``providers`` (names, or
    pairs of name and options, as ONNX Runtime takes them) overrule ``device``. Raises RequestError for words that mean
    nothing and HostError for providers this host has not.
    """
    if providers is None:
        chosen: list[tuple[str, Mapping[str, Any]]] = _providers_of(device, available, profile)
    else:
        if device != "auto":
            raise RequestError("device or providers", f"both ({device!r} too)", "leave one out")
        chosen = _named_providers(providers)
    if not chosen:
        raise RequestError("at least one provider", "none", f"available here: {', '.join(available)}")
    for name, _ in chosen:
        if name not in available:
            raise HostError(
                f"the provider {name}", f"only {', '.join(available)}", "install the onnxruntime that has it"
            )
    return Placement(tuple(name for name, _ in chosen), _merge_options(chosen, provider_options))


def _named_providers(providers: Any) -> list[tuple[str, Mapping[str, Any]]]:
    fix = f'pass providers=["{CPU}"], or [("{CPU}", {{}})] with options'
    if isinstance(providers, (str, bytes)) or not isinstance(providers, Sequence):
        raise RequestError("a list of providers", repr(providers)[:80], fix)
    chosen: list[tuple[str, Mapping[str, Any]]] = []
    for item in providers:
        name, options = item if isinstance(item, (tuple, list)) and len(item) == 2 else (item, {})
        if not isinstance(name, str) or not isinstance(options, Mapping):
            raise RequestError("a provider's name, or a pair of name and options", repr(item)[:80], fix)
        chosen.append((name, dict(options)))
    return chosen


def _providers_of(device: str, available: Sequence[str], profile: str | None) -> list[tuple[str, Mapping[str, Any]]]:
    wanted = parse_device(device)
    made_for_gpu = profile is not None and not profile.startswith("cpu-")
    if wanted.word == "cpu" or (wanted.word == "auto" and not (made_for_gpu and CUDA in available)):
        return [(CPU, {})]
    return [(CUDA, {} if wanted.number is None else {"device_id": str(wanted.number)}), (CPU, {})]


def _merge_options(
    chosen: Sequence[tuple[str, Mapping[str, Any]]],
    extra: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None,
) -> tuple[Mapping[str, Any], ...]:
    own = [options for _, options in chosen]
    given = [extra] if isinstance(extra, Mapping) else () if extra is None else extra
    if not isinstance(given, Sequence) or not all(isinstance(each, Mapping) for each in given):
        fix = 'pass provider_options=[{"name": "value"}]'
        raise RequestError("options as a mapping, or a list of them", repr(extra)[:80], fix)
    more: list[Mapping[str, Any]] = list(given)
    if len(more) > len(own):
        raise RequestError(f"options for {len(own)} providers", f"{len(more)}", "one dict a provider, in their order")
    more += [{}] * (len(own) - len(more))
    return tuple({**mine, **theirs} for mine, theirs in zip(own, more, strict=True))
