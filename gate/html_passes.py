"""What each pass of a recipe left of the bytes, and which pass is to blame for what was lost of the quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from planish.gate.html_marks import Scale, bar, scale_of, shown, track
from planish.gate.html_page import axis_row, row, section
from planish.gate.receipts import HIGHER_IS_BETTER, headline

__all__ = ["passes"]

State = Mapping[str, Any]


def passes(receipts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Two sections, bytes and quality, each as far as the receipts tell; none without receipts."""
    steps = _steps(receipts)
    return [_bytes(steps), _quality(steps)] if steps else []


def _steps(receipts: Sequence[Mapping[str, Any]]) -> list[tuple[str, State]]:
    """The parent and what each pass made, by name; nothing where a receipt lacks a state (of an old version)."""
    found = [("parent", receipts[0].get("before"))] if receipts else []
    found += [(str(receipt.get("pass")), receipt.get("after")) for receipt in receipts]
    return [(name, state) for name, state in found if isinstance(state, Mapping)] if _whole(found) else []


def _whole(found: Sequence[tuple[str, Any]]) -> bool:
    return all(isinstance(state, Mapping) and state.get("bytes") for _, state in found)


def _bytes(steps: Sequence[tuple[str, State]]) -> str:
    sizes = [float(state["bytes"]) for _, state in steps]
    most, rows = max(sizes), []
    for number, ((name, _), size) in enumerate(zip(steps, sizes, strict=True)):
        words = f"{shown(size / 1e6)} MB"
        change = f"{shown(100 * (size / sizes[number - 1] - 1))} %" if number else "before all passes"
        rows.append(row(escape(name), bar(size / most, says=words), f"{words} <small>{change}</small>"))
    note = "Bytes of the checkpoint after each pass, and by how much the pass changed them."
    return section("What each pass took", [*rows, axis_row(Scale(0.0, most / 1e6), "megabytes")], note)


def _quality(steps: Sequence[tuple[str, State]]) -> str:
    name = headline(steps[-1][1])
    told = [(step, float(state["quality"][name]), state["quality"]) for step, state in steps
            if name is not None and headline(state) == name]  # fmt: skip
    if name is None or len(told) < 2:
        return ""
    scale, rows, higher = scale_of([value for _, value, _ in told]), [], name in HIGHER_IS_BETTER
    for number, (step, value, quality) in enumerate(told):
        change = value - told[number - 1][1] if number else 0.0
        tone = "" if not number or not change else ("pass" if (change > 0) == higher else "regress")
        words = f"{shown(value)}"
        small = f"{'+' if change > 0 else ''}{shown(change)} by this pass" if number else "before all passes"
        if "agreement" in quality:
            small += f", agreement {shown(float(quality['agreement']))}"
        before = told[number - 1][1] if number else value
        ends = (min(before, value), max(before, value))
        chart = track(scale, interval=ends, estimate=value, tone=tone, says=f"{step}: {words}")
        rows.append(row(escape(step), chart, f"{words} <small>{escape(small)}</small>"))
    words = name.replace("_", " ")
    note = f"{words.capitalize()} on the validation data after each pass (dot) and from where the pass moved it (bar):"
    note += " one measurement each while the recipe ran, so without an interval; the gate's own checks have theirs."
    unit = f"{words}{'' if higher else ', lower is better'}"
    return section("What each pass cost", [*rows, axis_row(scale, unit)], note)
