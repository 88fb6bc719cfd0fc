"""The door of building: a bundle and a device profile in, an engine in the bundle out.

Everything that can be refused is refused first (:func:`prepare`): damaged files, a graph that breaks a rule, shapes
that do not fit, a device this host cannot build for. The engine is then built in a folder nobody looks at and switched
on by one rename of the manifest, so that a bundle serves as before while it is built, and after a build was killed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish import __version__, profiles, runtime
from planish.errors import BundleError, HostError, InputError, PlanishError
from planish.export.build_engine import Plan, build_plan
from planish.export.build_estimate import Estimate, estimate, look_at_host, refusals
from planish.export.build_graph import GraphFacts, read_graph
from planish.export.build_progress import Phases, watch
from planish.export.build_shapes import optimization_profiles
from planish.export.engine_folder import locked, switch_on, workshop, write_info, write_plan
from planish.export.peak_memory import read_peak, reset_peak
from planish.export.plan_report import read_report
from planish.export.tensorrt_module import Chosen, choose, explicit_targets, offered
from planish.export.timing_cache import timing_cache_for
from planish.profiles import Profile
from planish.runtime import BuiltOn, EngineInfo, Manifest, ShapeProfile
from planish.runtime.manifest import Dialect

if TYPE_CHECKING:
    from planish.export.lint import LintReport

__all__ = ["BuildResult", "Preparation", "build", "find_device", "prepare"]

Progress = Callable[[str, int, int], None]
DIALECT = "qdq"
WORKSPACE = 64 << 20
"""Bytes of workspace a builder gets at least."""


@dataclass(frozen=True)
class BuildResult:
    """An engine that is in its bundle. ``proved`` is what the golden set said on this host's GPU, None without one."""

    bundle: Path
    engine_id: str
    info: EngineInfo
    manifest: Manifest
    warnings: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The folder of the engine."""
        return self.bundle / "engines" / self.engine_id

    @property
    def proved(self) -> Any:
        """The manifest's ``proved``."""
        return self.manifest.engines[self.engine_id].proved


@dataclass(frozen=True)
class Preparation:
    """All that is known before a build.

    ``refused`` is empty if it can begin; ``chosen`` is None if no module here can build it.
    """

    bundle: Path
    manifest: Manifest
    profile: Profile
    chosen: Chosen | None
    facts: GraphFacts
    shapes: tuple[ShapeProfile, ...]
    estimate: Estimate
    lint: LintReport
    refused: tuple[PlanishError, ...]
    optimization_level: int | None = None

    @property
    def dialect(self) -> Dialect:
        """The dialect that is built from."""
        return self.manifest.dialects[DIALECT]

    @property
    def engine_id(self) -> str | None:
        """The folder the engine will have."""
        return self.chosen.engine_id(self.profile) if self.chosen else None

    def run(self, progress: Progress | None = None) -> BuildResult:
        """Builds the engine and switches it on. Raises what was ``refused``, and as :func:`build` does."""
        if self.refused:
            raise self.refused[0]
        assert self.chosen is not None
        name = self.chosen.engine_id(self.profile)
        with locked(self.bundle), workshop(self.bundle, name) as folder:
            plan, build_facts = self.make_plan(progress)
            write_plan(folder, plan.data)
            info = self.describe(folder, build_facts)
            write_info(folder, info)
            manifest = switch_on(self.bundle, folder, name, prove=self.chosen.device is not None)
        warnings = [*(f"{item.rule}: {item.reason}" for item in self.lint.findings), *plan.warnings]
        return BuildResult(self.bundle, name, info, manifest, tuple(warnings))

    def make_plan(self, progress: Progress | None) -> tuple[Plan, dict[str, Any]]:
        """The plan, and ``build`` of ``engine.json``."""
        chosen = self.chosen
        assert chosen is not None
        phases = Phases(self.estimate.seconds)
        memory = self.profile.memory.bytes if self.profile.memory else 4 << 30
        workspace = max(int(memory * 0.9) - self.estimate.device_bytes + self.estimate.activation_bytes, WORKSPACE)
        reset_peak()
        plan = watch(
            lambda: build_plan(
                chosen,
                self.bundle / self.dialect.path,
                self.shapes,
                phases,
                workspace=workspace,
                optimization_level=self.optimization_level,
                timing=timing_cache_for(chosen),
            ),
            phases,
            progress,
        )
        return plan, {
            "seconds": round(time.monotonic() - phases.started, 3),
            "plan_bytes": plan.data.nbytes,
            **plan.memory,
            "peak_memory_bytes": read_peak(),
            "flags": plan.flags,
            "optimization_level": self.optimization_level,
            "timing_cache": plan.timing_cache,
        }

    def describe(self, written: Path, build_facts: dict[str, Any]) -> EngineInfo:
        """``engine.json`` of the plan in the folder ``written``."""
        chosen = self.chosen
        assert chosen is not None
        folder = Path(self.dialect.path).parent.as_posix() + "/"
        digests = {
            name[len(folder) :]: entry.sha256 for name, entry in self.manifest.files.items() if name.startswith(folder)
        }
        names = [shape.name for shape in self.shapes]
        return EngineInfo(
            schema=1,
            planish=__version__,
            module="tensorrt" if chosen.name == "tensorrt" else "tensorrt_rtx",
            version=chosen.version,
            targets=(chosen.target,),
            device=None if explicit_targets(chosen.module) else chosen.device,
            profile=self.profile.name,
            dialect=DIALECT,
            onnx_sha256=digests,
            inputs=self.dialect.inputs,
            outputs=self.dialect.outputs,
            profiles=self.shapes,
            build=build_facts,
            diagnostic=read_report(written / "model.plan", chosen.name, chosen.version, names, self.facts.products),
        )


def build(
    bundle: str | Path,
    *,
    profile: str | None = None,
    module: str | None = None,
    optimization_level: int | None = None,
    progress: Progress | None = None,
) -> BuildResult:
    """Build an engine of ``bundle`` for the device ``profile`` (default: the bundle's) and switch it on.

    With a GPU of the profile's compute capability here, the golden set is run first, and an engine that fails it is
    removed again. Else the runtime proves it where it is first loaded.

    Raises:
        InputError: ``bundle`` is damaged, has no ``qdq`` graph, or one that breaks a rule or cannot be built
            (``BundleError``); the profile is unknown, has no TensorRT engine, or has shapes that do not fit
            (``ProfileError``).
        ParityError: on this GPU the engine answers otherwise than the checkpoint.
        HostError: this host cannot build for that device, or has no memory or disk for it; another build is running.
        KeyboardInterrupt: nothing of the engine is left.
    """
    return prepare(bundle, profile=profile, module=module, optimization_level=optimization_level).run(progress)


def prepare(
    bundle: str | Path,
    *,
    profile: str | None = None,
    module: str | None = None,
    optimization_level: int | None = None,
) -> Preparation:
    """Everything but the build; changes nothing. What stands in the way is in ``refused``, or raised if the bundle or
    profile is not usable at all (as :func:`build` says)."""
    root = Path(bundle)
    manifest = runtime.verify(root)
    device = profiles.load(profile or the_profile(manifest))
    dialect = the_dialect(manifest)
    names = offered(device)
    shapes = optimization_profiles(device, manifest, dialect.inputs)
    refused: list[PlanishError] = []
    chosen = None
    try:
        chosen = choose(device, find_device(), module)
    except HostError as error:
        refused.append(error)
    facts = read_graph(root / dialect.path)
    need = estimate(facts, shapes, dialect.inputs, dialect.outputs, chosen.name if chosen else module or names[0])
    refused += refusals(need, device, look_at_host(root))
    lint = lint_graph(root / dialect.path, device, manifest, chosen)
    refused += lint_refusals(lint)
    return Preparation(
        root, manifest, device, chosen, facts, tuple(shapes), need, lint, tuple(refused), optimization_level
    )


def lint_graph(path: Path, profile: Profile, manifest: Manifest, chosen: Chosen | None) -> LintReport:
    """The linter's report on the graph and, where a module can build it, on the build to come."""
    from planish.export.lint import Build, lint_model

    to_come = None
    if chosen is not None:
        timed = timing_cache_for(chosen) is not None
        to_come = Build(chosen.name, chosen.version, (chosen.target,), (), timed, chosen.device is not None)
    return lint_model(path, profile, build=to_come, max_length=manifest.max_length)


def lint_refusals(lint: LintReport) -> list[PlanishError]:
    """One error for all rules that are broken: the first in words, the others counted."""
    errors = [item for item in lint.findings if item.severity == "error"]
    if not errors:
        return []
    first, more = errors[0], len(errors) - 1
    also = f" (and {more} more: planish inspect BUNDLE --lint)" if more else ""
    return [
        BundleError(f"a graph that keeps rule {first.rule}", f"{first.reason} at node {first.node!r}{also}", first.fix)
    ]


def the_profile(manifest: Manifest) -> str:
    """The profile a bundle was exported for."""
    if manifest.profile is None:
        raise InputError("a profile, since the bundle names none", "none", "add --profile rtx-4090")
    return manifest.profile


def the_dialect(manifest: Manifest) -> Dialect:
    """The dialect engines are built from."""
    if DIALECT not in manifest.dialects:
        known = ", ".join(sorted(manifest.dialects))
        fix = "export the checkpoint with --profile of a device with TensorRT"
        raise BundleError(f"a bundle with a {DIALECT} graph", f"one with {known}", fix)
    return manifest.dialects[DIALECT]


def find_device() -> BuiltOn | None:
    """This host's first GPU; None without a driver or a device."""
    from planish.runtime import device_facts

    try:
        return device_facts()
    except HostError:
        return None
