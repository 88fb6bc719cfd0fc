"""A TensorRT module whose engines execute their ONNX graph with ONNX Runtime on the CPU.

A plan is a header (module version, compute capability, optimization profiles) and the graph's bytes. The calls are
those of TensorRT's Python module that `planish.runtime` uses, with its habits: a refusal is False and a line in the
log, an engine that cannot be read is None, shapes outside the profile are refused, execution happens on a stream.
"""

from __future__ import annotations

import ctypes
import enum
import importlib.machinery
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.runtime.fake_cuda import ILLEGAL_ADDRESS, FakeCudart

__all__ = ["install", "make_plan"]

MAGIC = b"FAKEPLAN"
Profiles = Sequence[Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]]
DTYPES = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64", "tensor(int32)": "INT32"}
NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "INT32": np.int32}


def make_plan(graph: Path, profiles: Profiles, *, sm: Sequence[str], version: str, scratch: int = 4096) -> bytes:
    """A plan of the graph: its weights inside, whatever file they lie in. ``profiles`` map inputs to min, opt, max."""
    header = {"version": version, "sm": list(sm), "profiles": [dict(each) for each in profiles], "scratch": scratch}
    head = json.dumps(header).encode()
    return MAGIC + len(head).to_bytes(4, "little") + head + onnx.load(graph).SerializeToString()


def install(
    patch: pytest.MonkeyPatch, cuda: FakeCudart | None, *, name: str = "tensorrt", version: str = "10.3.0"
) -> ModuleType:
    """Puts the module in place of the real one, and ``cuda`` in place of libcudart (None: leave that as it is)."""
    module = _module(name, version, cuda or FakeCudart())
    patch.setitem(sys.modules, name, module)
    if cuda is not None:
        patch.setattr("planish.runtime.cuda.load_cudart", lambda: cuda)
    return module


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING = Severity.INTERNAL_ERROR, Severity.ERROR, Severity.WARNING
    Severity = Severity

    def __init__(self) -> None:
        pass

    def log(self, severity: Severity, message: str) -> None:
        raise RuntimeError('Tried to call pure virtual function "nvinfer1::ILogger::log"')  # as the bindings do


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class TensorLocation(enum.Enum):
    DEVICE = 0
    HOST = 1


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class Runtime:
    """Made without a device it would end the process; here it ends the test."""

    def __init__(self, module: ModuleType, cuda: FakeCudart, logger: Any) -> None:
        assert cuda.calls["cudaGetDeviceCount"], "Runtime before anyone looked for a device"
        assert cuda.count_code == 0, "Runtime without a device"
        assert cuda.calls["cudaDeviceGetAttribute"], "Runtime before anyone looked at the compute capability"
        assert isinstance(logger, ILogger)
        self.module, self.cuda, self.logger = module, cuda, logger
        module.seen_plans = []

    def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
        self.module.seen_plans.append(bytes(data))
        if not data.startswith(MAGIC):
            self.logger.log(Severity.ERROR, "Serialization assertion magicTagRead == kMAGIC_TAG failed.")
            return None
        size = int.from_bytes(data[8:12], "little")
        header = json.loads(data[12 : 12 + size])
        if header["version"] != self.module.__version__ or self.cuda.sm not in header["sm"]:
            self.logger.log(Severity.ERROR, "The engine plan file is not compatible with this version of TensorRT")
            return None
        return Engine(self, header, data[12 + size :])


class Engine:
    def __init__(self, runtime: Runtime, header: Mapping[str, Any], graph: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.module, self.cuda, self.logger = runtime.module, runtime.cuda, runtime.logger
        self.profiles = header["profiles"]
        self.device_memory_size_v2 = header["scratch"]
        self.inputs = {node.name: node for node in self.session.get_inputs()}
        self.outputs = {node.name: node for node in self.session.get_outputs()}
        self.names = [*self.inputs, *self.outputs]
        self.num_io_tensors, self.num_optimization_profiles = len(self.names), len(self.profiles)
        self.contexts = 0

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=DTYPES[{**self.inputs, **self.outputs}[name].type])

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.profiles[profile][name]]

    def create_execution_context(self, how: Any) -> Context | None:
        self.contexts += 1
        return Context(self, how)

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig(self.module)


class RuntimeConfig:
    def __init__(self, module: ModuleType) -> None:
        self.module, self.cuda_graph_strategy, self.cache = module, CudaGraphStrategy.DISABLED, None
        module.configs.append(self)

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self.module)

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class RuntimeCache:
    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def deserialize(self, blob: bytes) -> bool:
        self.module.caches_read.append(bytes(blob))
        return blob == b"kernels"

    def serialize(self) -> bytes:
        return b"kernels"


class Context:
    def __init__(self, engine: Engine, how: Any) -> None:
        strategy = how.strategy if isinstance(how, RuntimeConfig) else how
        assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        self.engine, self.profile = engine, 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch: int | None = None

    def set_device_memory(self, memory: int, size: int) -> None:
        assert self.engine.cuda.within(memory, size)
        self.scratch = memory

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        self.shapes.clear()
        return profile < len(self.engine.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.profiles[self.profile][name]
        good = len(low) == len(shape) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        if not good:
            return self._refuse(f"Static dimension mismatch or {name} {list(shape)} outside profile {self.profile}")
        self.shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine.inputs if name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        known = self._axes()
        axes = self.engine.outputs[name].shape
        return tuple(size if isinstance(size, int) else known.get(size, -1) for size in axes)

    def _axes(self) -> dict[str, int]:
        axes: dict[str, int] = {}
        for name, shape in self.shapes.items():
            for axis, size in zip(self.engine.inputs[name].shape, shape, strict=True):
                if isinstance(axis, str) and axes.setdefault(axis, size) != size:
                    raise RuntimeError(f"{axis} is {axes[axis]} and {size}")
        return axes

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address != 0

    def execute_async_v3(self, stream: int) -> bool:
        engine = self.engine
        if self.scratch is None or not engine.cuda.within(self.scratch, engine.device_memory_size_v2):
            return self._refuse("no scratch memory")
        missing = [name for name in engine.names if name not in self.addresses]
        if missing or self.infer_shapes():
            return self._refuse(f"Address is not set for {missing}, shape for {self.infer_shapes()}")
        shapes = {name: self.get_tensor_shape(name) for name in engine.names}
        addresses = dict(self.addresses)
        return engine.cuda.enqueue(stream, lambda: _execute(engine, shapes, addresses)) == 0

    def _refuse(self, line: str) -> bool:
        self.engine.logger.log(Severity.WARNING, "a warning nobody wants")
        self.engine.logger.log(Severity.ERROR, f"IExecutionContext::enqueueV3: Error Code 3: API Usage Error ({line})")
        return False


def _execute(engine: Engine, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]) -> None:
    inputs = {}
    for name in engine.names:
        dtype = np.dtype(NUMPY[engine.get_tensor_dtype(name).name])
        nbytes = int(np.prod(shapes[name])) * dtype.itemsize
        if not engine.cuda.within(addresses[name], nbytes):
            engine.cuda.pending_error = ILLEGAL_ADDRESS
            return
        if name in engine.inputs:
            inputs[name] = np.frombuffer(ctypes.string_at(addresses[name], nbytes), dtype).reshape(shapes[name])
    engine.module.executions += 1
    for name, value in zip(engine.outputs, engine.session.run(list(engine.outputs), inputs), strict=True):
        assert value.shape == shapes[name]
        ctypes.memmove(addresses[name], np.ascontiguousarray(value).ctypes.data, value.nbytes)


def _module(name: str, version: str, cuda: FakeCudart) -> ModuleType:
    module: Any = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__version__ = version
    module.ILogger, module.TensorIOMode, module.TensorLocation = ILogger, TensorIOMode, TensorLocation
    module.ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    module.Runtime = lambda logger: Runtime(module, cuda, logger)
    module.seen_plans, module.configs, module.caches_read, module.executions = [], [], [], 0
    if name == "tensorrt_rtx":
        module.CudaGraphStrategy = CudaGraphStrategy
    return module
