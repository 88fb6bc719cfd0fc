"""The linter as it is called: files, bundles, profiles, the command line, what it reads and what it needs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planish import profiles
from planish.__main__ import main
from planish.errors import InputError
from planish.export.lint import RULES, Build, lint_model
from tests.blocked import run_without
from tests.export.lint_models import linear
from tests.export.tiny_graphs import Tiny, attention, int8_weight, quantized

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    file = tmp_path / "clean.onnx"
    ir.save(attention(), file)
    return file


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """An asymmetric activation: an error; and float16 floats all over: no warning."""
    file = tmp_path / "broken.onnx"
    ir.save(linear(int8_weight, quantize=lambda tiny, x: quantized(tiny, x, zero=3)), file)
    return file


def test_a_clean_graph_has_no_findings(clean: Path) -> None:
    report = lint_model(clean, profiles.load("rtx-4090"))
    assert report.ok
    assert not report.findings
    assert report.broken == []


def test_the_command_says_it_and_exits_1_on_an_error(
    clean: Path, broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(clean), "--lint", "--profile", "rtx-4090"]) == 0
    said = capsys.readouterr().out
    assert "0 errors, 0 warnings on rtx-4090" in said
    assert "attention: 1 of 1 can be fused" in said
    assert main(["inspect", str(broken), "--lint"]) == 1
    said = capsys.readouterr().out
    assert "error symmetric-zero-point: zero point 3" in said
    assert f"fix: {RULES['symmetric-zero-point'].fix}" in said


def test_warnings_alone_exit_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ir.save(attention("qk"), tmp_path / "slow.onnx")
    assert main(["inspect", str(tmp_path / "slow.onnx"), "--lint", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["exit_code"] == 0
    assert [finding["rule"] for finding in told["lint"]["findings"]] == ["attention-all-or-none"]
    assert set(told["lint"]["findings"][0]) == {"rule", "severity", "node", "reason", "fix"}
    assert told["lint"]["audit"]["attentions"] == {"total": 1, "fusible": 0}


def test_json_of_an_error(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(broken), "--lint", "--json"]) == 1
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["exit_code"] == 1
    assert told["lint"]["ok"] is False
    assert told["lint"] == lint_model(broken).to_json()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--profile", "rtx-4090"],  # without --lint
        ["--lint", "--profile", "rtx-49"],
    ],
)
def test_options_that_do_not_fit(arguments: list[str], clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(clean), *arguments]) == 2
    assert capsys.readouterr().err.startswith("planish: expected ")


@pytest.mark.parametrize("data", [b"", b"no model", b"\x08\x0a" * 50, b"\x00" * 64])
def test_what_is_no_model_is_refused_in_a_line(data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(data)
    assert main(["inspect", str(file), "--lint"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("planish: expected a")
    assert said.count("\n") == 1


@pytest.fixture(scope="module")
def whole() -> bytes:
    return bytes(ir.serde.serialize_model(attention("qk")).SerializeToString())


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 3_000), value=st.integers(0, 255), back=st.booleans(), cut=st.integers(0, 9_000))
def test_damaged_files_end_in_a_report_or_an_error(
    at: int, value: int, back: bool, cut: int, whole: bytes, tmp_path: Path
) -> None:
    """One changed byte (counted from the front, or from the back), or a file cut short: never another exception."""
    data = bytearray(whole)
    data[-1 - at if back else at] = value
    file = tmp_path / "model.onnx"
    file.write_bytes(bytes(data[:-cut] if cut % 3 == 1 else data))
    try:
        report = lint_model(file, profiles.load("rtx-4090"))
    except InputError:
        return
    json.dumps(report.to_json(), allow_nan=False)


def test_a_cycle_is_refused(tmp_path: Path) -> None:
    tiny = Tiny()
    first = tiny.op("Identity", tiny.x())
    second = tiny.op("Identity", first)
    tiny.nodes[0].replace_input_with(0, second)
    ir.save(tiny.model(second), tmp_path / "model.onnx")
    with pytest.raises(InputError, match="cycle"):
        lint_model(tmp_path / "model.onnx")


def test_long_chains_are_walked(tmp_path: Path) -> None:
    """Deeper than Python's stack: a quantized input moved 3,000 times, and 3,000 sums."""
    tiny = Tiny()
    x = quantized(tiny, tiny.x())
    for _ in range(3000):
        x = tiny.op("Identity", x)
    x = tiny.op("MatMul", x, int8_weight(tiny))
    for _ in range(3000):
        x = tiny.op("Add", x, x)
    ir.save(tiny.model(x), tmp_path / "model.onnx")
    report = lint_model(tmp_path / "model.onnx")
    assert report.broken == []
    assert set(report.audit.phases[0].shares) == {"int8"}


def test_scales_that_fold_are_constants(tmp_path: Path) -> None:
    """Computed from constants alone: TensorRT folds them when it builds."""
    tiny = Tiny()
    scale = tiny.op("Cast", tiny.op("Mul", *(tiny.const(np.float32(0.2)) for _ in "ab")), to=int(ir.DataType.FLOAT16))
    ir.save(tiny.model(tiny.op("MatMul", quantized(tiny, tiny.x(), scale), int8_weight(tiny))), tmp_path / "model.onnx")
    assert lint_model(tmp_path / "model.onnx").broken == []


def test_weights_in_external_data_stay_on_disk(tmp_path: Path) -> None:
    """Scales are read, weights are not: the verdict stands with the weights' bytes gone."""
    tiny = Tiny()
    x = tiny.x(width=512)
    model = tiny.model(tiny.op("MatMul", quantized(tiny, x), int8_weight(tiny, 512, 512)))
    file = tmp_path / "model.onnx"
    ir.save(model, file, external_data="model.onnx.data", size_threshold_bytes=1 << 17)
    assert (tmp_path / "model.onnx.data").stat().st_size >= 512 * 512
    whole = lint_model(file, profiles.load("rtx-4090")).to_json()
    (tmp_path / "model.onnx.data").unlink()
    assert lint_model(file, profiles.load("rtx-4090")).to_json() == whole
    assert whole["ok"]


def test_scales_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    ir.save(linear(int8_weight), file, external_data="model.onnx.data", size_threshold_bytes=1)
    (tmp_path / "model.onnx.data").write_bytes(b"short")
    with pytest.raises(InputError, match=re.escape(str(file))):
        lint_model(file)


def test_local_functions_are_looked_into(tmp_path: Path) -> None:
    """A function of another domain is no foreign operator, and what it holds is judged."""
    tiny = Tiny()
    x = tiny.x()
    tiny.op("Twice", x, domain="own")
    model = tiny.model(tiny.nodes[-1].outputs[0])
    inside = ir.Value(name="v")
    node = ir.node("DynamicQuantizeLinear", [inside], num_outputs=3, name="hidden")
    body = ir.Graph([inside], [node.outputs[0]], nodes=[node], opset_imports={"": 21})
    model.functions[("own", "Twice", "")] = ir.Function("own", "Twice", "", graph=body, attributes=[])
    ir.save(model, tmp_path / "model.onnx")
    assert lint_model(tmp_path / "model.onnx").broken == ["supported-operator"]


def test_which_rules_apply(clean: Path) -> None:
    without = set(lint_model(clean).not_checked)
    assert without == {name for name, rule in RULES.items() if rule.needs != "graph"}
    with_profile = set(lint_model(clean, profiles.load("t4")).not_checked)
    assert with_profile == {name for name, rule in RULES.items() if rule.needs == "build"}
    build = Build("tensorrt_rtx", "1.7.1.116", ("8.9",))
    assert lint_model(clean, profiles.load("rtx-4090"), build=build).not_checked == ()


def test_a_build_with_a_new_enough_tensorrt_is_not_held_to_the_profiles_oldest(tmp_path: Path) -> None:
    from tests.export.lint_models import rms_norm

    ir.save(rms_norm(True), tmp_path / "model.onnx")
    orin = profiles.load("jetson-agx-orin-64gb")
    assert lint_model(tmp_path / "model.onnx", orin).broken == ["operator-version"]
    newer = Build("tensorrt", "10.16.2", ("8.7",), gpu=True)
    assert lint_model(tmp_path / "model.onnx", orin, build=newer).broken == []
    older = Build("tensorrt", "10.13.3.9", ("8.7",), gpu=True)
    assert lint_model(tmp_path / "model.onnx", orin, build=older).broken == ["operator-version"]


def test_no_torch_no_engine_is_needed(clean: Path) -> None:
    blocked = ["torch", "transformers", "onnxruntime", "onnxscript", "pydantic", "tensorrt", "tensorrt_rtx"]
    asked = "['inspect', sys.argv[1], '--lint', '--profile', 'rtx-4090']"
    done = run_without(blocked, f"from planish.__main__ import main\nsys.exit(main({asked}))\n", clean)
    assert done.returncode == 0, done.stderr
    assert "0 errors, 0 warnings" in done.stdout


def test_many_findings_are_folded_for_people(tmp_path: Path) -> None:
    tiny = Tiny()
    x = tiny.x()
    for _ in range(6):
        x = tiny.op("BiasGelu", x, tiny.half(np.ones(64)), domain="com.microsoft")
    ir.save(tiny.model(x), tmp_path / "model.onnx")
    report = lint_model(tmp_path / "model.onnx")
    assert len(report.findings) == 6
    assert "  and 3 more" in report.lines()


def test_the_page_lists_every_rule() -> None:
    """docs/lint.md holds the table that `planish.export.lint` makes."""
    from planish.export.lint import table

    page = (ROOT / "docs" / "lint.md").read_text(encoding="utf-8")
    assert "\n".join(table()) in page
