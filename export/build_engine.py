"""One plan from one ONNX file: parse, configure, build. The same code for TensorRT 10.3 to 11.4 and TensorRT-RTX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from planish.errors import BundleError, HostError
from planish.export.build_progress import BuildLog, Phases, make_monitor, shared_log
from planish.export.tensorrt_api import (
    Builder,
    IBuilderConfig,
    IHostMemory,
    INetworkDefinition,
    Module,
    OnnxParser,
    TargetedConfig,
)
from planish.export.tensorrt_module import Chosen, explicit_targets
from planish.export.timing_cache import TimingCache
from planish.runtime import ShapeProfile

__all__ = ["Plan", "build_plan"]


@dataclass(frozen=True)
class Plan:
    """A finished plan, in the builder's memory, and what the builder said of it; a size it did not tell is None."""

    data: IHostMemory
    flags: list[str]
    memory: dict[str, int | None]
    timing_cache: str | None
    warnings: list[str]


def build_plan(
    chosen: Chosen,
    onnx_path: Path,
    profiles: Sequence[ShapeProfile],
    phases: Phases,
    *,
    workspace: int,
    optimization_level: int | None = None,
    timing: TimingCache | None = None,
) -> Plan:
    """The plan of ``onnx_path`` for ``chosen.target``; ``workspace`` limits the scratch space of a layer, in bytes.

    Raises:
        BundleError: the builder cannot read the graph, or refuses it; the message has the builder's own words.
        HostError: it ran out of memory.
        KeyboardInterrupt: ``phases.stopped`` was set before it was done.
    """
    module = chosen.module
    logger, log = shared_log(module)
    try:
        builder = module.Builder(logger)
    except (TypeError, RuntimeError) as error:  # what pybind11 makes of a builder that cannot be created
        got = (log.errors() or [str(error)])[0]
        fix = "see `planish doctor` for the driver and the device"
        raise HostError(f"a {chosen.name} that works on this host", one_line(got), fix) from error
    network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = module.OnnxParser(network, logger)
    parse(parser, onnx_path, log)
    config = configure(chosen, builder, workspace, optimization_level)
    config.progress_monitor = monitor = make_monitor(module, phases)
    add_profiles(builder, config, network, profiles)
    if timing is not None:
        timing.load_into(config)
    built = builder.build_serialized_network(network, config)
    del monitor  # the builder holds no reference of its own
    if built is None:
        raise refusal(log, phases)
    digest = timing.save_from(config) if timing is not None else None
    flags = [name for name, flag in sorted(module.BuilderFlag.__members__.items()) if config.get_flag(flag)]
    return Plan(built, flags, log.memory(), digest, log.warnings())


def parse(parser: OnnxParser, path: Path, log: BuildLog) -> None:
    """Reads the graph, with the external data beside it; raises ``BundleError`` naming the node."""
    if parser.parse_from_file(str(path)):
        return
    wrong = [parser.get_error(index) for index in range(parser.num_errors)]
    said = [f"{error.desc()} (node {error.node_name()!r}, {error.node_operator()})" for error in wrong] or log.errors()
    got = one_line(said[0]) if said else "no reason given"
    raise BundleError(f"a graph that TensorRT can read in {path.name}", got, "export the bundle again")


def configure(chosen: Chosen, builder: Builder, workspace: int, optimization_level: int | None) -> IBuilderConfig:
    """A configuration with targets, verbosity, workspace and level."""
    module: Module = chosen.module
    config = builder.create_builder_config()
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, workspace)
    if optimization_level is not None:
        config.builder_optimization_level = optimization_level
    if explicit_targets(module):
        set_target(cast(TargetedConfig, config), module, chosen.target)
    return config


def set_target(config: TargetedConfig, module: Any, target: str) -> None:
    """Without a target a plan is built, silently, for GPUs that may not be able to run it."""
    capability = module.ComputeCapability.__members__[f"SM{target.replace('.', '')}"]
    config.num_compute_capabilities = 1
    if not config.set_compute_capability(capability, 0):
        raise HostError(
            f"a {module.__name__} that builds for compute capability {target}",
            f"version {module.__version__}, which refuses to",
            "install another version of it",
        )


def add_profiles(
    builder: Builder, config: IBuilderConfig, network: INetworkDefinition, profiles: Sequence[ShapeProfile]
) -> None:
    """Adds the optimization profiles in order; raises ``BundleError`` if the graph's inputs are others."""
    inputs = {network.get_input(index).name for index in range(network.num_inputs)}
    for profile in profiles:
        if missing := inputs ^ set(profile.shapes):
            raise BundleError(
                f"the inputs of the manifest, {', '.join(sorted(profile.shapes))}",
                f"a graph that differs in {', '.join(sorted(missing))}",
                "export the bundle again",
            )
        made = builder.create_optimization_profile()
        for name, sizes in profile.shapes.items():
            made.set_shape(name, sizes.min, sizes.opt, sizes.max)
        if config.add_optimization_profile(made) < 0:
            raise BundleError(
                f"shapes of profile {profile.name!r} that the graph takes", "a refusal", "change the profile's shapes"
            )


def refusal(log: BuildLog, phases: Phases) -> BaseException:
    """Why a build came to nothing."""
    if phases.stopped:
        return KeyboardInterrupt()
    said = [one_line(message) for message in log.errors()]
    got = said[0] if said else "no plan and no reason"
    if any("memory" in message.lower() and "alloc" in message.lower() for message in said):
        return HostError(
            "memory enough to build the engine", got, "close other programs, or lower the profile's shapes"
        )
    return BundleError("a graph that TensorRT can build", got, "see `planish inspect BUNDLE --lint` for what it breaks")


def one_line(message: str) -> str:
    """The first 300 characters of a message, in one line, without the place in the builder's sources.

    >>> one_line("IBuilder::build: Error Code 4: Internal Error (axes must match In f at /_src/x.cpp:42)")
    'IBuilder::build: Error Code 4: Internal Error (axes must match)'
    """
    text = " ".join(message.split())
    head, separator, _ = text.partition(" In ")
    return (f"{head})" if separator and head.count("(") > head.count(")") else head)[:300]
