"""Plans of emitted decoders for the tests: strongly typed, one prefill and one decode profile, never run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import tensorrt_rtx as trt

from planish.export.plan_report import report

__all__ = ["Sizes", "counts", "plan"]

Sizes = Mapping[str, tuple[tuple[int, int], tuple[int, int], tuple[int, int]]]
"""Profile -> new and past positions: least, usual, most."""


def shape(name: str, of: Any, batch: int, new: int, past: int) -> tuple[int, ...]:
    if name.startswith("past_key_values"):
        return (batch, of[1], past, of[3])
    return {"attention_mask": (batch, new + past), "logits_index": (batch, 1)}.get(name, (batch, new))


def plan(path: Path, profiles: Sizes, target: str = "SM89") -> bytes:
    """The plan of ``path`` for one compute capability, with these optimization profiles."""
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    assert parser.parse_from_file(str(path)), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
    for sizes in profiles.values():
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            value = network.get_input(index)
            shapes = [
                shape(value.name, value.shape, batch, *size) for batch, size in zip((1, 1, 4), sizes, strict=True)
            ]
            profile.set_shape(value.name, *shapes)
        config.add_optimization_profile(profile)
    data = builder.build_serialized_network(network, config)
    assert data is not None
    return bytes(data)


def counts(path: Path, data: bytes, profiles: Sizes) -> dict[str, Any]:
    """What the plan ``data`` of ``path`` executes in each profile."""
    products = [str(node.name) for node in ir.load(path).graph if node.op_type == "MatMul"]
    found = report(data, "tensorrt_rtx", trt.__version__, list(profiles), products)
    assert found is not None
    return found
