"""Which shipped profiles fit what was seen, best first, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .accelerators import BoardSeen, GpuSeen
from .host import CpuSeen, MemorySeen
from .schema import Memory, Profile

__all__ = ["Match", "match"]

TOLERANCE = (0.85, 1.12)
"""Seen over printed bytes: an operating system keeps some for itself, and a data sheet's GB may be GiB."""


@dataclass(frozen=True)
class Match:
    """``exact`` when the profile describes this very device, else the nearest one."""

    profile: str
    exact: bool
    reason: str


def match(
    profiles: Iterable[Profile],
    cpu: CpuSeen | None,
    memory: MemorySeen | None,
    gpus: Iterable[GpuSeen],
    board: BoardSeen | None,
) -> tuple[Match, ...]:
    """The board's profile, then one for each kind of card, then the CPU's; a profile once."""
    shelf = list(profiles)
    found: dict[str, Match] = {}
    for one in [*by_board(shelf, board, memory), *by_gpu(shelf, gpus, cpu), *by_cpu(shelf, cpu)]:
        found.setdefault(one.profile, one)
    return tuple(found.values())


def by_board(shelf: list[Profile], board: BoardSeen | None, memory: MemorySeen | None) -> Iterator[Match]:
    """The Jetson whose name the device tree gives, of the right memory size if there is one."""
    if board is None:
        return
    fits = [profile for profile in shelf if any(board.model.startswith(name) for name in profile.boards)]
    seen = memory.total if memory else None
    for profile in sorted(fits, key=lambda one: distance(one.memory, seen)):
        exact = same_size(profile.memory, seen)
        size = f"{seen / 1e9:.1f} GB of memory" if seen else "memory unseen"
        reason = f"the device tree says '{board.model}', {size}"
        if not exact and profile.memory:
            reason += (
                f"; the profile's module has {profile.memory.bytes / 1e9:.0f} GB, so its limits are not this one's"
            )
        yield Match(profile.name, exact, reason)
        return


def by_gpu(shelf: list[Profile], gpus: Iterable[GpuSeen], cpu: CpuSeen | None) -> Iterator[Match]:
    """Each card by the name NVML gives it, else the card of the same compute capability nearest in memory."""
    for gpu in gpus:
        named = [profile for profile in shelf if profile.gpu and gpu.name in profile.gpu.reported_as]
        for profile in named:
            here = cpu is None or cpu.arch == profile.arch
            other = "" if here or cpu is None else f", on {cpu.arch} instead of {profile.arch}"
            yield Match(profile.name, here, f"NVML reports '{gpu.name}'{other}")
        alike = [profile for profile in shelf if profile.gpu and profile.gpu.sm == gpu.sm and not profile.boards]
        if not named and alike:
            profile = min(alike, key=lambda one: distance(one.memory, gpu.memory))
            reason = f"no profile for '{gpu.name}'; the nearest with its compute capability {gpu.sm} by memory size"
            yield Match(profile.name, False, reason)


def by_cpu(shelf: list[Profile], cpu: CpuSeen | None) -> Iterator[Match]:
    """The CPU profile that asks for the most features this CPU has."""
    if cpu is None:
        return
    plain = [profile for profile in shelf if profile.gpu is None and profile.arch == cpu.arch]
    fits = [profile for profile in plain if set(profile.cpu.features) <= set(cpu.features)]
    if fits:
        best = max(fits, key=lambda one: len(one.cpu.features))
        yield Match(best.name, True, f"{cpu.model or cpu.arch} has {', '.join(best.cpu.features)}")


def same_size(printed: Memory | None, seen: int | None) -> bool:
    """Whether the seen bytes can be the printed ones."""
    return printed is not None and seen is not None and TOLERANCE[0] <= seen / printed.bytes <= TOLERANCE[1]


def distance(printed: Memory | None, seen: int | None) -> float:
    """How far apart two memory sizes are; unknown ones are far."""
    return abs(printed.bytes - seen) if printed and seen else float("inf")
