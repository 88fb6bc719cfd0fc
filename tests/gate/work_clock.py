"""A clock for tests that only work moves."""

from __future__ import annotations

__all__ = ["WorkClock"]


class WorkClock:
    """Both counters of `planish.gate.clock.Clock` in one: ``now`` seconds, added to by whoever works."""

    def __init__(self) -> None:
        self.now = 0.0

    def cpu(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    def device(self) -> float:
        return 0.0
