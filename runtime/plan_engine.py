"""A bundle's engine behind the same two methods as an ONNX Runtime session: arrays in, arrays out.

A run: inputs into pinned memory, to the device, shapes and addresses set, executed (from the second time on as a CUDA
graph), outputs back. Buffers only grow; everything is freed by :meth:`PlanEngine.close`.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planish.errors import HostError, RequestError
from planish.runtime.cuda import Cuda
from planish.runtime.device_memory import Pool, array_at
from planish.runtime.device_time import add_device_time, is_device_time_counted
from planish.runtime.engine_info import EngineInfo
from planish.runtime.kernel_cache import KernelCache
from planish.runtime.manifest import Dialect
from planish.runtime.plan import Plan, Port
from planish.runtime.replay import Replays
from planish.runtime.validate import Limits, check_inputs

__all__ = ["PlanEngine", "Split"]

Arrays = Mapping[str, NDArray[Any]]

LENGTH_STEP = 16
"""Tokens. Tensor cores work on tiles of this size, so the padding costs next to nothing."""
ALIGNMENT = 256
"""Bytes; what TensorRT asks of an address."""
STAGED = 32 << 20
"""Bytes up to which an output comes back through pinned memory, which is kept; a larger one takes CUDA's own way."""


@dataclass(frozen=True)
class Split:
    """Milliseconds of one run by the device's clock: inputs to the device, execution, outputs back."""

    to_device: float
    compute: float
    to_host: float


class PlanEngine:
    """An open engine on one device. Threads may share it: one execution runs at a time."""

    def __init__(
        self,
        module: ModuleType,
        cuda: Cuda,
        data: bytes,
        info: EngineInfo,
        dialect: Dialect,
        limits: Limits,
        *,
        cuda_graphs: int = 8,
        kernels: KernelCache | None = None,
    ) -> None:
        self.dialect, self.limits, self.info, self.cuda = dialect, limits, info, cuda
        self.input_names = tuple(tensor.name for tensor in dialect.inputs)
        self.output_names = tuple(tensor.name for tensor in dialect.outputs)
        self.lock = threading.RLock()
        self.memory, self._pinned = Pool(cuda), Pool(cuda, pinned=True)
        self._blocks = DeviceBlocks(self)
        self.stream = 0
        self._events: list[int] = []
        self._marking = False
        self.plan: Plan | None = None
        graphs = 0 if limits.generation else cuda_graphs  # a decoder's shapes never come back: its past grows
        self.replays = Replays(cuda, graphs)
        try:
            cuda.activate()
            self.stream = cuda.stream()
            self.plan = Plan(module, cuda, self.memory, data, info, graphs=graphs > 0, kernels=kernels)
            if self.plan.self_graphs:
                self.replays.limit = 0
        except BaseException:
            self.close()
            raise

    @property
    def session(self) -> Any:
        """Engines have no ONNX Runtime session."""
        raise RequestError("a model that runs in ONNX Runtime", "a TensorRT engine", "load with device='cpu' or 'cuda'")

    @property
    def max_rows(self) -> int:
        """The largest batch any optimization profile takes."""
        return max(ranges["input_ids"].max[0] for ranges in self.open().profiles)

    def padded(self, length: int) -> int:
        """To how many tokens a batch of this length is padded: whole steps, so that shapes, and their graphs, repeat.

        A length that no optimization profile takes stays as it is, and is refused by its own number.
        """
        sizes = [(ranges["input_ids"].min[1], ranges["input_ids"].max[1]) for ranges in self.open().profiles]
        least, most = min(low for low, _ in sizes), min(max(high for _, high in sizes), self.limits.max_length)
        wanted = max(-(-length // LENGTH_STEP) * LENGTH_STEP, least)
        return min(wanted, most) if length <= most else length

    def open(self) -> Plan:
        """The plan, while it is open."""
        if self.plan is None:
            raise RequestError("an open model", "a closed one", "load the bundle again")
        return self.plan

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """All outputs by name. Raises RequestError for inputs that do not fit, HostError when the engine gives up."""
        check_inputs(inputs, self.dialect.inputs, (), self.limits)
        return self.run_on(inputs, {}, {})

    def timed(self, inputs: Arrays) -> tuple[dict[str, NDArray[Any]], Split]:
        """As :meth:`run`, and where its time went. The marks themselves cost a few microseconds."""
        with self.lock:
            self.open()
            self._marking = True
            try:
                outputs = self.run(inputs)
            finally:
                self._marking = False
            first, second, third, fourth = self._events
            spans = [(first, second), (second, third), (third, fourth)]
            return outputs, Split(*(self.cuda.milliseconds(*span) for span in spans))

    def run_on(
        self, inputs: Arrays, held: Mapping[str, int], held_shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, NDArray[Any]]:
        """As :meth:`run`, unchecked; tensors in ``held`` (name to address) lie on the device and stay there.

        ``held_shapes`` are the shapes of held inputs. Held outputs are not in the result.
        """
        with self.lock:
            plan = self.open()
            shapes = {name: tuple(array.shape) for name, array in inputs.items()}
            # Held inputs are a cache's, all of one shape: to look at one spares a decoder's step dozens of looks.
            profile = plan.choose({**shapes, **dict(list(held_shapes.items())[:1])})
            shapes |= held_shapes
            self.cuda.activate()
            try:
                return self._run(plan, profile, inputs, shapes, held)
            except BaseException:
                self.settle()
                raise

    def _run(
        self,
        plan: Plan,
        profile: int,
        inputs: Arrays,
        shapes: Mapping[str, tuple[int, ...]],
        held: Mapping[str, int],
    ) -> dict[str, NDArray[Any]]:
        moves, counted = self.memory.moves, is_device_time_counted()
        marked = counted or self._marking
        while marked and len(self._events) < 4:
            self._events.append(self.cuda.event())
        context = plan.context(profile, self.stream)
        self._mark(0, marked)
        addresses = self._send(plan, inputs)
        own = [name for name in self.output_names if name not in held]
        found = plan.prepare(context, shapes, {**addresses, **held}, own)
        sizes = {name: _nbytes(found[name], plan.ports[name].dtype) for name in own}
        outputs = {name: self._address(plan.ports[name], size) for name, size in sizes.items()}
        addresses |= {**outputs, **held}
        if self.memory.moves != moves:
            self.replays.forget()
        plan.bind(context, outputs)
        self._mark(1, marked)
        self._execute(plan, profile, context, shapes, addresses)
        self._mark(2, marked)
        staged = {name: self._fetch(plan.ports[name], outputs[name], found[name]) for name in own}
        self._mark(3, marked)
        self.cuda.synchronize(self.stream)
        if counted:
            add_device_time(self.cuda.milliseconds(self._events[1], self._events[2]) / 1000)
        return {name: array if array.flags.owndata else array.copy() for name, array in staged.items()}

    def _execute(
        self,
        plan: Plan,
        profile: int,
        context: Any,
        shapes: Mapping[str, tuple[int, ...]],
        addresses: Mapping[str, int],
    ) -> None:
        if self.replays.limit == 0:
            plan.enqueue(context, self.stream)
            return

        def dedicated() -> tuple[Any, Any]:
            own = plan.new_context(profile, self.stream)
            plan.prepare(own, shapes, addresses, ())
            return own, lambda: plan.enqueue(own, self.stream)

        key = (profile, tuple(sorted(shapes.items())), tuple(sorted(addresses.items())))
        self.replays(key, self.stream, lambda: plan.enqueue(context, self.stream), dedicated)

    def _mark(self, number: int, marked: bool) -> None:
        if marked:
            self.cuda.record(self._events[number], self.stream)

    def cache_memory(self) -> DeviceBlocks:
        """Where a decoder's run keeps keys and values; freed with the engine at the latest."""
        return self._blocks

    def _address(self, port: Port, nbytes: int) -> int:
        pool = self._pinned if port.on_host else self.memory
        return pool.address(port.name, nbytes)

    def _send(self, plan: Plan, inputs: Arrays) -> dict[str, int]:
        """Puts all inputs into one pinned block and sends it by one copy; returns where each will be."""
        offsets, total = {}, 0
        for name, array in inputs.items():
            if not plan.ports[name].on_host:
                offsets[name] = total
                total += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        there, here = self.memory.address("inputs", total), self._pinned.address("inputs", total)
        addresses = {name: there + offset for name, offset in offsets.items()}
        for name, array in inputs.items():
            port = plan.ports[name]
            if port.on_host:
                addresses[name] = self._pinned.address(name, array.nbytes)
            target = addresses[name] if port.on_host else here + offsets[name]
            array_at(target, array.shape, port.dtype)[...] = array
        self.cuda.copy(there, here, total, self.stream)
        return addresses

    def _fetch(self, port: Port, address: int, shape: tuple[int, ...]) -> NDArray[Any]:
        """The output as it will be once the stream is synchronized."""
        if port.on_host:
            return array_at(address, shape, port.dtype)
        nbytes = _nbytes(shape, port.dtype)
        if nbytes > STAGED:
            array = np.empty(shape, port.dtype)
            self.cuda.copy(array.ctypes.data, address, nbytes, self.stream)
            return array
        staging = self._pinned.address(f"{port.name}.staging", nbytes)
        self.cuda.copy(staging, address, nbytes, self.stream)
        return array_at(staging, shape, port.dtype)

    def settle(self) -> None:
        """After a failure: waits for what was started, so that its buffers can be used again or freed."""
        with contextlib.suppress(HostError):  # the same failure again
            self.cuda.synchronize(self.stream)

    def close(self) -> None:
        """Frees graphs, contexts, engine, stream and memory, in this order. Twice is fine."""
        with self.lock:
            plan, self.plan = self.plan, None
            events, self._events = self._events, []
            steps = [self.cuda.activate, self.replays.forget]
            steps += [partial(self.cuda.destroy_event, event) for event in events]
            steps += [plan.close] if plan is not None else []
            stream, self.stream = self.stream, 0
            steps += [partial(self.cuda.destroy_stream, stream)] if stream else []
            steps += [self._blocks.close, self.memory.close, self._pinned.close]
            errors = []
            for step in steps:
                try:
                    step()
                except Exception as error:  # whatever one step says, the others free what they can
                    errors.append(error)
            if errors:
                raise errors[0]

    def __del__(self) -> None:
        # A model nobody closed. While Python itself ends, the driver frees everything, and modules may be gone.
        if not sys.is_finalizing():
            with contextlib.suppress(Exception):
                self.close()


class DeviceBlocks:
    """Device memory of decoder runs, so that closing the engine frees what a run still holds."""

    def __init__(self, engine: PlanEngine) -> None:
        self._engine = engine
        self._held: set[int] = set()

    def allocate(self, nbytes: int) -> int:
        with self._engine.lock:
            self._engine.open()
            self._engine.cuda.activate()
            address = self._engine.cuda.allocate(nbytes)
            self._held.add(address)
            return address

    def free(self, address: int) -> None:
        with self._engine.lock:
            if address in self._held:
                self._held.remove(address)
                self._engine.cuda.activate()
                self._engine.cuda.free(address)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """On the engine's stream, before whatever it runs next."""
        with self._engine.lock:
            self._engine.open()
            self._engine.cuda.activate()
            self._engine.cuda.copy(target, source, nbytes, self._engine.stream)

    def close(self) -> None:
        while self._held:
            self.free(next(iter(self._held)))


def _nbytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return math.prod(shape) * dtype.itemsize
