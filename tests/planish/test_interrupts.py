"""Ctrl-C that a library swallowed is raised again, and only while a command runs."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from planish import say
from planish.interrupts import interruptible, raise_interrupt
from planish.outputs import staging


def swallow() -> None:
    """What a destructor, a C++ callback or a bare except does with Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        signal.sigtimedwait([], 0.01)  # the handler runs here at the latest


def in_a_result(folder: Path) -> None:
    with staging(folder / "out") as place:
        (place / "file").write_text("x")
        swallow()


def in_progress(_: Path) -> None:
    with say.progress_bar() as progress:
        progress("trace", 0, 1)
        swallow()
        progress("parity", 0, 1)


@pytest.mark.parametrize("work", [in_a_result, in_progress])
def test_a_swallowed_interrupt_is_raised_again(work: Callable[[Path], None], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), interruptible():
        work(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    raise_interrupt()  # forgotten: the next command begins anew


def test_an_interrupt_strikes_at_once() -> None:
    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()

    with pytest.raises(KeyboardInterrupt), interruptible():
        work()


def test_a_library_s_user_notes_nothing(tmp_path: Path) -> None:
    swallow()
    in_a_result(tmp_path)
    assert (tmp_path / "out" / "file").read_text() == "x"


def test_other_handlers_and_threads_are_left_alone() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    seen: list[object] = []

    def look() -> None:
        with interruptible():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
