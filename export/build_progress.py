"""What a build says while it runs: seconds done of seconds expected, the builder's log; and the way to stop it.

A build runs in a thread of its own and the caller's thread watches it, so that Ctrl-C is heard at once, whichever
thread the builder reports from, and nothing of ours is raised through its C++ frames.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from planish.export.tensorrt_api import Module

__all__ = ["BuildLog", "Phases", "make_monitor", "shared_log", "watch"]

Result = TypeVar("Result")
POLL = 0.05
"""Seconds between two looks at a running build."""
STAGE = "engine (seconds)"
MEMORY = {
    "weights_bytes": r"Total Weights Memory: (\d+) bytes",
    "activation_bytes": r"Total Activation Memory: (\d+) bytes",
    "scratch_bytes": r"Max Scratch Memory: (\d+) bytes",
}
"""What the builder logs of memory; the greatest number of all optimization profiles counts."""


@dataclass
class Phases:
    """How far a build is. ``expected`` is the estimate of its seconds, from before it began.

    The builder counts steps of very different length in nested phases, so the share of steps done is trusted the more
    the further it is; before that, the estimate is.
    """

    expected: float
    started: float = field(default_factory=time.monotonic)
    stopped: bool = False
    open: dict[str, tuple[str | None, int, int]] = field(default_factory=dict)

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of ``steps`` steps begins inside ``parent``."""
        self.open[name] = (parent, 0, max(steps, 1))

    def step(self, name: str, number: int) -> bool:
        """Step ``number`` (from 0) of a phase is done; the answer says whether to go on."""
        if name in self.open:
            parent, _, steps = self.open[name]
            self.open[name] = (parent, min(number + 1, steps), steps)
        return not self.stopped

    def finish(self, name: str) -> None:
        """A phase is over, or was given up."""
        self.open.pop(name, None)

    def share(self) -> float:
        """The share of all steps that is done, 0 to 1: that of the outermost phase, refined by those inside it."""
        total, weight, parent = 0.0, 1.0, None
        while found := next((item for item in list(self.open.items()) if item[1][0] == parent), None):
            name, (_, done, steps) = found
            total += weight * done / steps
            weight /= steps
            if done == steps:
                break
            parent = name
        return min(total, 1.0)

    def remaining(self, now: float | None = None) -> float:
        """Seconds still to go."""
        elapsed = (time.monotonic() if now is None else now) - self.started
        share = self.share()
        by_steps = elapsed * (1 - share) / share if share > 0 else self.expected
        by_estimate = max(self.expected - elapsed, self.expected * 0.05)
        return share * by_steps + (1 - share) * by_estimate


class BuildLog:
    """Lines of one build's log; the module keeps its first logger for good, so there is one a process."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def add(self, severity: str, message: str) -> None:
        """Keeps what may be of use: all but ``VERBOSE``."""
        if severity != "VERBOSE":
            self.lines.append((severity, message))

    def errors(self) -> list[str]:
        """What went wrong, first things first."""
        return [message for severity, message in self.lines if severity in ("ERROR", "INTERNAL_ERROR")]

    def warnings(self) -> list[str]:
        """Warnings, each once. That inputs have int64 bindings is no news."""
        told = dict.fromkeys(message for severity, message in self.lines if severity == "WARNING")
        return [message for message in told if "has Int64 binding" not in message]

    def memory(self) -> dict[str, int | None]:
        """Bytes of weights, activations and scratch space, as far as the builder told."""
        text = "\n".join(message for severity, message in self.lines if severity == "INFO")
        found = {name: [int(size) for size in re.findall(pattern, text)] for name, pattern in MEMORY.items()}
        return {name: max(sizes, default=None) for name, sizes in found.items()}


_LOGGERS: dict[str, Any] = {}


def shared_log(module: Module) -> tuple[Any, BuildLog]:
    """The module's one logger, and an empty log that it fills from now on."""
    if module.__name__ not in _LOGGERS:
        base: Any = module.ILogger

        class Relay(base):  # type: ignore[misc]  # the module is known at run time only
            """Hands each line to the log of the build that runs."""

            def __init__(self) -> None:
                base.__init__(self)
                self.target = BuildLog()

            def log(self, severity: Any, message: str) -> None:
                with contextlib.suppress(Exception):  # it would pass through the builder's own frames
                    self.target.add(severity.name, message)

        _LOGGERS[module.__name__] = Relay()
    logger = _LOGGERS[module.__name__]
    logger.target = BuildLog()
    return logger, logger.target


def make_monitor(module: Module, phases: Phases) -> Any:
    """The module's progress monitor, which keeps ``phases``."""
    base: Any = module.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]  # the module is known at run time only
        """Called by the builder, from its threads."""

        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return phases.step(phase_name, step)

    return Monitor()


def watch(
    build: Callable[[], Result], phases: Phases, progress: Callable[[str, int, int], None] | None = None
) -> Result:
    """Runs ``build`` in a thread and reports its seconds; whatever is raised here stops it first.

    The builder stops at its next step, which may take seconds. To leave it running while Python ends would abort the
    process, so a second Ctrl-C changes nothing.
    """
    results: list[Result] = []
    failures: list[BaseException] = []
    # Not Thread.join(): interrupted, it takes a thread that still runs for one that has ended (Python 3.10 and 3.11).
    done = threading.Event()

    def run() -> None:
        try:
            results.append(build())
        except BaseException as error:  # raised again in the caller's thread
            failures.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=run, name="planish-build", daemon=True)
    try:
        thread.start()
        while not done.wait(POLL):
            if progress is not None:
                elapsed = time.monotonic() - phases.started
                progress(STAGE, int(elapsed), int(elapsed + phases.remaining()) + 1)
    except BaseException:
        phases.stopped = True
        if thread.ident is not None:
            finish(done)
        raise
    if failures:
        raise failures[0]
    return results[0]


def finish(done: threading.Event) -> None:
    """Waits for a build that was told to stop."""
    while not done.is_set():
        with contextlib.suppress(KeyboardInterrupt):
            done.wait()
