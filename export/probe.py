"""Look inside an exported graph: what its quantizers read, and which integers it holds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["graph_integers", "quantizer_inputs", "save_copy", "write_probe"]

SUFFIX = ".quantized.weight"
SMOOTHING = ".pre_quant_scale"


def quantizer_inputs(path: Path) -> dict[str, str]:
    """Module name -> name of the float value that is quantized to become its input."""
    readers: dict[str, str] = {}
    for node in ir.load(path).graph:
        if node.op_type in ("MatMulIntegerToFloat", "MatMul"):
            integers, weight = (_before(value, "DequantizeLinear") for value in node.inputs[:2])
            quantizer = integers.producer()
            if quantizer is not None and quantizer.op_type == "QuantizeLinear" and str(weight.name).endswith(SUFFIX):
                read = _before_smoothing(quantizer.inputs[0])
                readers |= dict.fromkeys(modules_of(weight), str(read.name))
    return readers


def _before(value: ir.Value | None, kind: str) -> ir.Value:
    """The first input of the ``kind`` of node that makes ``value``, else ``value`` itself."""
    assert value is not None
    node = value.producer()
    return value if node is None or node.op_type != kind or node.inputs[0] is None else node.inputs[0]


def _before_smoothing(value: ir.Value | None) -> ir.Value:
    """What a layer reads: the value before it is multiplied by a ``pre_quant_scale``."""
    assert value is not None
    node = value.producer()
    if node is None or node.op_type != "Mul" or not str(getattr(node.inputs[1], "name", "")).endswith(SMOOTHING):
        return value
    assert node.inputs[0] is not None
    return node.inputs[0]


def modules_of(weight: ir.Value) -> list[str]:
    """The modules whose integers an initializer holds, in order of columns."""
    return str(weight.name).removesuffix(SUFFIX).split("|")


def graph_integers(path: Path) -> dict[str, NDArray[Any]]:
    """Module name -> int8 ``[out, in]`` (or ``[rows, width]``) as the graph holds them."""
    found: dict[str, NDArray[Any]] = {}
    for name, value in ir.load(path).graph.initializers.items():
        if name.endswith(SUFFIX) and value.const_value is not None:
            array = _signed(value.const_value.numpy())
            is_table = _is_gathered(value)
            modules = modules_of(value)
            parts = [array] if is_table else np.split(array.T, len(modules))
            found.update(zip(modules, parts, strict=True))
    return found


def _is_gathered(value: ir.Value) -> bool:
    """Whether rows of ``value`` are looked up, as they lie or dequantized."""
    readers = list(value.consumers())
    for node in value.consumers():
        if node.op_type == "DequantizeLinear":
            readers += node.outputs[0].consumers()
    return any(node.op_type.startswith("Gather") for node in readers)


def _signed(array: NDArray[Any]) -> NDArray[Any]:
    """com.microsoft's 8-bit blocks are offset to unsigned, and have an axis of blocks."""
    if array.dtype == ml_dtypes.float8_e4m3fn:
        return array
    if array.dtype != np.uint8:
        return array.astype(np.int8, copy=False)  # int4 of the qdq dialect
    return (array.astype(np.int16) - 128).astype(np.int8).reshape(len(array), -1)


def write_probe(path: Path, values: Sequence[str], folder: Path) -> Path:
    """A copy of the model with ``values`` as additional outputs, whose MatMulNBits do not round their inputs."""
    model = ir.load(path)
    wanted = set(values)
    for node in model.graph:
        if node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 0)
        for value in node.outputs:
            if value.name in wanted:
                value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
                model.graph.outputs.append(value)
    return save_copy(model, path, folder / "probe.onnx")


def save_copy(model: ir.Model, source: Path, copy: Path) -> Path:
    """Write a changed ``model`` of the file ``source`` to ``copy``, in another folder; returns ``copy``.

    Weights outside the file (``<source>.data``) stay what they are: ONNX Runtime wants them beside the copy, and
    follows no symbolic link out of its folder.
    """
    ir.save(model, copy)
    data = source.with_name(f"{source.name}.data")
    if data.exists():
        try:
            os.link(data, copy.with_name(data.name))
        except OSError:  # a file system without hard links
            shutil.copyfile(data, copy.with_name(data.name))
    return copy
