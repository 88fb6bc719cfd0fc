"""A graph under construction whose weights go straight to disk.

Weights are appended to the external data file the moment they are emitted, so that the graph holds offsets, never
tensors: peak memory is one tensor. ONNX Runtime maps the file, so the pages of a weight that it repacks are given back
after loading.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["CONTRIB", "INLINE_BYTES", "EmitGraph"]

Array = NDArray[Any]

CONTRIB = "com.microsoft"
INLINE_BYTES = 1024
"""Smaller tensors stay in the model file, where shape inference can read them."""

_ALIGNMENT = 4096  # pages: what one weight touches is not shared with the next


class EmitGraph:
    """Nodes, small constants and streamed weights of one model; a context manager that closes the data file.

    ``folder`` receives ``model.onnx`` and ``model.onnx.data``.
    """

    def __init__(self, folder: Path, *, opset: int) -> None:
        self.folder = folder
        self.opset = opset
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []
        self._tape = ir.tape.Tape()
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._memory: dict[Any, Any] = {}
        self._data_name = "model.onnx.data"
        self._data = (folder / self._data_name).open("wb")

    def __enter__(self) -> EmitGraph:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data.close()

    def input(self, name: str, dtype: str, shape: tuple[int | str, ...]) -> ir.Value:
        """Declare a graph input; ``dtype`` as numpy names it."""
        value = ir.val(name, dtype=ir.DataType.from_numpy(np.dtype(dtype)), shape=shape)
        self.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, dtype: str, shape: tuple[int | str, ...]) -> None:
        """Declare ``value`` a graph output under ``name``."""
        value.name = name
        value.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))
        value.shape = ir.Shape(shape)
        self.outputs.append(value)

    def overridable(self, name: str, default: Array) -> ir.Value:
        """An input with a default: an initializer that callers may feed and need not know of."""
        value = self._tape.initializer(ir.tensor(default, name=name))
        self.inputs.append(value)
        return value

    def op(self, kind: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """A node with one output."""
        return self._tape.op(kind, list(inputs), attributes, domain=domain)

    def ops(self, kind: str, outputs: int, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> Any:
        """A node with several outputs."""
        return self._tape.op_multi_out(kind, list(inputs), attributes, num_outputs=outputs, domain=domain)

    def constant(self, value: Any, dtype: str = "int64") -> ir.Value:
        """A small constant, stored once however often it is used."""
        array = np.asarray(value, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[key] = self._tape.initializer(ir.tensor(array, name=name))
        return self._constants[key]

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make()`` gave the first time it was asked for under ``key``; for nodes that several layers share."""
        if key not in self._memory:
            self._memory[key] = make()
        return self._memory[key]

    def weight(self, name: str, array: Array) -> ir.Value:
        """A weight: appended to the data file now, forgotten here."""
        array = np.ascontiguousarray(array)
        if array.nbytes < INLINE_BYTES:
            return self._tape.initializer(ir.tensor(array, name=name))
        return self._append(name, array, ir.DataType.from_numpy(array.dtype), array.shape)

    def _append(self, name: str, array: Array, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
        """The bytes of ``array`` at the end of the data file, as an initializer of ``dtype`` and ``shape``."""
        offset = -(-self._data.tell() // _ALIGNMENT) * _ALIGNMENT if array.nbytes >= _ALIGNMENT else self._data.tell()
        self._data.seek(offset)
        self._data.write(array.reshape(-1).view(np.uint8).data)  # numpy's tofile hides why a disk refuses
        return self._external(name, offset, array.nbytes, dtype, shape)

    def integers(self, name: str, values: Array, bits: int) -> ir.Value:
        """Signed integers of 8 or 4 bits as int8 or int4, two of these in a byte, the first in the low bits."""
        if bits == 8:
            return self.weight(name, values)
        flat = np.pad(values.reshape(-1), (0, values.size % 2)).view(np.uint8) & np.uint8(15)
        return self._packed(name, flat[0::2] | (flat[1::2] << np.uint8(4)), ir.DataType.INT4, values.shape)

    def _packed(self, name: str, octets: Array, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
        if octets.nbytes < INLINE_BYTES:
            return self._tape.initializer(ir.PackedTensor(octets, dtype, ir.Shape(shape), name=name))
        return self._append(name, octets, dtype, shape)

    def again(self, name: str, weight: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        """The bytes of ``weight`` as another initializer of another shape.

        A kernel that repacks a weight lets its mapping go afterwards, and with it every page it read. Were the weight
        shared with a Gather, the mapping would stay; so each user gets its own mapping of the same bytes.
        """
        tensor = weight.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            return self._tape.initializer(ir.tensor(tensor.numpy().reshape(shape), name=name))
        return self._external(name, tensor.offset, tensor.length, tensor.dtype, shape)

    def _external(self, name: str, offset: int, length: int, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
        tensor = ir.ExternalTensor(
            self._data_name, offset, length, dtype, shape=ir.Shape(shape), name=name, base_dir=self.folder
        )
        return self._tape.initializer(tensor)

    def half(self, name: str, array: Array) -> ir.Value:
        """A float32 weight kept as float16 if that loses nothing; the cast back is folded when a session loads."""
        narrow = array.astype(np.float16)
        if not np.array_equal(narrow.astype(np.float32), array):
            return self.weight(name, array)
        return self.op("Cast", self.weight(f"{name}.half", narrow), to=int(ir.DataType.FLOAT))

    def save(self) -> tuple[str, ...]:
        """Write ``model.onnx``; returns the file names, the model first."""
        self._data.flush()
        graph = ir.Graph(
            self.inputs,
            self.outputs,
            nodes=self._tape.nodes,
            initializers=self._tape.initializers,
            opset_imports={"": self.opset} | {node.domain: 1 for node in self._tape.nodes if node.domain},
            name="decoder",
        )
        model = ir.Model(graph, ir_version=10, producer_name="planish")
        ir.save(model, str(self.folder / "model.onnx"))
        return ("model.onnx", self._data_name) if self._data.tell() else ("model.onnx",)
