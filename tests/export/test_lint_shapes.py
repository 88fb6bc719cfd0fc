"""The linter's types and shapes against those ONNX Runtime computes, value by value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from planish.export.decoder import build_decoder
from planish.export.lint_graph import LintGraph, load_graph
from tests.export.lint_cases import CASES, Case
from tests.export.small_decoders import quantized, random_decoder
from tests.export.test_lint_makers import bert

__all__ = ["bert"]

SIZES = {"batch": 3, "sequence": 7, "past": 4, "total": 11, "kept": 2, "s": 7, "anything": 5}


def concrete(graph: LintGraph) -> dict[str, tuple[int, ...]]:
    return {
        value.name or "": tuple(axis if isinstance(axis, int) else SIZES[str(axis)] for axis in value.shape or ())
        for value in graph.model.graph.inputs
    }


def fed(graph: LintGraph, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Small integers, or floats, in the given shapes."""
    random = np.random.default_rng(0)
    made: dict[str, Any] = {}
    for value in graph.model.graph.inputs:
        assert value.dtype is not None
        name, kind = value.name or "", value.dtype.numpy()
        numbers = random.integers(0, 2, shapes[name])
        made[name] = numbers.astype(kind)
    return made


def compare(file: Path) -> int:
    """Run ``file`` with every value as an output (beside it: its data is there); how many shapes and types agree."""
    graph = load_graph(file)
    shapes = concrete(graph)
    graph.sizes = dict(shapes)
    values = [output for node in graph.model.graph for output in node.outputs if output.name]
    told = {value.name: (graph.dtype(value), graph.shape(value)) for value in values}
    given = [value for value in values if value not in graph.model.graph.outputs]
    for value in given:
        value.type = ir.TensorType(graph.dtype(value) or ir.DataType.FLOAT)
        value.shape = None
    graph.model.graph.outputs.extend(given)
    ir.save(graph.model, file.parent / "all.onnx")
    session = onnxruntime.InferenceSession(file.parent / "all.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for name, array in zip(names, session.run_with_ort_values(names, ort_values(fed(graph, shapes))), strict=True):
        dtype, shape = told[name]
        assert shape == tuple(array.shape()), name
        assert dtype is not None
        assert dtype == onnx_type(array.element_type()), name
    return len(names)


def ort_values(feeds: dict[str, Any]) -> dict[str, onnxruntime.OrtValue]:
    return {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}


def onnx_type(number: int) -> ir.DataType:
    return ir.DataType(number)


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "opt"])
def test_decoders(family: str, tmp_path: Path) -> None:
    checkpoint = quantized(
        random_decoder(family, tmp_path / "float"), tmp_path / "q", bits=8, symmetric=True, group_size=None
    )
    built = build_decoder(checkpoint, tmp_path / "qdq", dialect="qdq")
    assert compare(built.folder / built.files[0]) > 90


def test_an_encoder_of_torch(bert: Path) -> None:
    assert compare(bert) > 90


RUNS = [case for case in CASES if case.rtx != "refused" and case.rule not in ("qdq-opset", "operator-version")]


@pytest.mark.parametrize("case", RUNS, ids=[f"{case.rule}-{case.name}" for case in RUNS])
def test_graphs_of_the_rules(case: Case, tmp_path: Path) -> None:
    ir.save(case.fixed(), tmp_path / "model.onnx")
    assert compare(tmp_path / "model.onnx") > 0
