"""`planish gate` on bundles that are known to be bad, and on one that is known to be as good: itself.

A gate that passes whatever it is given cannot be told from a good one by good bundles. Times are judged by the gate's
own rule on CPU time. Where it says inconclusive it gets more time, as its reason asks for; a wrong verdict is never
taken. What each bundle was measured to be stands in docs/LOG.md.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from planish import runtime
from tests.plain_onnx import plain_export

PATIENCE = (30, 90, 240)
"""Seconds of the first comparison, and of those after an open question."""

Answer = tuple[int, dict[str, dict[str, Any]]]


@pytest.fixture(scope="session")
def one_range(shelf: Path) -> Path:
    """The shipped recipe without smoothing: one static scale a layer for inputs whose channels are uneven."""
    from planish.compress import load_recipe

    content = load_recipe("int8").content
    linear = content["passes"][0]
    content["name"] = "one-range"
    content["passes"][0] = {key: value for key, value in linear.items() if not key.startswith("smoothing")}
    assert content["passes"][0] != linear
    recipe = shelf / "one-range.yaml"
    recipe.write_text(json.dumps(content), encoding="utf-8")
    return recipe


@pytest.fixture(scope="session")
def sentences(judge_text: str, shelf: Path) -> Path:
    """Forty sentences: enough for an interval."""
    found = [part.strip() for part in judge_text.replace("\n", " ").split(". ") if 20 < len(part) < 200][:40]
    path = shelf / "forty.txt"
    path.write_text("\n".join(found) + "\n", encoding="utf-8")
    return path


def judged(candidate: Path, baseline: Path, *options: object) -> Answer:
    """The exit code of `planish gate` and its checks by name."""
    command = [sys.executable, "-m", "planish", "gate", candidate, "--baseline", baseline, *options, "--json"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr[-4000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["exit_code"] == done.returncode
    return done.returncode, {check["name"]: check for check in answer["gate"]["checks"]}


def judged_in_time(candidate: Path, baseline: Path, *options: object) -> Answer:
    """The same with latency, again with more time while it is an open question."""
    for seconds in PATIENCE:
        code, checks = judged(candidate, baseline, *options, "--seconds", seconds)
        if code != 3:
            break
    return code, checks


def skip_if_open(code: int, checks: dict[str, dict[str, Any]]) -> None:
    """Inconclusive means that this machine cannot say, not that the gate is wrong."""
    if code == 3:
        open_questions = [check["reason"] for check in latency_of(checks) if check["verdict"] == "inconclusive"]
        pytest.skip(f"needs a quieter machine: undecided after {PATIENCE[-1]} s; {'; '.join(open_questions)}")


def latency_of(checks: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [check for name, check in checks.items() if name.startswith("latency ")]


def unfused(bundle: Path, target: Path) -> Path:
    """The INT8 bundle with its integer products taken apart: dequantize, multiply as floats, add the bias.

    Integers and scales are the same, so the answer is, up to roundings that fall on the other side; and ONNX Runtime is
    told not to fuse quantizers and product again. This is what a Q/DQ graph becomes on an engine whose patterns do not
    match it.
    """
    shutil.copytree(bundle, target)
    path = target / "onnx" / "ort" / "model.onnx"
    model = onnx.load(path)
    nodes = []
    for node in model.graph.node:
        nodes += spelled_out(node) if node.op_type == "MatMulIntegerToFloat" else [node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)
    return signed(target, session={"session.disable_quant_qdq": "1"})


def signed(bundle: Path, **changes: Any) -> Path:
    """The bundle with a manifest of the files that lie there now, and with changes to its dialect."""
    fields = runtime.read_manifest(bundle).to_json()
    (bundle / "manifest.json").unlink()
    fields["dialects"]["ort"] |= changes
    runtime.write_manifest(bundle, {key: value for key, value in fields.items() if key not in ("digest", "files")})
    return bundle


def spelled_out(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    x, weight, x_scale, weight_scale, x_zero, weight_zero, bias = node.input
    assert not weight_zero, "symmetric weights have no zero point"
    name = node.output[0]
    return [
        helper.make_node("DequantizeLinear", [x, x_scale, x_zero], [f"{name}.x"]),
        helper.make_node("DequantizeLinear", [weight, weight_scale], [f"{name}.weight"], axis=1),
        helper.make_node("MatMul", [f"{name}.x", f"{name}.weight"], [f"{name}.product"]),
        helper.make_node("Add", [f"{name}.product", bias], [name]),
    ]


def plain(parent: Path, minilm: Path, target: Path) -> Path:
    """The float32 bundle with the graph that plain torch.onnx gives: attention in MatMul and Softmax, nothing fused."""
    shutil.copytree(parent, target)
    plain_export(minilm, target / "onnx" / "ort" / "model.onnx")
    return signed(target, disabled_optimizers=[])


def test_one_range_a_layer_is_caught_by_closeness(
    make: Any, minilm: Path, one_range: Path, sentences: Path, minilm_bundle: Path, minilm_parent: Path
) -> None:
    """Feed-forward layers need smoothing, or more than one scale; the bundle of the whole recipe passes."""
    bad = make("one-range.bundle", "export", make("one-range", "compress", minilm, "-r", one_range))
    code, checks = judged(bad, minilm_parent, "--no-latency", "--data", sentences)
    assert code == 1
    assert (checks["cosine mean"]["verdict"], checks["cosine min"]["verdict"]) == ("regress", "regress")
    assert checks["cosine mean"]["value"] < 0.99
    assert judged(minilm_bundle, minilm_parent, "--no-latency", "--data", sentences)[0] == 0


@pytest.mark.timeout(1800)
def test_products_without_fusion_are_caught_by_latency(minilm_bundle: Path, sentences: Path, tmp_path: Path) -> None:
    slow = unfused(minilm_bundle, tmp_path / "unfused.bundle")
    code, checks = judged_in_time(slow, minilm_bundle, "--data", sentences)
    assert code == 1
    assert checks["cosine mean"]["verdict"] == checks["cosine min"]["verdict"] == "pass"
    found = latency_of(checks)
    assert len(found) == 2
    assert any(check["verdict"] == "regress" for check in found)
    assert all(check["value"] > 1.05 for check in found)


@pytest.mark.timeout(1800)
def test_a_bundle_passes_against_itself(minilm_bundle: Path, sentences: Path) -> None:
    code, checks = judged_in_time(minilm_bundle, minilm_bundle, "--data", sentences)
    assert checks["cosine mean"]["value"] == pytest.approx(1.0, abs=1e-6)
    assert {check["verdict"] for name, check in checks.items() if not name.startswith("latency ")} == {"pass"}
    skip_if_open(code, checks)
    assert code == 0


@pytest.mark.slow  # a difference of less than a tenth takes dozens of sittings
@pytest.mark.timeout(1800)
def test_plain_torch_onnx_is_caught_by_latency(
    minilm: Path, minilm_parent: Path, sentences: Path, tmp_path: Path
) -> None:
    slow = plain(minilm_parent, minilm, tmp_path / "plain.bundle")
    code, checks = judged_in_time(slow, minilm_parent, "--data", sentences)
    assert checks["cosine min"]["value"] > 0.9999
    skip_if_open(code, checks)
    assert code == 1


@pytest.mark.slow  # the fine-tuning alone takes five minutes on two cores
@pytest.mark.timeout(3600)
def test_one_range_a_layer_is_caught_by_labels(
    make: Any,
    sentiment: Path,
    sentiment_parent: Path,
    one_range: Path,
    movie_sentences: dict[str, list[tuple[str, int]]],
    tmp_path: Path,
) -> None:
    """About a point is lost of 1,008 sentences; on another processor a few roundings may leave the proof open."""
    data, names = tmp_path / "test.jsonl", ["negative", "positive"]
    lines = [json.dumps({"text": text, "label": names[label]}) for text, label in movie_sentences["test"]]
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    bad = make(
        "one-range-sentiment.bundle", "export", make("one-range-sentiment", "compress", sentiment, "-r", one_range)
    )
    code, checks = judged(bad, sentiment_parent, "--data", data, "--no-latency")
    assert code in (1, 3)
    assert checks["accuracy loss"]["verdict"] != "pass"
