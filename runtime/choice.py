"""Which engine of a bundle runs here: by the manifest, each engine's own description, and this host's facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from planish.errors import BundleError, HostError
from planish.runtime.cuda import Cuda, open_cuda
from planish.runtime.engine_info import EngineInfo, parse_engine_info
from planish.runtime.engine_key import check_tensors, fits
from planish.runtime.engines import check_origin
from planish.runtime.files import ENGINES
from planish.runtime.integrity import Verified, read_verified
from planish.runtime.manifest import EngineEntry

__all__ = ["Choice", "Reasons", "choose_engine", "engine_info", "is_proved", "no_engine"]


Reasons = tuple[tuple[str, HostError], ...]
"""Engines that do not run here, and why."""


@dataclass(frozen=True)
class Choice:
    """An engine that fits, and what opens it."""

    engine_id: str
    info: EngineInfo
    module: ModuleType
    cuda: Cuda


def choose_engine(verified: Verified, number: int = 0, only: str | None = None) -> tuple[Choice | None, Reasons]:
    """The engine for CUDA device ``number``: of those that fit, a proved one first, then the profile of the bundle.

    ``only``: look at no other. What does not fit this host is in the reasons; raises BundleError when an engine is not
    what its manifest says.
    """
    manifest = verified.manifest
    infos = {name: engine_info(verified, name) for name in manifest.engines if only in (None, name)}
    if not infos:
        return None, ()
    try:
        cuda = open_cuda(number)
    except HostError as error:
        return None, tuple((name, error) for name in infos)
    reasons: list[tuple[str, HostError]] = []
    found: list[tuple[Any, Choice]] = []
    for name, info in infos.items():
        try:
            module = fits(info, cuda)
        except HostError as error:
            reasons.append((name, error))
            continue
        rank = (not is_proved(manifest.engines[name], cuda), info.profile != manifest.profile, name)
        found.append((rank, Choice(name, info, module, cuda)))
    best = min(found, key=lambda pair: pair[0])[1] if found else None
    return best, tuple(reasons)


def engine_info(verified: Verified, engine_id: str) -> EngineInfo:
    """The description of an engine, compared with the manifest and the graph. Raises BundleError."""
    entry = verified.manifest.engines[engine_id]
    data = read_verified(verified, entry.info)
    assert data is not None  # the manifest's own check: both files are among its files
    info = parse_engine_info(data, entry.info)
    if info.dialect != entry.dialect:
        raise BundleError(f"an engine of the dialect {entry.dialect}", info.dialect, "build it again")
    check_origin(verified.manifest, info)
    check_tensors(info, verified.manifest.dialects[info.dialect])
    return info


def is_proved(entry: EngineEntry, cuda: Cuda) -> bool:
    """Whether the engine passed the golden set on a GPU and driver like this one."""
    proof: Mapping[str, Any] = entry.proved or {}
    facts = cuda.facts
    return proof.get("device") == {"name": facts.name, "sm": facts.sm, "driver": facts.driver}


def no_engine(reasons: Reasons) -> HostError | BundleError:
    """What to say when an engine was asked for and none can run."""
    if reasons:
        name, error = reasons[0]
        return HostError(f"{error.expected} (engine {name})", error.got, error.fix)
    fix = "planish build BUNDLE --profile P on this device; or pass device='cpu' or 'cuda'"
    return BundleError(f"an engine in the bundle's {ENGINES}", "none", fix)
