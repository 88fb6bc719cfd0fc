"""What a lint rule is, what it is asked about, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal

import onnx_ir as ir

from planish.export.graph_products import Products
from planish.export.lint_graph import LintGraph
from planish.profiles.schema import Profile

__all__ = ["Build", "Finding", "Hit", "Rule", "Subject"]

Severity = Literal["error", "warning"]
Version = tuple[int, ...]


@dataclass(frozen=True)
class Build:
    """How an engine is about to be built, for the rules that are about that.

    ``module`` is ``tensorrt`` or ``tensorrt_rtx``; ``version`` its version; ``targets`` the compute capabilities asked
    for ("8.9"); ``flags`` names of builder flags (REFIT, ...); ``gpu`` whether this host has one.
    """

    module: str
    version: str
    targets: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    timing_cache: bool = False
    gpu: bool = False


@dataclass(frozen=True)
class Finding:
    """A broken rule: where, why it matters, and what mends it."""

    rule: str
    severity: Severity
    node: str
    reason: str
    fix: str

    def to_json(self) -> dict[str, str]:
        """Its five fields."""
        return asdict(self)


@dataclass(frozen=True)
class Hit:
    """What a check yields: the node's name, and what was found there."""

    node: str
    got: str


@dataclass
class Subject:
    """A graph and where it is to run."""

    facts: LintGraph
    profile: Profile | None = None
    build: Build | None = None

    @cached_property
    def products(self) -> Products:
        return Products(self.facts)

    @property
    def targets(self) -> tuple[str, ...]:
        """Compute capabilities it is built for: those of the build, else the profile's GPU; empty if none is known."""
        if self.build is not None and self.build.targets:
            return self.build.targets
        return (self.profile.gpu.sm,) if self.profile is not None and self.profile.gpu is not None else ()

    @property
    def versions(self) -> dict[str, Version]:
        """Versions of full TensorRT it must build with, named: that of the build, else all the profile's releases."""
        if self.build is not None:
            full = self.build.module == "tensorrt"
            return {f"TensorRT {self.build.version}": version(self.build.version)} if full else {}
        releases = self.profile.software if self.profile is not None else ()
        return {
            f"TensorRT {one.tensorrt}" + (f" (JetPack {one.jetpack})" if one.jetpack else ""): version(one.tensorrt)
            for one in releases
            if one.tensorrt
        }

    @property
    def rtx(self) -> bool:
        """TensorRT-RTX builds it: the module of the build, else the profile's first TensorRT engine."""
        if self.build is not None:
            return self.build.module == "tensorrt_rtx"
        engines = self.profile.engines if self.profile is not None else ()
        first = next((one.name for one in engines if one.name.startswith("tensorrt")), None)
        return first == "tensorrt-rtx"


@dataclass(frozen=True)
class Rule:
    """One rule. ``why`` ends with its source; ``needs`` names what it looks at besides the graph."""

    severity: Severity
    what: str
    why: str
    fix: str
    check: Callable[[Subject], Iterator[Hit]]
    needs: Literal["graph", "profile", "build"] = "graph"

    def findings(self, name: str, subject: Subject) -> Iterator[Finding]:
        """Everything that breaks it."""
        for hit in self.check(subject):
            yield Finding(name, self.severity, hit.node, f"{hit.got}: {self.why}", self.fix)


def version(text: str) -> Version:
    """The numbers of a version.

    >>> version("10.13.3.9") > version("10.3")
    True
    """
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def spelled(dtype: ir.DataType | None) -> str:
    """A type as messages spell it.

    >>> spelled(ir.DataType.FLOAT8E5M2), spelled(ir.DataType.FLOAT)
    ('float8e5m2', 'float32')
    """
    if dtype is None:
        return "an unknown type"
    names = {ir.DataType.FLOAT: "float32", ir.DataType.DOUBLE: "float64"}
    return names.get(dtype) or str(dtype.name).lower()
