"""Bad input: one line saying what was expected, what came and what to do; the right exit code; nothing left behind."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from planish.compress import compress, load, open_checkpoint
from planish.compress.safetensors_file import read_header
from planish.errors import CheckpointError, DataError, HostError, InputError, PlanishError, RecipeError

from .conftest import Maker

Fixture = Callable[..., Path]


@pytest.fixture
def bert(small_checkpoint: Maker) -> Path:
    return small_checkpoint("bert")


def refused(error: type[PlanishError], model: Path | str, out: Path, recipe: Any = "int8", code: int = 2) -> str:
    """The message of the refusal, after checking that it is one line and left nothing."""
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(error) as caught:
        compress(model, recipe, out)
    assert sorted(out.parent.rglob("*")) == before
    assert caught.value.exit_code == code
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("expected ")
    return message


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")


def test_missing_things(bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "nothing there" in refused(CheckpointError, tmp_path / "no", out)
    assert "offline" in refused(CheckpointError, "planish-tests/no-such-model", out)
    (bert / "model.safetensors").rename(bert / "weights")
    assert "model.safetensors" in refused(CheckpointError, bert, out)
    (bert / "config.json").unlink()
    assert "config.json" in refused(CheckpointError, bert, out)
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert "a file" in refused(CheckpointError, tmp_path / "file", out)
    (tmp_path / "x.gguf").write_text("GGUFoo", encoding="utf-8")
    assert "readable GGUF" in refused(CheckpointError, tmp_path / "x.gguf", out)
    (tmp_path / "x.gguf").write_text("nothing", encoding="utf-8")
    assert "another kind" in refused(CheckpointError, tmp_path / "x.gguf", out)


@pytest.mark.parametrize("cut", [0, 5, 8, 500, -1])
def test_truncated_safetensors(cut: int, bert: Path, tmp_path: Path) -> None:
    file = bert / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    assert "download or copy it again" in refused(CheckpointError, bert, tmp_path / "out")


def test_pickles_and_remote_code_are_refused(bert: Path, tmp_path: Path) -> None:
    shutil.move(bert / "model.safetensors", bert / "pytorch_model.bin")
    assert "can run code" in refused(CheckpointError, bert, tmp_path / "out")
    edit_config(bert, auto_map={"AutoModel": "modeling.Mine"})
    assert "--trust-remote-code" in refused(CheckpointError, bert, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "t5"}, "supported: bert, distilbert"),
        ({"model_type": None}, "supported: bert"),
        ({"architectures": ["BertForNothing"]}, "BertForNothing"),
        ({"architectures": ["BertForPreTraining"]}, "BertForPreTraining"),
        ({"architectures": ["TrainingArguments"]}, "a model class"),
        ({"architectures": []}, "one architecture"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized by gptq"),
        ({"hidden_size": 128}, "weights of a BertModel"),
        ({"num_hidden_layers": 3}, "missing"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"architectures": 5}, "architectures"),
        ({"quantization_config": "int4"}, "quantization_config"),
    ],
)
def test_wrong_architecture(changes: dict[str, Any], words: str, bert: Path, tmp_path: Path) -> None:
    edit_config(bert, **changes)
    assert words in refused(CheckpointError, bert, tmp_path / "out")


def test_broken_config(bert: Path, tmp_path: Path) -> None:
    for text in ("{", "[]", "\xff"):
        (bert / "config.json").write_bytes(text.encode("latin-1"))
        assert "JSON object" in refused(CheckpointError, bert, tmp_path / "out")


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": "many"},
        {"eos_token_id": "x"},
        {"num_hidden_layers": "x"},
        {"num_attention_heads": 0},
        {"id2label": {"a": 1}},
        {"pad_token_id": 5000},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_settings_of_a_wrong_kind(changes: dict[str, Any], bert: Path, tmp_path: Path) -> None:
    edit_config(bert, **changes)
    message = refused(CheckpointError, bert, tmp_path / "out")
    assert "weights of a BertModel" in message
    if isinstance(next(iter(changes.values())), str):
        assert next(iter(changes)) in message


@pytest.mark.parametrize("shards", [[], {}, {"a": 5}, {"a": ["x"]}, None, {"a": "../x"}])
@pytest.mark.parametrize("whole", [True, False])
def test_damaged_shard_index(shards: Any, whole: bool, bert: Path, tmp_path: Path) -> None:
    """An index beside a whole file is checked too."""
    (bert / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}), encoding="utf-8")
    if not whole:
        (bert / "model.safetensors").unlink()
    refused(CheckpointError, bert, tmp_path / "out")


def test_weights_that_are_not_numbers_or_not_there(bert: Path, tmp_path: Path) -> None:
    file = bert / "model.safetensors"
    tensors = load_file(file)
    name = "encoder.layer.0.output.dense.weight"
    save_file({**tensors, name: torch.full_like(tensors[name], torch.nan)}, file, metadata={"format": "pt"})
    assert f"infinity in {name}" in refused(CheckpointError, bert, tmp_path / "out")
    save_file({k: v for k, v in tensors.items() if k != name}, file, metadata={"format": "pt"})
    assert name in refused(CheckpointError, bert, tmp_path / "out")
    save_file({k: v for k, v in tensors.items() if "pooler" not in k}, file, metadata={"format": "pt"})
    compress(bert, "int8", tmp_path / "out")  # many sentence encoders come without one
    assert not any("pooler" in key for key in load_file(tmp_path / "out" / "model.safetensors"))
    assert load(tmp_path / "out").config.hidden_size == 64  # type: ignore[union-attr]


def test_calibration_without_a_tokenizer_is_refused(bert: Path, tmp_path: Path) -> None:
    """transformers makes one up there, with special tokens only."""
    for file in bert.glob("*token*"):
        file.unlink()
    assert "a tokenizer in bert" in refused(CheckpointError, bert, tmp_path / "out")
    compress(bert, "int8-dynamic", tmp_path / "out")


def test_recipes_and_data(bert: Path, recipe_file: Fixture, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "did you mean 'int8'" in refused(RecipeError, bert, out, "int88")
    recipe = recipe_file({"pass": "int8-linear", "rnage": "mse"})
    assert "did you mean 'range'" in refused(RecipeError, bert, out, recipe)
    recipe = recipe_file({"pass": "int8-linear", "exclude": ["*.qery"]})
    assert "'*.qery'" in refused(RecipeError, bert, out, recipe)
    recipe = recipe_file({"pass": "int8-linear", "exclude": ["*"]})
    assert "a layer to work on" in refused(RecipeError, bert, out, recipe)
    recipe = recipe_file({"pass": "int8-linear"}, {"pass": "weight-only", "method": "round"})
    assert "quantized once" in refused(RecipeError, bert, out, recipe)
    recipe = recipe_file({"pass": "weight-only", "method": "round", "group_size": 128})
    assert "use one of 16, 32" in refused(RecipeError, bert, out, recipe)
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"txt": 1}\n', encoding="utf-8")
    recipe = recipe_file({"pass": "weight-only", "method": "gptq"}, source="rows.jsonl")
    assert "rows.jsonl, line 2" in refused(DataError, bert, out, recipe)


def test_output_must_be_free(bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "mkdir -p" in refused(InputError, bert, tmp_path / "no" / "out")
    out.mkdir()
    (out / "mine").write_text("x", encoding="utf-8")
    assert "already there" in refused(InputError, bert, out)
    (out / "mine").unlink()
    compress(bert, "int8", out)
    assert (out / "planish.json").is_file()


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file may grow beyond ``size``: what a full disk does, without filling one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("passes", [[{"pass": "int8-linear"}], [{"pass": "weight-only", "method": "gptq"}]])
def test_full_disk(passes: list[dict[str, Any]], bert: Path, recipe_file: Fixture, tmp_path: Path) -> None:
    recipe = recipe_file(*passes)
    with file_size_limit(20_000):
        message = refused(HostError, bert, tmp_path / "out", recipe, code=4)
    assert "free some space" in message


def test_folder_that_may_not_be_written(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so the refusal is provoked where the folder is made."""

    def forbidden(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", forbidden)
    assert "permissions" in refused(HostError, bert, tmp_path / "out", code=4)


def test_damaged_quantized_checkpoints(bert: Path, tmp_path: Path) -> None:
    compress(bert, "int8", tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    whole, tensors = file.read_bytes(), load_file(file)
    file.write_bytes(whole[:-3])
    with pytest.raises(CheckpointError, match="promises"):
        load(tmp_path / "out")
    name = "encoder.layer.1.output.dense.weight"
    save_file({key: value for key, value in tensors.items() if key != name}, file)
    with pytest.raises(CheckpointError, match=name):
        load(tmp_path / "out")
    file.unlink()
    with pytest.raises(CheckpointError, match="none"):
        load(tmp_path / "out")
    with pytest.raises(CheckpointError, match="none"):
        load(tmp_path / "nowhere")


@given(data=st.data())
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_whole_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    """Changing header bytes of a safetensors file gives a header that covers the file, or a refusal; never a crash."""
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.int8)}, file)
    raw = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 54))] = data.draw(st.integers(0, 255))
    file.write_bytes(raw)
    try:
        shapes = read_header(file)
    except CheckpointError:
        return
    sizes = {"F32": 4, "I32": 4, "U32": 4}
    total = sum(torch.Size(shape).numel() * sizes.get(dtype, 1) for dtype, shape in shapes.values())
    assert total <= 53


def test_open_checkpoint_reads_no_weights(bert: Path) -> None:
    checkpoint = open_checkpoint(bert)
    assert (checkpoint.task, checkpoint.architecture) == ("feature-extraction", "BertModel")
    assert checkpoint.digest == open_checkpoint(bert).digest
    edit_config(bert, hidden_act="relu")
    assert checkpoint.digest != open_checkpoint(bert).digest
