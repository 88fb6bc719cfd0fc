"""Joules for one inference, from whatever meter the machine has.

- processors: RAPL's counters of packages and of memory that is not part of a package (``/sys/class/powercap``);
- NVIDIA cards: NVML's counter of the whole card, since the driver was loaded (Volta and later);
- Jetsons: the board's power as jtop tells it, integrated over time.

All three see everything that runs beside the model, and what the machine draws when it does nothing: on a busy machine
the figure is too high. A block of inferences lasts long enough for the meter's step; the median of six
blocks is the estimate, and the lowest and the highest hold the true median in 97 % of cases, however the noise is
spread (order statistics: 1 - 2 / 2**6).

Sources: the kernel's ``power/powercap``; Khan et al. (2018), RAPL in Action, ACM TOMPECS 3(2); nvml.h; jetson-stats.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from planish.bindings import import_quietly
from planish.errors import InconclusiveError
from planish.gate.conditions import HERE, number_of
from planish.gate.gpu_state import handle_of, nvml_session
from planish.gate.statistics import Interval
from planish.system_files import read_text

__all__ = ["JtopMeter", "Meter", "NvmlMeter", "RaplMeter", "joules_per_inference", "open_meter"]

BLOCKS = 6
MOST_INFERENCES = 1_000_000
JTOP_SECONDS = 0.5  # between two looks of jtop's service; ours come five times as often


class Meter(Protocol):
    """A count of joules that only grows.

    Attributes:
        name: what is counted, in words.
        least_seconds: how long a block must last, so that the meter's own step is small beside it.
    """

    name: str
    least_seconds: float

    def joules(self) -> float: ...


class RaplMeter:
    """The powercap counters, in microjoules; each starts over at its own limit.

    Raises:
        InconclusiveError: there are none, or only root may read them.
    """

    name = "processors and memory, by RAPL"
    least_seconds = 0.3  # the counters move every millisecond

    def __init__(self, root: Path = HERE) -> None:
        self.domains = rapl_domains(root)
        if not self.domains:
            fix = "measure on the bare machine: virtual ones have none"
            raise InconclusiveError("an energy counter of the processors (RAPL)", "none", fix)
        self.last = {domain: self.read(domain) for domain in self.domains}
        self.total = 0  # microjoules

    def read(self, domain: Path) -> int:
        value = number_of(domain / "energy_uj")
        if value is None:
            fix = f"type as root: chmod a+r {domain / 'energy_uj'}"
            raise InconclusiveError("a readable energy counter of the processors (RAPL)", "permission denied", fix)
        return value

    def limit(self, domain: Path) -> int:
        """Where the counter starts over: minutes away at full power, so at most once between two looks."""
        return number_of(domain / "max_energy_range_uj") or 0

    def joules(self) -> float:
        for domain in self.domains:
            value = self.read(domain)
            self.total += value - self.last[domain] + (self.limit(domain) if value < self.last[domain] else 0)
            self.last[domain] = value
        return self.total / 1e6


def rapl_domains(root: Path) -> list[Path]:
    """Packages, and memory beside them; cores and graphics are part of a package, "psys" is the whole once more."""
    zones = sorted(path for path in root.glob("sys/class/powercap/intel-rapl:*") if is_zone(path.name))
    return [zone for zone in zones if re.fullmatch(r"package-\d+(-die-\d+)?|dram", read_text(zone / "name") or "")]


def is_zone(name: str) -> bool:
    """
    >>> is_zone("intel-rapl:0"), is_zone("intel-rapl:0:2"), is_zone("intel-rapl-mmio:0")
    (True, True, False)
    """
    return re.fullmatch(r"intel-rapl(:\d+){1,2}", name) is not None


class NvmlMeter:
    """The whole card's counter, in millijoules.

    Raises:
        InconclusiveError: no NVML, or the card has no such counter.
    """

    name = "the GPU, by NVML"
    least_seconds = 2.0  # the counter follows a power reading of some ten times a second

    def __init__(self, nvml: Any | None, index: int) -> None:
        self.nvml: Any = nvml
        if nvml is None:
            raise InconclusiveError("NVML, to read the GPU's energy", "none that starts", "pip install nvidia-ml-py")
        try:
            self.handle = handle_of(nvml, index)
            self.joules()
        except InconclusiveError:
            raise
        except Exception as error:
            fix = "it takes Volta or later"
            raise InconclusiveError("an energy counter of the GPU (NVML)", str(error), fix) from None

    def joules(self) -> float:
        return float(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)) / 1000


class JtopMeter:
    """A board's power, in milliwatts, integrated by trapezoids; a thread of its own looks while the model runs."""

    name = "the board, by jtop"
    least_seconds = 5.0

    def __init__(self, jetson: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self.jetson, self.clock = jetson, clock
        self.lock, self.total = threading.Lock(), 0.0
        self.at, self.watts = clock(), self.read()

    def read(self) -> float:
        try:
            watts = float(self.jetson.power["tot"]["power"]) / 1000
        except Exception as error:  # boards without sensors have no "tot"; the service may stop
            raise InconclusiveError("the board's power (jtop)", repr(error), "look with: jtop") from None
        return watts

    def joules(self) -> float:
        """Add what was drawn since the last look."""
        with self.lock:
            at, watts = self.clock(), self.read()
            self.total += (at - self.at) * (watts + self.watts) / 2
            self.at, self.watts = at, watts
            return self.total

    @contextmanager
    def looking(self) -> Iterator[JtopMeter]:
        """Look five times for each of jtop's own looks."""
        done = threading.Event()

        def look() -> None:
            while not done.wait(JTOP_SECONDS / 5):
                try:
                    self.joules()
                except InconclusiveError:  # the measuring thread meets it, too, and says so
                    return

        thread = threading.Thread(target=look, name="planish-jtop", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            done.set()
            thread.join()


@contextmanager
def open_meter(
    card: int | None, *, root: Path = HERE, nvml: Any | None = None, jtop: Any | None = None
) -> Iterator[Meter]:
    """The meter of CUDA's device ``card``, or of the processors (None); without either, that of a Jetson's board.

    Raises:
        InconclusiveError: there is none, or it may not be read.
    """
    jtop = jtop or (import_quietly("jtop") if root == HERE else None)
    with ExitStack() as stack:
        try:
            meter: Meter = RaplMeter(root) if card is None else NvmlMeter(stack.enter_context(nvml_session(nvml)), card)
        except InconclusiveError:
            if jtop is None:
                raise
            meter = stack.enter_context(JtopMeter(stack.enter_context(jtop_session(jtop))).looking())
        yield meter


@contextmanager
def jtop_session(jtop: Any) -> Iterator[Any]:
    """A connection to jtop's service."""
    try:
        session = jtop.jtop(interval=JTOP_SECONDS)
        jetson = session.__enter__()
    except Exception as error:
        raise InconclusiveError("jtop's service", str(error) or repr(error), "sudo systemctl start jtop") from None
    try:
        yield jetson
    finally:
        session.__exit__(None, None, None)


def joules_per_inference(
    run: Callable[[], object], meter: Meter, clock: Callable[[], float] = time.perf_counter
) -> Interval:
    """Median of six blocks of ``run``; the bounds are the lowest and the highest block.

    Raises:
        InconclusiveError: the meter stood still or ran backwards in a block.
    """
    run()
    begun = clock()
    run()
    took = clock() - begun
    count = min(MOST_INFERENCES, math.ceil(meter.least_seconds / took)) if took > 0 else 1
    found = []
    for _ in range(BLOCKS):
        before = meter.joules()
        for _ in range(count):
            run()
        found.append((meter.joules() - before) / count)
    if not all(0 < joules < math.inf for joules in found):
        got = f"{min(found):g} J for one of {BLOCKS} blocks"
        raise InconclusiveError(f"an energy meter that moves ({meter.name})", got, "measure on another machine")
    confidence = 1 - 2.0 ** (1 - BLOCKS)
    return Interval(float(np.median(found)), min(found), max(found), confidence, f"range of {BLOCKS} blocks")
