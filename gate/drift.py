"""Did the machine, or the ratio, change while latency was measured?

Pairs cancel what slows both sides alike. Two things they do not cancel, and either makes latency inconclusive:

**A trend in the ratio.** Kendall's rank correlation between the log ratios and their order, two-sided, at 0.1 %; and
size: the Theil-Sen line moves by at least 1 % over the run and by 2.5 times the scatter of the sittings about it (less
is noise, which the interval holds already; and where noise remembers, many sittings make any wandering significant);
and if it went on for as long again, the verdict would be another. A ratio that moves from 0.45 to 0.50 under a limit of
1.05 is no open question.

**Another machine than before**: a frequency that fell (of the last third of the looks, three in four lie 20 % below
three in four of the first third), a thermal throttle that held for more than 1 % of the time (where the kernel counts
events only: any), a GPU slowed by heat or by a power brake in more than a tenth of the looks, another power mode,
governor or power limit, a zone within 2 degrees of its trip point. One look is taken after each sitting. Such a change
overturns nothing on which every single sitting agrees: if all ratios lie on one side of the limit, the verdict stands.

Simulated, equal models with 3 % of noise and a limit of 1.05: the trend overturns at most 0.1 % of the verdicts; where
half of a sitting's noise is left from the one before, 0.6 % of 9 sittings, 1.5 % of 19, 0.1 % of 60. It sees a ratio
that moves by 10 % (noise 1.5 %) in 54 % of the runs of 9 sittings and in all of 19; a step of 10 % in 88 % of 27. On
two processors at load 12, MiniLM against itself (40 and 36 sittings, scatter 6 %): no run of 9 to 40 in a row was
overturned.

Load, stolen time and pressure are no reason by themselves: they make times noisy, and noise is in the interval. They
are told where it came out too wide.

Sources: Kendall (1938), Biometrika 30; Mann (1945), Econometrica 13, the test for trend; Sen (1968), JASA 63.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planish.gate.conditions import Conditions, read_conditions
from planish.gate.conditions_told import busy_words, share
from planish.gate.gpu_state import SLOWING

__all__ = ["Trend", "Watch", "changes", "trend_of"]

Floats = NDArray[np.float64]

TREND_ALPHA = 0.001
TREND_SIZE = 0.01  # of the log ratio, over the run
OVER_SCATTER = 2.5
SLOWER = 0.20  # share by which a frequency falls
THROTTLED = 0.01  # share of the time
REASONS_SHARE = 0.1  # of the looks; one alone may be a change of the power state (nvml.h)
HEADROOM = 2.0  # degrees Celsius below a trip point
EXACT_LIMIT = 50


@dataclass(frozen=True)
class Trend:
    """The log ratio over the sittings.

    Attributes:
        tau, p: Kendall's.
        start, end: the Theil-Sen line at the first and at the last sitting.
        scatter: standard deviation of the sittings about the line.
    """

    tau: float = 0.0
    p: float = 1.0
    start: float = 0.0
    end: float = 0.0
    scatter: float = 0.0

    @property
    def real(self) -> bool:
        """Significant, and of a size that matters."""
        return self.p < TREND_ALPHA and abs(self.end - self.start) >= max(TREND_SIZE, OVER_SCATTER * self.scatter)

    def crosses(self, bound: float) -> bool:
        """Would the line, going on for as long again, lie on both sides of ``bound`` (a log ratio)?"""
        ends = (self.start, self.end, 2 * self.end - self.start)
        return self.real and min(ends) <= bound < max(ends)

    def told(self) -> str:
        return f"the ratio moved from {math.exp(self.start):.3f} to {math.exp(self.end):.3f} while it was measured"

    def to_json(self) -> dict[str, float]:
        ends = {"start": math.exp(self.start), "end": math.exp(self.end)}
        return {"tau": self.tau, "p": self.p, **ends, "scatter": self.scatter}


def trend_of(values: Floats) -> Trend:
    """Kendall's test of ``values`` against their order, and the Theil-Sen line; no trend with fewer than two values."""
    n = len(values)
    if n < 2:
        return Trend()
    first, second = np.triu_indices(n, 1)
    differences = values[second] - values[first]
    slope = float(np.median(differences / (second - first)))
    middle = float(np.median(values)) - slope * (n - 1) / 2  # as scipy's theilslopes has it
    score = int(np.sum(np.sign(differences)))
    _, ties = np.unique(values, return_counts=True)
    pairs = n * (n - 1) / 2
    spread = math.sqrt(pairs * (pairs - float(np.sum(ties * (ties - 1) / 2))))
    tau = score / spread if spread else 0.0
    scatter = float(np.std(values - middle - slope * np.arange(n)))
    return Trend(tau, kendall_p(score, n, ties), middle, middle + slope * (n - 1), scatter)


def kendall_p(score: int, n: int, ties: NDArray[Any]) -> float:
    """Two-sided p of Kendall's score (concordant less discordant pairs); exact up to 50 values without ties."""
    if len(ties) == n and n <= EXACT_LIMIT:
        fewer = (n * (n - 1) // 2 - abs(score)) // 2  # the smaller of concordant and discordant
        return min(1.0, 2 * float(inversions_cdf(n)[fewer]))
    variance = (n * (n - 1) * (2 * n + 5) - float(np.sum(ties * (ties - 1) * (2 * ties + 5)))) / 18
    return 2 * NormalDist().cdf(-abs(score) / math.sqrt(variance)) if variance > 0 else 1.0


@lru_cache(maxsize=64)
def inversions_cdf(n: int) -> tuple[float, ...]:
    """P(a random order of ``n`` has at most k inversions), k = 0 .. n(n-1)/2."""
    chances = np.ones(1)
    for size in range(2, n + 1):
        chances = np.convolve(chances, np.full(size, 1 / size))
    return tuple(np.cumsum(chances))


def changes(looks: Sequence[Conditions]) -> list[str]:
    """What changed between the looks, the first and the last of which lie around the measurement; see the rule."""
    if len(looks) < 2:
        return []
    first, last = looks[0], looks[-1]
    found = [fell("the processors' clock", [look.fastest_khz for look in looks], 1e-6, "GHz")]
    found.append(throttled(first, last))
    found += [renamed(word, getattr(first, name), getattr(last, name))
              for word, name in (("power mode", "power_mode"), ("governor", "governors"))]  # fmt: skip
    if last.headroom_c is not None and last.headroom_c < HEADROOM:
        found.append(f"a thermal zone came within {max(0.0, last.headroom_c):.0f} °C of its trip point")
    return [words for words in [*found, *gpu_changes(looks)] if words]


def fell(name: str, values: Sequence[int | None], scale: float, unit: str) -> str:
    """Words for a frequency that fell from the first third of the looks to the last."""
    known = [value * scale for value in values if value]
    third = len(known) // 3
    if not third:
        return ""
    before, after = np.quantile(known[:third], 0.25), np.quantile(known[-third:], 0.75)
    if after >= (1 - SLOWER) * before:
        return ""
    return f"{name} fell from {np.median(known[:third]):.3g} to {np.median(known[-third:]):.3g} {unit}"


def throttled(first: Conditions, last: Conditions) -> str:
    """Words for processors that heat held down; the time if the kernel counts it, else the events."""
    whole = 1e3 * (last.at - first.at)
    times = [share(before, last.throttle_ms.get(key), whole) for key, before in first.throttle_ms.items()]
    if times:
        most = max((time for time in times if time is not None), default=0.0)
        return f"heat held a processor down for {most:.0%} of the time" if most > THROTTLED else ""
    moved = [last.throttle_events.get(key, before) - before for key, before in first.throttle_events.items()]
    return f"heat throttled a processor {max(moved)} times" if max(moved, default=0) > 0 else ""


def renamed(what: str, before: object, after: object) -> str:
    """Words for a setting that was another afterwards; one that could not be read both times is no change."""
    if not before or not after or before == after:
        return ""
    shown = [" and ".join(value) if isinstance(value, tuple) else str(value) for value in (before, after)]
    return f"the {what} changed from {shown[0]} to {shown[1]}"


def gpu_changes(looks: Sequence[Conditions]) -> list[str]:
    """The same for the card that is measured."""
    cards = [look.gpu for look in looks if look.gpu is not None]
    if len(cards) < 2:
        return []
    found = [fell("the GPU's clock", [card.sm_mhz for card in cards], 1, "MHz")]
    found.append(renamed("GPU's power limit", cards[0].power_limit_w, cards[-1].power_limit_w))
    held = share(cards[0].slowed_ns, cards[-1].slowed_ns, 1e9 * (looks[-1].at - looks[0].at))
    found.append(f"heat held the GPU down for {held:.0%} of the time" if held and held > THROTTLED else "")
    for bit, name in SLOWING.items():
        seen = sum(bool((card.reasons or 0) & bit) for card in cards)
        if seen > REASONS_SHARE * len(cards):
            found.append(f"the GPU ran under a {name} in {seen} of {len(cards)} looks")
    return found


@dataclass
class Watch:
    """Looks at the machine, the first when it is made. ``gpu``: CUDA's number of the card that is measured, or None."""

    gpu: int | None = None
    read: Callable[..., Conditions] = read_conditions
    looks: list[Conditions] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.look(whole=True)

    def look(self, *, whole: bool = False) -> None:
        """Look once; ``whole``: the power mode, too, which may start a command."""
        self.looks.append(self.read(gpu=self.gpu, mode=whole))

    @property
    def changes(self) -> str:
        """What changed, in words; "" if nothing that matters."""
        return ", ".join(changes(self.looks))

    @property
    def busy(self) -> str:
        """Why times were unsteady, as far as load explains it."""
        return busy_words(self.looks[0].to_json(), self.looks[-1].to_json())
