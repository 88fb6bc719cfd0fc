"""How large a graph's inner values become on text: which of them float16 cannot hold.

The float32 twin runs in ONNX Runtime with one more scalar output a value, ``max |x|``, so that memory stays that of the
model. What is looked at: every float value a node makes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxruntime
from numpy.typing import NDArray

from planish.export.element_types import fill_types
from planish.export.probe import save_copy
from planish.export.to_half import LARGEST

__all__ = ["LIMIT", "Ranges", "measure_ranges"]

LIMIT = LARGEST / 4
"""Values that reached this on the texts stay float32: other texts may reach further."""

_FLOAT_MAX = 3.4e38  # stands for infinity, which JSON cannot write

_NORMS = ("LayerNormalization", "ReduceMean", "Softmax")
"""Operators whose inputs are always named in the report, for they overflow first."""


@dataclass(frozen=True)
class Ranges:
    """Value name -> the largest magnitude seen; ``wide`` are those that stay float32."""

    largest: Mapping[str, float]
    reported: tuple[str, ...]

    @property
    def wide(self) -> tuple[str, ...]:
        return tuple(name for name, seen in self.largest.items() if not seen < LIMIT)

    def to_json(self) -> dict[str, Any]:
        """For the manifest: the limit, what reads of norms and softmax, and what stays float32."""
        finite = {name: float(np.nan_to_num(self.largest[name], nan=np.inf)) for name in (*self.reported, *self.wide)}
        named = {name: float(f"{min(seen, _FLOAT_MAX):.3g}") for name, seen in finite.items()}
        return {"limit": LIMIT, "largest": named, "fp32": list(self.wide)}


def measure_ranges(
    path: Path, batches: Iterable[Mapping[str, NDArray[Any]]], entries: Mapping[str, str] | None = None
) -> Ranges:
    """Run the graph at ``path`` (float32) on ``batches`` of its inputs and keep the largest magnitudes.

    ``entries`` are session config entries the graph needs.
    """
    model = ir.load(path)
    fill_types(model.graph)
    watched = [value for node in model.graph for value in node.outputs if value.dtype == ir.DataType.FLOAT]
    reported = [
        str(node.inputs[0].name)
        for node in model.graph
        if node.op_type in _NORMS and node.inputs[0] is not None and node.inputs[0].producer() is not None
    ]
    for index, value in enumerate(watched):
        magnitude = ir.node("Abs", [value], name=f"range.{index}.abs")
        largest = ir.node("ReduceMax", [magnitude.outputs[0]], {"keepdims": 0}, name=f"range.{index}.max")
        largest.outputs[0].name, largest.outputs[0].type = f"range.{index}", ir.TensorType(ir.DataType.FLOAT)
        model.graph.extend([magnitude, largest])
        model.graph.outputs.append(largest.outputs[0])
    passes.TopologicalSortPass()(model)
    wanted = [f"range.{index}" for index in range(len(watched))]
    seen = np.zeros(len(watched))
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        session = _session(save_copy(model, path, Path(folder) / "ranges.onnx"), entries or {})
        for batch in batches:
            seen = np.maximum(seen, np.array([float(one) for one in session.run(wanted, dict(batch))]))
    names = [str(value.name) for value in watched]
    return Ranges(dict(zip(names, seen.tolist(), strict=True)), tuple(dict.fromkeys(reported)))


def _session(path: Path, entries: Mapping[str, str]) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
