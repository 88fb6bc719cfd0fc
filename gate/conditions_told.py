"""Two looks at the machine in words: one line for reports, and why times were unsteady.

Both take looks as JSON (`planish.gate.conditions.Conditions.to_json`), which is what reports keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["busy_words", "conditions_line", "share"]

Look = Mapping[str, Any]

BUSY = 0.3  # share of the time some task waited for a processor, from which a machine is called busy
TAKEN = 0.02  # share of the time that was taken away


def busy_words(before: Look, after: Look) -> str:
    """Why times were unsteady, as far as load explains it; "" for a machine that had time."""
    told, shares, cpus = [], shares_of(before, after), after.get("cpus") or 1
    load = max(before.get("load") or 0.0, after.get("load") or 0.0)
    if load > cpus:
        told.append(f"load {load:g} on {cpus} processor{'s' if cpus > 1 else ''}")
    if shares["waited_us"] > BUSY:
        told.append(f"a task waited for a processor {shares['waited_us']:.0%} of the time")
    if shares["quota_us"] > TAKEN:
        told.append(f"the container's quota was used up {shares['quota_us']:.0%} of the time")
    if shares["stolen"] > TAKEN:
        told.append(f"the hypervisor took {shares['stolen']:.0%} of the time")
    others = (after.get("gpu") or {}).get("processes")
    if others:
        told.append(f"{others} other process{'es' if others > 1 else ''} on the GPU")
    return ", ".join(told)


def conditions_line(before: Look, after: Look) -> str:
    """What could be read, from before to after, in one line; "" where nothing could."""
    shares = shares_of(before, after)
    throttled = (after.get("throttle_ms") or 0) - (before.get("throttle_ms") or 0)
    old, new = before.get("gpu") or {}, after.get("gpu") or {}
    parts = [
        moved("clock", before.get("fastest_khz"), after.get("fastest_khz"), 1e-6, " GHz", 2),
        " and ".join(after.get("governors") or ()),
        moved("hottest zone", before.get("temperature_c"), after.get("temperature_c"), 1, " °C"),
        f"throttled {throttled} ms" if throttled > 0 else "",
        moved("load", before.get("load"), after.get("load"), 1, "", 2),
        f"a task waited for a processor {shares['waited_us']:.0%} of the time" if "waited_us" in told(after) else "",
        f"{shares['stolen']:.1%} stolen" if shares["stolen"] > 0 else "",
        f"power mode {after['power_mode']}" if after.get("power_mode") else "",
        moved("GPU clock", old.get("sm_mhz"), new.get("sm_mhz"), 1, " MHz"),
        moved("GPU", old.get("temperature_c"), new.get("temperature_c"), 1, " °C"),
    ]
    return ", ".join(part for part in parts if part)


def told(look: Look) -> set[str]:
    """The names of what could be read."""
    return {name for name, value in look.items() if value is not None}


def moved(label: str, before: float | None, after: float | None, scale: float, unit: str, digits: int = 0) -> str:
    """``load 0.50 to 1.20``; one figure where both are the same or one was not read.

    >>> moved("GPU", 61, 72, 1, " °C"), moved("GPU", 61, 61, 1, " °C"), moved("GPU", None, None, 1, " °C")
    ('GPU 61 to 72 °C', 'GPU 61 °C', '')
    """
    shown = [f"{value * scale:.{digits}f}" for value in (before, after) if value is not None]
    return f"{label} {' to '.join(dict.fromkeys(shown))}{unit}" if shown else ""


def shares_of(before: Look, after: Look) -> dict[str, float]:
    """Of the time between two looks; 0 where it was not read."""
    microseconds = 1e6 * ((after.get("at") or 0.0) - (before.get("at") or 0.0))
    ticks = float((after.get("ticks") or 0) - (before.get("ticks") or 0))
    wholes = {"waited_us": microseconds, "quota_us": microseconds, "stolen": ticks}
    return {name: share(before.get(name), after.get(name), whole) or 0.0 for name, whole in wholes.items()}


def share(before: int | None, after: int | None, whole: float) -> float | None:
    """How much of ``whole`` a counter grew by, at most 1; None where it was not read or ran backwards."""
    if before is None or after is None or whole <= 0 or after < before:
        return None
    return min(1.0, (after - before) / whole)
