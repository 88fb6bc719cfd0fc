"""Ctrl-C is never lost.

Python raises ``KeyboardInterrupt`` wherever the main thread happens to be. In a destructor, in a callback from C++ or
under a library's bare ``except`` it is dropped, and the command runs on as if nobody had asked. So while a command
runs, Ctrl-C is also noted, and what was dropped is raised again at the next step of progress, or at the latest before a
result is renamed into place.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["interruptible", "raise_interrupt"]

_noted = threading.Event()


@contextmanager
def interruptible() -> Iterator[None]:
    """Note every Ctrl-C of a ``with`` block; where somebody else handles the signal, or ignores it, do nothing."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _noted.clear()


def raise_interrupt() -> None:
    """Raise ``KeyboardInterrupt`` if one was noted since `interruptible` began: nobody has listened to it."""
    if _noted.is_set():
        raise KeyboardInterrupt


def _note(number: int, frame: FrameType | None) -> None:
    _noted.set()
    signal.default_int_handler(number, frame)
