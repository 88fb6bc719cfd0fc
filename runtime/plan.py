"""A TensorRT plan on a device: its tensors, its optimization profiles, and contexts that execute it.

Only calls that TensorRT 10.3 to 11 and TensorRT-RTX share; what some have on top is found by ``hasattr``. The caller
has checked hash, version and device before (:mod:`planish.runtime.engine_key`).
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from planish.errors import BundleError, HostError, RequestError
from planish.runtime.cuda import Cuda
from planish.runtime.device_memory import Pool
from planish.runtime.engine_info import EngineInfo, Range
from planish.runtime.kernel_cache import KernelCache

__all__ = ["Plan", "Port", "Shapes"]

Shapes = Mapping[str, tuple[int, ...]]

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32", "INT8": "int8", "BOOL": "bool"}
_LINES = 4  # of TensorRT's log in an error


@dataclass(frozen=True)
class Port:
    """An input or output; ``on_host`` for the few whose values TensorRT reads on the CPU."""

    name: str
    dtype: np.dtype[Any]
    is_input: bool
    on_host: bool


class Plan:
    """A deserialized engine. Not for several threads at a time: all contexts share one scratch buffer and one stream.

    ``graphs``: let TensorRT-RTX record CUDA graphs by itself; ``kernels`` keeps what it compiles.
    """

    def __init__(
        self,
        module: ModuleType,
        cuda: Cuda,
        memory: Pool,
        data: bytes,
        info: EngineInfo,
        *,
        graphs: bool = False,
        kernels: KernelCache | None = None,
    ) -> None:
        self.info = info
        self.log = _logger(module)
        self._module, self._cuda, self._memory, self._kernels = module, cuda, memory, kernels
        self._contexts: dict[int, Any] = {}
        self._configs: list[Any] = []  # a context refers to its configuration
        self._graphs = graphs
        self.engine: Any = None
        cuda.activate()
        self._runtime = module.Runtime(self.log)
        self.engine = self._runtime.deserialize_cuda_engine(data)
        if self.engine is None:
            fix = f"planish build BUNDLE --profile {info.profile}; device='cpu' still serves"
            raise HostError(f"a plan that {module.__name__} {info.version} can load", self.said("nothing"), fix)
        self.ports = {port.name: port for port in map(self._port, range(self.engine.num_io_tensors))}
        self._check_ports()
        self.profiles = [self._ranges(index) for index in range(self.engine.num_optimization_profiles)]
        self._volumes = [sum(math.prod(each.max) for each in ranges.values()) for ranges in self.profiles]
        self._check_profiles()

    @property
    def self_graphs(self) -> bool:
        """Whether this TensorRT captures CUDA graphs itself, when told to."""
        return hasattr(self._module, "CudaGraphStrategy")

    def choose(self, shapes: Shapes) -> int:
        """The optimization profile for inputs of these shapes: the tightest that holds them. Raises RequestError."""
        fitting = [
            (self._volumes[index], index)
            for index, ranges in enumerate(self.profiles)
            if all(ranges[name].holds(shapes[name]) for name in ranges if name in shapes)
        ]
        if not fitting:
            raise self.outside(shapes)
        return min(fitting)[1]

    def outside(self, shapes: Shapes) -> RequestError:
        """What to say to shapes that no profile holds."""
        limits = []
        for profile, ranges in zip(self.info.profiles, self.profiles, strict=True):
            bad = [name for name in ranges if name in shapes and not ranges[name].holds(shapes[name])]
            if bad:
                at = ranges[bad[0]]
                limits.append((bad[0], f"{list(at.min)} to {list(at.max)} (profile {profile.name})"))
        name = limits[0][0]
        wanted = " or ".join(text for bad, text in limits if bad == name)
        fix = f"use smaller inputs, or build for larger shapes: planish build BUNDLE --profile {self.info.profile}"
        return RequestError(f"{name} within the engine's {wanted}", f"{list(shapes[name])}", fix)

    def context(self, profile: int, stream: int) -> Any:
        """The execution context of an optimization profile, made when first asked for."""
        if profile not in self._contexts:
            self._contexts[profile] = self.new_context(profile, stream)
        return self._contexts[profile]

    def new_context(self, profile: int, stream: int) -> Any:
        """A context of its own for an optimization profile, on the scratch memory of all."""
        context = self._bare_context()
        if context is None:
            free, total = self._cuda.memory()
            got = f"{free} of {total} bytes free; {self.said('no reason given')}"
            raise HostError("GPU memory for an execution context", got, "close what else uses the GPU")
        size = int(self.engine.device_memory_size_v2)
        context.set_device_memory(self._memory.address("scratch", size), size)
        if not context.set_optimization_profile_async(profile, stream):
            raise self._refused(f"optimization profile {profile}")
        self._cuda.synchronize(stream)
        return context

    def prepare(
        self, context: Any, shapes: Shapes, addresses: Mapping[str, int], outputs: Sequence[str]
    ) -> dict[str, tuple[int, ...]]:
        """Sets input shapes and, as far as known, addresses; returns the shapes of ``outputs``."""
        self.log.lines.clear()
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise self._refused(f"{name} of shape {list(shape)}")
        self.bind(context, addresses)
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:
            raise self._refused(f"input shapes that go together ({error})") from error
        if missing:
            raise self._refused(f"nothing more than {', '.join(shapes)} (it wants {', '.join(missing)})")
        found = {name: tuple(int(size) for size in context.get_tensor_shape(name)) for name in outputs}
        for name, shape in found.items():
            if any(size < 0 for size in shape):
                raise BundleError(f"an output {name} of known shape", f"{list(shape)}", "export the bundle again")
        return found

    def bind(self, context: Any, addresses: Mapping[str, int]) -> None:
        """Gives tensors their memory."""
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise self._refused(f"memory for {name}")

    def enqueue(self, context: Any, stream: int) -> None:
        """Starts one execution."""
        if not context.execute_async_v3(stream):
            raise self._refused("these inputs")

    def said(self, otherwise: str) -> str:
        """The last errors of TensorRT's log, in one line."""
        return " | ".join(self.log.lines) or otherwise

    def close(self) -> None:
        """Frees contexts, then the engine, then the runtime. Twice is fine."""
        if self._kernels is not None and self._contexts:
            self._kernels.save()
        self._contexts.clear()
        self._configs.clear()
        self.engine = None
        self._runtime = None

    def _refused(self, what: str) -> HostError:
        fix = "try a smaller batch; if it stays, build the engine again: "
        return HostError(
            f"the engine to take {what}",
            self.said("a refusal without a reason"),
            f"{fix}planish build BUNDLE --profile {self.info.profile}",
        )

    def _bare_context(self) -> Any:
        """A context without scratch memory, which is ours: one block for all, since they never run together."""
        strategy = self._module.ExecutionContextAllocationStrategy.USER_MANAGED
        if not (self.self_graphs and hasattr(self.engine, "create_runtime_config")):
            return self.engine.create_execution_context(strategy)
        config = self.engine.create_runtime_config()
        graphs = self._module.CudaGraphStrategy
        config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE if self._graphs else graphs.DISABLED
        config.set_execution_context_allocation_strategy(strategy)
        if self._kernels is not None:
            self._kernels.attach(config)
        self._configs.append(config)
        return self.engine.create_execution_context(config)

    def _port(self, index: int) -> Port:
        name = self.engine.get_tensor_name(index)
        kind = self.engine.get_tensor_dtype(name).name
        if kind not in _DTYPES:
            raise BundleError("inputs and outputs of a type numpy has", f"{kind} for {name}", "export the bundle again")
        is_input = self.engine.get_tensor_mode(name) == self._module.TensorIOMode.INPUT
        on_host = self.engine.get_tensor_location(name) == self._module.TensorLocation.HOST
        return Port(name, np.dtype(_DTYPES[kind]), is_input, on_host)

    def _check_ports(self) -> None:
        found = {port.name: (port.dtype.name, port.is_input) for port in self.ports.values()}
        wanted = {tensor.name: (tensor.dtype, True) for tensor in self.info.inputs}
        wanted |= {tensor.name: (tensor.dtype, False) for tensor in self.info.outputs}
        if found != wanted:
            odd = min(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
            got = f"{found.get(odd, ('none',))[0]} in the plan"
            expected = f"{odd} as engine.json says, {wanted.get(odd, ('none',))[0]}"
            raise BundleError(expected, got, f"planish build BUNDLE --profile {self.info.profile}")

    def _ranges(self, profile: int) -> dict[str, Range]:
        names = [port.name for port in self.ports.values() if port.is_input and not port.on_host]
        shapes = {name: self.engine.get_tensor_profile_shape(name, profile) for name in names}
        return {name: Range(*(tuple(int(size) for size in dims) for dims in each)) for name, each in shapes.items()}

    def _check_profiles(self) -> None:
        fix = f"planish build BUNDLE --profile {self.info.profile}"
        if len(self.profiles) != len(self.info.profiles):
            expected = f"{len(self.info.profiles)} optimization profiles, as engine.json says"
            raise BundleError(expected, f"{len(self.profiles)} in the plan", fix)
        for told, found in zip(self.info.profiles, self.profiles, strict=True):
            for name, shape in told.shapes.items():
                if found.get(name) != shape:
                    raise BundleError(f"{name} as engine.json says, {shape}", f"{found.get(name)} in the plan", fix)


def _logger(module: ModuleType) -> Any:
    """An ILogger of this module that keeps the last errors for messages and prints nothing."""

    class Log(module.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.lines: deque[str] = deque(maxlen=_LINES)

        def log(self, severity: Any, message: str) -> None:
            with contextlib.suppress(Exception):  # an exception would pass through TensorRT's own frames
                if severity in (module.ILogger.INTERNAL_ERROR, module.ILogger.ERROR):
                    self.lines.append(" ".join(str(message).split())[:300])

    return Log()
