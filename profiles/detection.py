"""A look at the host: hardware, software, what could not be seen, and the shipped profiles that fit."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .accelerators import BoardSeen, GpuSeen, read_board, read_gpus, with_jtop
from .host import CpuSeen, MemorySeen, read_cpu, read_memory
from .loading import load, names
from .match import Match, match
from .schema import bare
from .software import SoftwareSeen, read_software

__all__ = ["Detection", "detect"]


@dataclass(frozen=True)
class Detection:
    """``unseen`` says what could not be seen and why; ``matches`` are profiles, best first."""

    cpu: CpuSeen | None
    memory: MemorySeen | None
    gpus: tuple[GpuSeen, ...]
    board: BoardSeen | None
    software: SoftwareSeen
    matches: tuple[Match, ...]
    unseen: tuple[str, ...]

    @property
    def profile(self) -> str | None:
        """The name of the best profile, None if none fits."""
        return self.matches[0].profile if self.matches else None

    def to_json(self) -> dict[str, Any]:
        """Lists and dicts only; ``profile``, ``gpus``, ``matches`` and ``unseen`` are there even when empty."""
        lists = {"gpus": bare([asdict(gpu) for gpu in self.gpus]), "matches": [asdict(one) for one in self.matches]}
        return {**bare(asdict(self)), **lists, "profile": self.profile, "unseen": list(self.unseen)}


def detect(root: Path = Path("/"), *, nvml: Any | None = None, jtop: Any | None = None) -> Detection:
    """What this host is. Never raises for what it cannot see, and makes no CUDA context.

    ``root`` reads the files of another machine from a copy; then NVML and jtop, which speak of this one, are asked
    only if given.
    """
    unseen: list[str] = []
    cpu, memory = read_cpu(root), read_memory(root)
    if cpu is None:
        unseen.append(f"CPU: {root / 'proc/cpuinfo'} is missing or empty (not Linux?)")
    if memory is None:
        unseen.append(f"memory: {root / 'proc/meminfo'} is missing or empty (not Linux?)")
    board = read_board(root, unseen)
    gpus = read_gpus(root, nvml, unseen)
    if board is not None:
        board = with_jtop(board, root, jtop, unseen)
    software = read_software(unseen)
    matches = match(map(load, names()), cpu, memory, gpus, board)
    return Detection(cpu, memory, gpus, board, software, matches, tuple(unseen))
