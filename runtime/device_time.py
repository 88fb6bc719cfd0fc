"""Seconds the engines of this process have computed, by the device's own clock: what ``time.process_time`` is for CPUs.

TensorRT engines add to it while it is counted: the time between two CUDA events, one before and one after the
execution (NVIDIA's tools call it GPU compute time; copies are not in it). Marking costs a few microseconds a run, so it
is counted only when asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["add_device_time", "device_time", "device_time_counted", "is_device_time_counted"]


class _Counter:
    def __init__(self) -> None:
        self.lock, self.seconds, self.askers = threading.Lock(), 0.0, 0


_counter = _Counter()


def device_time() -> float:
    """Seconds so far; it grows only inside :func:`device_time_counted`."""
    return _counter.seconds


@contextmanager
def device_time_counted() -> Iterator[None]:
    """Count what engines compute in a ``with`` block; blocks may overlap."""
    with _counter.lock:
        _counter.askers += 1
    try:
        yield
    finally:
        with _counter.lock:
            _counter.askers -= 1


def is_device_time_counted() -> bool:
    return _counter.askers > 0


def add_device_time(seconds: float) -> None:
    """What an engine has just computed."""
    with _counter.lock:
        _counter.seconds += seconds
