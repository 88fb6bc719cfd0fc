"""``planish inspect`` of checkpoints, whole and damaged, where only the base install is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planish.__main__ import main
from planish.describe import describe
from planish.errors import CheckpointError
from tests.blocked import run_without
from tests.export.small_encoders import small_encoder, small_quantized


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_quantized("bert", "feature-extraction", "int4-round", tmp_path_factory.mktemp("made"))


def test_facts_of_a_quantized_checkpoint(made: Path) -> None:
    facts = describe(made)
    assert (facts["kind"], facts["architectures"], facts["layers"]) == ("checkpoint", ["BertModel"], 2)
    assert sum(entry["bytes"] for entry in facts["tensors"].values()) == facts["bytes"]
    header = 8 + int.from_bytes((made / "model.safetensors").read_bytes()[:8], "little")
    assert header + facts["bytes"] == (made / "model.safetensors").stat().st_size
    assert all(line.startswith("int") for line in facts["quantization"].values())
    assert "text" not in facts["planish"]["recipe"]


def header(text: str) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode()


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("config.json", b'{"model_type": "be'),
        ("config.json", b"[]"),
        ("config.json", b"\xff\xfe"),
        ("config.json", b'{"quantization_config": "int4"}'),
        ("config.json", b'{"quantization_config": {"config_groups": {"g": 5}}}'),
        (
            "config.json",
            b'{"quantization_config": {"config_groups": {"g": {"weights": {"group_size": 1}, "targets": 1}}}}',
        ),
        ("model.safetensors", b""),
        ("model.safetensors", header("garbage!")),
        ("model.safetensors", header("[]")),
        ("model.safetensors", header('{"a": {"dtype": "F32", "shape": [0]}}')),
        ("model.safetensors", header('{"a": 5}')),
        ("planish.json", b"{"),
        ("planish.json", b"[1]"),
        ("planish.json", b'{"recipe": "int8"}'),
        ("planish.json", b'{"receipts": [1, {"pass": "x"}]}'),
    ],
)
def test_a_damaged_file_is_named(file: str, data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small_encoder("bert", "feature-extraction", tmp_path / "model")
    (model / "planish.json").write_text("{}", encoding="utf-8")
    assert describe(model)["kind"] == "checkpoint"
    (model / file).write_bytes(data)
    with pytest.raises(CheckpointError, match=file):
        describe(model)
    assert main(["inspect", str(model)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("planish: expected ")
    assert said.count("\n") == 1


def test_the_base_install_is_enough(made: Path) -> None:
    blocked: Any = [
        "torch",
        "transformers",
        "onnx",
        "onnx_ir",
        "pydantic",
        "huggingface_hub",
        "safetensors",
        "ml_dtypes",
    ]
    code = "from planish.__main__ import main\nsys.exit(main(['inspect', sys.argv[1], '--json']))\n"
    done = run_without(blocked, code, made)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["model_type"] == "bert"
