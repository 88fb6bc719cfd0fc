"""What planish's extras bring, read from its own package metadata, and which one a command needs."""

from __future__ import annotations

import importlib.metadata
import re
from importlib.util import find_spec
from typing import Any

__all__ = ["extra_for", "find_extras"]

MODULES = {"pyyaml": "yaml", "mlcommons-loadgen": "mlperf_loadgen"}
"""Distributions whose module is not their name with ``_`` for ``-``."""
NEEDED = {
    "compress": "compress",
    "export": "export",
    "ship": "export",
    "demo": "export",
    "build": "build",
    "inspect": "build",
}
"""Command -> the extra that has all it imports."""


def extra_for(module: str, command: str) -> str | None:
    """The extra that brings the top-level ``module`` for ``command``; None if none does.

    It is the command's own where that brings the module, or lacks something that may bring it; else the smallest.
    """
    needs = requirements()
    if not needs:
        return NEEDED.get(command)
    bring = [extra for extra in needs if module in map(module_of, flat(extra, needs))]
    own = NEEDED.get(command)
    if own in needs and (own in bring or not (bring or extra_state(own, needs)["ready"])):
        return own
    return min(bring, key=lambda extra: len(flat(extra, needs)), default=None)


def find_extras() -> dict[str, dict[str, Any]]:
    """Each extra: whether all of it can be imported, what is missing, and the command that installs it."""
    needs = requirements()
    return {extra: extra_state(extra, needs) for extra in needs}


def requirements() -> dict[str, list[str]]:
    """Each extra's distributions; an extra it contains stands as ``[name]``. Empty if planish is not installed."""
    try:
        lines = importlib.metadata.requires("planish") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    needs: dict[str, list[str]] = {}
    for line in lines:
        found = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?.*extra == ['\"]([\w-]+)['\"]", line)
        if found and found[3] not in ("all", "dev"):
            inner = [f"[{name}]" for name in found[2].split(",")] if found[1] == "planish" and found[2] else [found[1]]
            needs.setdefault(found[3], []).extend(inner)
    return needs


def extra_state(extra: str, needs: dict[str, list[str]]) -> dict[str, Any]:
    """One extra's state, with the extras inside it."""
    missing = sorted({name for name in flat(extra, needs) if not importable(name)})
    return {"ready": not missing, "missing": missing, "install": f"pip install 'planish[{extra}]'"}


def flat(extra: str, needs: dict[str, list[str]]) -> list[str]:
    """The distributions of an extra and of the extras it names, such as ``[compress]``."""
    found: list[str] = []
    for name in needs.get(extra, []):
        found += flat(name[1:-1], needs) if name.startswith("[") else [name]
    return found


def importable(distribution: str) -> bool:
    """Whether the module of a distribution is there, without importing it."""
    try:
        return find_spec(module_of(distribution)) is not None
    except (ImportError, ValueError):
        return False


def module_of(distribution: str) -> str:
    """What a distribution is imported as.

    >>> module_of("onnx-ir"), module_of("PyYAML")
    ('onnx_ir', 'yaml')
    """
    name = distribution.lower()
    return MODULES.get(name, name.replace("-", "_"))
