"""What we use of TensorRT's Python interface, as protocols: mypy holds the builder to these names, a test holds the
bindings of five releases to them.

Both modules, ``tensorrt`` (10.3 to 11.4) and ``tensorrt_rtx``, have everything here, except what stands in
:class:`TargetedConfig`, which only builders that take explicit targets have and which is asked for by ``hasattr``.
"""

from __future__ import annotations

from typing import Any, Protocol

__all__ = [
    "Builder",
    "BuilderFlag",
    "Enumeration",
    "IBuilderConfig",
    "IHostMemory",
    "INetworkDefinition",
    "IOptimizationProfile",
    "ITensor",
    "ITimingCache",
    "MemoryPoolType",
    "Module",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "ProfilingVerbosity",
    "TargetedConfig",
]


class Enumeration(Protocol):
    """A pybind11 enumeration."""

    __members__: dict[str, Any]


class ITensor(Protocol):
    """An input or output of a network."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> Any: ...


class IHostMemory(Protocol):
    """Bytes the module owns; they can be written to a file as they are."""

    @property
    def nbytes(self) -> int: ...


class ITimingCache(Protocol):
    """What a builder measured of kernels, for the next build."""

    def serialize(self) -> Any: ...


class INetworkDefinition(Protocol):
    """The graph as TensorRT reads it."""

    @property
    def num_inputs(self) -> int: ...
    def get_input(self, index: int) -> ITensor: ...


class IOptimizationProfile(Protocol):
    """The shapes an engine is built for."""

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None: ...
    def __bool__(self) -> bool: ...


class ParserError(Protocol):
    """Why a graph was not read."""

    def desc(self) -> str: ...
    def node_name(self) -> str: ...
    def node_operator(self) -> str: ...


class OnnxParser(Protocol):
    """Reads ONNX into a network."""

    @property
    def num_errors(self) -> int: ...
    def get_error(self, index: int) -> ParserError: ...
    def parse_from_file(self, path: str) -> bool: ...


class IBuilderConfig(Protocol):
    """How to build."""

    profiling_verbosity: Any
    builder_optimization_level: int
    progress_monitor: Any

    def set_memory_pool_limit(self, pool: Any, size: int) -> None: ...
    def add_optimization_profile(self, profile: IOptimizationProfile) -> int: ...
    def get_flag(self, flag: Any) -> bool: ...
    def create_timing_cache(self, blob: bytes) -> ITimingCache | None: ...
    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool: ...
    def get_timing_cache(self) -> ITimingCache: ...


class TargetedConfig(Protocol):
    """What ``tensorrt_rtx`` has besides: compute capabilities to build for, none of which need be here."""

    num_compute_capabilities: int

    def set_compute_capability(self, capability: Any, index: int) -> bool: ...


class Builder(Protocol):
    """Makes plans."""

    def create_network(self, flags: int) -> INetworkDefinition: ...
    def create_builder_config(self) -> IBuilderConfig: ...
    def create_optimization_profile(self) -> IOptimizationProfile: ...
    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None: ...


class NetworkDefinitionCreationFlag(Enumeration, Protocol):
    """How a network is read."""

    STRONGLY_TYPED: Any


class ProfilingVerbosity(Enumeration, Protocol):
    """How much of the layers' names and types is kept in the plan."""

    DETAILED: Any


class MemoryPoolType(Enumeration, Protocol):
    """Memory a builder may use."""

    WORKSPACE: Any


class BuilderFlag(Enumeration, Protocol):
    """Only read, to be reported."""


class Module(Protocol):
    """``tensorrt`` or ``tensorrt_rtx``."""

    __name__: str
    __version__: str
    NetworkDefinitionCreationFlag: NetworkDefinitionCreationFlag
    ProfilingVerbosity: ProfilingVerbosity
    MemoryPoolType: MemoryPoolType
    BuilderFlag: BuilderFlag
    IBuilderConfig: Any
    ILogger: Any
    IProgressMonitor: Any

    def Builder(self, logger: Any) -> Builder: ...
    def OnnxParser(self, network: INetworkDefinition, logger: Any) -> OnnxParser: ...
