"""Products of 8-bit numbers on this processor: what ONNX Runtime is told, and that the integers come out exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from planish.runtime import dot_products
from planish.runtime.dot_products import NARROW, adds_exactly, exact_options
from planish.runtime.engine import open_session, session_options_for
from planish.runtime.manifest import Dialect
from planish.runtime.placement import CPU, Placement

KEY = "session.x64quantprecision"
ORT, QDQ = {KEY: "1"}, {"session.disable_quant_qdq": "1"}
INT8 = {"linear": "int8", "activations": "int8 static"}
ROWS, WIDTH, COLUMNS = 40, 384, 96


def extreme(lowest: int, highest: int) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """Activations and weights at the ends of their ranges: many pairs of products are as large as they can be."""
    rng = np.random.default_rng(0)
    weights = rng.choice([lowest, lowest + 1, highest - 1, highest], (WIDTH, COLUMNS)).astype(np.int8)
    weights[:, 0], weights[:, 1] = highest, lowest
    return rng.choice([0, 254, 255], (ROWS, WIDTH), p=[0.1, 0.1, 0.8]).astype(np.uint8), weights


def integer_linear(weights: NDArray[np.int8]) -> bytes:
    """uint8 activations around 128 times int8 weights, all scales 1: the `ort` dialect's product."""
    made = [
        numpy_helper.from_array(weights, "w"),
        numpy_helper.from_array(np.float32(1), "one"),
        numpy_helper.from_array(np.ones(COLUMNS, np.float32), "scales"),
        numpy_helper.from_array(np.uint8(128), "zero"),
    ]
    names = ["x", "w", "one", "scales", "zero"]
    return model([helper.make_node("MatMulIntegerToFloat", names, ["y"], domain="com.microsoft")], made, "UINT8")


def quantized_linear(weights: NDArray[np.int8]) -> bytes:
    """QuantizeLinear, DequantizeLinear, MatMul in int8: the `qdq` dialect's, which ONNX Runtime fuses to the same."""
    made = [
        numpy_helper.from_array(weights, "w"),
        numpy_helper.from_array(np.float32(1), "one"),
        numpy_helper.from_array(np.ones(COLUMNS, np.float32), "scales"),
        numpy_helper.from_array(np.int8(0), "zero"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["w", "scales"], ["floats"], axis=1),
        helper.make_node("MatMul", ["rounded", "floats"], ["y"]),
    ]
    return model(nodes, made, "FLOAT")


def model(nodes: list[Any], made: list[Any], kind: str) -> bytes:
    x = helper.make_tensor_value_info("x", getattr(TensorProto, kind), ["rows", WIDTH])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", COLUMNS])
    graph = helper.make_graph(nodes, "products", [x], [y], made)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


def spelled(
    spelling: str, activations: NDArray[np.uint8], weights: NDArray[np.int8]
) -> tuple[bytes, NDArray[Any], NDArray[np.int64]]:
    """A graph, its input, and the integers that are to come out."""
    centred = activations.astype(np.int64) - 128
    wanted = centred @ weights.astype(np.int64)
    if spelling == "qdq":
        return quantized_linear(weights), centred.astype(np.float32), wanted
    return integer_linear(weights), activations, wanted


def products(
    spelling: str, graph: bytes, x: NDArray[Any], folder: Path, precision: dict[str, str], given: Any = None
) -> Any:
    """What the runtime's own session answers."""
    path = folder / "model.onnx"
    path.write_bytes(graph)
    onnx.checker.check_model(onnx.load(path))
    dialect = Dialect("model.onnx", 21, (), (), precision)
    options = session_options_for(onnxruntime, spelling, dialect, given, 1)
    return open_session(onnxruntime, path, dialect, options, Placement((CPU,), ({},))).run(["y"], {"x": x})[0]


@pytest.mark.parametrize("spelling", ["ort", "qdq"])
@pytest.mark.parametrize(("lowest", "highest", "narrow"), [(-127, 127, False), (-64, 63, True)])
def test_integers_are_exact_on_this_host(
    spelling: str, lowest: int, highest: int, narrow: bool, tmp_path: Path
) -> None:
    """Of the full range with the runtime's entry where it is needed, of the narrow range by the fast kernels."""
    graph, x, wanted = spelled(spelling, *extreme(lowest, highest))
    precision = INT8 | (dict([NARROW]) if narrow else {})
    assert not (narrow and exact_options(spelling, precision)), "narrow weights need no entry"
    np.testing.assert_array_equal(products(spelling, graph, x, tmp_path, precision), wanted)


@pytest.mark.parametrize(("spelling", "off"), [("ort", {KEY: "0"}), ("qdq", {"session.disable_quant_qdq": "0"})])
def test_without_the_entry_sums_saturate(spelling: str, off: dict[str, str], tmp_path: Path) -> None:
    if adds_exactly():
        pytest.skip("this processor has VNNI or is no x86: its integer products never saturate")
    graph, x, wanted = spelled(spelling, *extreme(-127, 127))
    found = products(spelling, graph, x, tmp_path, INT8, off)  # the caller's word counts
    assert np.abs(found - wanted).max() > 0.1 * np.abs(wanted).max()


def cpuinfo(root: Path, text: str) -> Path:
    (root / "proc").mkdir(parents=True)
    (root / "proc" / "cpuinfo").write_text(text)
    return root


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        ("processor : 0\nflags : lm avx2 fma\n", False),
        ("processor : 0\nflags : lm avx2 avx512f avx512bw\n", False),
        ("processor : 0\nflags : lm avx2 avx512_vnni\n", True),
        ("processor : 0\nflags : lm avx2 avx_vnni\n", True),
        ("processor : 0\nflags : lm avx_vnni\n\nprocessor : 1\nflags : lm avx2\n", False),
        ("processor : 0\nCPU implementer : 0x41\nFeatures : fp asimd\n", True),
        ("nonsense", None),
        (None, None),
    ],
)
@pytest.mark.parametrize("machine", ["x86_64", "arm64"])
def test_what_a_processor_can_do(
    text: str | None, exact: bool | None, machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    root = tmp_path if text is None else cpuinfo(tmp_path / "root", text)
    assert adds_exactly(root) == (machine == "arm64" if exact is None else exact)


@pytest.mark.parametrize(
    ("precision", "needed"),
    [
        (INT8, True),
        ({**INT8, "activations": "int8 per token + int8 static"}, True),
        ({"linear": "int8", "activations": "fp32"}, False),
        ({"linear": "fp8", "activations": "fp8 static"}, False),
        ({"linear": "int4 g32", "compute": "fp32"}, False),
        ({}, False),
        (INT8 | {"linear_range": "-64..63"}, False),
        (INT8 | {"linear_range": "something newer"}, True),
    ],
)
def test_only_graphs_that_could_saturate_get_the_entry(
    precision: dict[str, str], needed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dot_products, "adds_exactly", lambda: False)
    assert exact_options("ort", precision) == (ORT if needed else {})
    assert exact_options("qdq", precision) == (QDQ if needed else {})
    monkeypatch.setattr(dot_products, "adds_exactly", lambda: True)
    assert exact_options("ort", precision) == exact_options("qdq", precision) == {}


def test_the_callers_entry_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dot_products, "adds_exactly", lambda: False)

    def entry(given: Any, session: dict[str, str] | None = None) -> str:
        dialect = Dialect("model.onnx", 21, (), (), INT8, session or {})
        return str(session_options_for(onnxruntime, "ort", dialect, given, None).get_session_config_entry(KEY))

    own = onnxruntime.SessionOptions()
    own.add_session_config_entry(KEY, "0")
    assert [entry(None), entry({}), entry(onnxruntime.SessionOptions())] == ["1", "1", "1"]
    assert [entry({KEY: "0"}), entry(own), entry(None, {KEY: "0"})] == ["0", "0", "0"]
