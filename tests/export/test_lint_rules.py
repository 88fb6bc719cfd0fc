"""Every rule against TensorRT-RTX's real parser and builder: what breaks it is named, and its fix makes it build.

Engines are built and their plans read; none is run.
"""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("tensorrt_rtx", reason="NVIDIA publishes it for Linux on x86-64 only")

from planish import profiles
from planish.export.graph_products import Products
from planish.export.lint import RULES, Build, LintReport, lint_model
from planish.export.lint_graph import LintGraph
from planish.export.lint_rules_operators import UNSUPPORTED
from tests.export.lint_cases import CASES, Case, plain
from tests.export.tiny_graphs import Built, attention, build

IDS = [f"{case.rule}-{case.name}" for case in CASES]


def report_of(model: ir.Model, case: Case, told: Build | None, folder: Path) -> LintReport:
    file = folder / "model.onnx"
    ir.save(model, file)
    return lint_model(file, profiles.load(case.profile) if case.profile else None, build=told)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_broken_rule_is_named_and_its_fix_builds(case: Case, tmp_path: Path) -> None:
    broken, fixed = case.broken(), case.fixed()
    told = report_of(broken, case, case.build, tmp_path)
    found = [finding for finding in told.findings if finding.rule == case.rule]
    assert found, told.lines()
    names = {node.name for node in broken.graph} | {"the build"}
    assert all(finding.node in names and finding.reason and finding.fix == RULES[case.rule].fix for finding in found)
    assert told.ok == all(finding.severity == "warning" for finding in told.findings)

    mended = report_of(fixed, case, case.fixed_build or case.build, tmp_path)
    assert case.rule not in mended.broken, mended.lines()
    assert mended.ok, mended.lines()
    result = build(fixed, case.sm)
    assert result.ok, result.said
    judge(case, build(broken, case.sm), result)


def judge(case: Case, broken: Built, fixed: Built) -> None:
    """TensorRT-RTX does with the broken graph what the case says."""
    if case.rtx == "refused":
        assert not broken.ok
        assert broken.said
        assert RULES[case.rule].severity == "error"
        return
    assert broken.ok, broken.said
    assert case.why
    if case.rtx == "slower":
        assert case.costs is not None
        assert case.costs(fixed) > case.costs(broken), (case.why, broken, fixed)
    elif case.rtx == "wrong":
        assert RULES[case.rule].severity == "error"


def test_every_rule_has_an_example() -> None:
    assert {case.rule for case in CASES} == set(RULES)


def test_the_verdict_on_attention_is_the_builders() -> None:
    """Every way to quantize the inputs of an attention: the linter says fused where the plan has a fused kernel."""
    said, built = {}, {}
    inputs = ["".join(names) for size in range(5) for names in combinations("qkpv", size)]
    for made in product(inputs, ("int8", "float"), (np.float16, np.float32)):
        chosen, linears, floats = made
        model = attention(chosen, linears=linears, floats=floats)
        built[made] = build(model).fused_attentions == 1
        (one,) = Products(LintGraph(model, Path("tiny.onnx"))).attentions
        said[made] = one.fusible
    assert said == built


def test_the_list_of_operators_is_the_parsers() -> None:
    import tensorrt_rtx as trt

    log = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(log).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert {name for name in known if not parser.supports_operator(name)} == UNSUPPORTED & known


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this host has a GPU")
@pytest.mark.parametrize("flag", ["REFIT", "STRIP_PLAN"])
def test_refit_without_a_gpu_is_refused(flag: str) -> None:
    refused = build(plain(), flags=(flag,))
    assert not refused.ok
    assert "CUDA" in refused.said
