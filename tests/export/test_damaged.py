"""One edit of a good checkpoint makes it a bad one: export says which file or key, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from planish.errors import CheckpointError
from planish.export import CheckpointReader, export
from planish.export.describe import describe
from tests.export.small_decoders import quantized, random_decoder
from tests.export.small_encoders import small_encoder
from tests.tiny import word_tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    encoder = small_encoder("roberta", "text-classification", folder / "encoder")
    word_tokenizer(100).save_pretrained(encoder)
    quantized(random_decoder("llama", folder / "float"), folder / "decoder")
    return folder


@pytest.fixture(params=["encoder", "decoder"])
def model(request: pytest.FixtureRequest, models: Path, tmp_path: Path) -> Path:
    return copied(models, request.param, tmp_path)


@pytest.fixture
def encoder(models: Path, tmp_path: Path) -> Path:
    return copied(models, "encoder", tmp_path)


def copied(models: Path, name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / name, tmp_path / name))


def edit(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    settings = {**json.loads(file.read_text(encoding="utf-8")), **changes}
    file.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}), encoding="utf-8")


def refused(model: Path) -> str:
    """The message of the refusal, after checking that it is one line and left nothing."""
    with pytest.raises(CheckpointError) as caught:
        export(model, model.parent / "bundle")
    assert [path.name for path in model.parent.iterdir()] == [model.name]
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", None),
        ("vocab_size", "many"),
        ("vocab_size", -1),
        ("max_position_embeddings", "far"),
        ("pad_token_id", "x"),
        ("architectures", {"a": 1}),
    ],
)
def test_settings_every_model_has(key: str, value: Any, model: Path) -> None:
    edit(model / "config.json", **{key: value})
    message = refused(model)
    assert key in message
    assert "config.json" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("id2label", {"a": "b"}),
        ("id2label", ["no", "yes"]),
        ("num_attention_heads", "some"),
        ("hidden_size", "wide"),
        ("max_position_embeddings", 1),
    ],
)
def test_settings_of_encoders(key: str, value: Any, encoder: Path) -> None:
    edit(encoder / "config.json", **{key: value})
    assert key in refused(encoder)


@pytest.mark.parametrize("value", [-1, 100])
def test_padding_outside_the_vocabulary(value: int, encoder: Path) -> None:
    edit(encoder / "config.json", pad_token_id=value)
    assert "pad_token_id" in refused(encoder)


def test_more_positions_than_anyone_has_are_no_limit(models: Path, tmp_path: Path) -> None:
    model = copied(models, "decoder", tmp_path)
    edit(model / "config.json", max_position_embeddings=10**12)
    assert describe(model, CheckpointReader(model), "text-generation")["max_length"] == 1_000_000


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rms_norm_eps", "x"),
        ("rope_parameters", "x"),
        ("hidden_act", {}),
        ("num_hidden_layers", -1),
        ("num_attention_heads", 0),
        ("max_position_embeddings", 0),
    ],
)
def test_shapes_of_decoders(key: str, value: Any, models: Path, tmp_path: Path) -> None:
    model = copied(models, "decoder", tmp_path)
    edit(model / "config.json", **{key: value})
    message = refused(model)
    assert key in message or key in ("num_hidden_layers", "num_attention_heads")


@pytest.mark.parametrize("value", [None, "many"])
def test_labels_nobody_named_are_counted(value: Any, encoder: Path) -> None:
    edit(encoder / "config.json", id2label={}, num_labels=value or 3)
    if value:
        assert "num_labels" in refused(encoder)
    else:
        assert export(encoder, encoder.parent / "bundle").manifest.labels == ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("key", "value"), [("eos_token_id", "x"), ("eos_token_id", [2, "x"]), ("bos_token_id", [1]), ("pad_token_id", "x")]
)
def test_settings_of_decoders(file: str, key: str, value: Any, models: Path, tmp_path: Path) -> None:
    model = copied(models, "decoder", tmp_path)
    (model / "generation_config.json").unlink(missing_ok=True)
    if file != "config.json":
        (model / file).write_text("{}", encoding="utf-8")
    edit(model / file, **{key: value})
    message = refused(model)
    assert key in message
    assert file in message


@pytest.mark.parametrize("value", ["lots", -3, [1]])
def test_limits_of_the_tokenizer(value: Any, encoder: Path) -> None:
    edit(encoder / "tokenizer_config.json", model_max_length=value)
    message = refused(encoder)
    assert "model_max_length" in message
    assert "tokenizer_config.json" in message


@pytest.mark.parametrize("harm", ["cut", "other", "empty"])
def test_a_tokenizer_the_runtime_cannot_read(harm: str, encoder: Path) -> None:
    file = encoder / "tokenizer.json"
    text = file.read_text(encoding="utf-8")
    file.write_text({"cut": text[: len(text) // 2], "other": "{}", "empty": ""}[harm], encoding="utf-8")
    assert "a tokenizer.json" in refused(encoder)


def test_special_tokens_that_are_no_json(encoder: Path) -> None:
    (encoder / "special_tokens_map.json").write_text("{", encoding="utf-8")
    assert "JSON in the tokenizer's files" in refused(encoder)


@pytest.mark.parametrize("shards", [[], {}, {"a": 5}, None, {"a": "../model.safetensors"}])
def test_shard_index(shards: Any, model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}), encoding="utf-8")
    refused(model)


@pytest.mark.parametrize(
    "change",
    [
        {"config_groups": []},
        {"config_groups": {"group_0": []}},
        {"config_groups": {"group_0": {"format": "pack-quantized", "weights": {"strategy": "channel"}}}},
        {"quant_method": "gptq"},
    ],
)
def test_quantization_config(change: dict[str, Any], models: Path, tmp_path: Path) -> None:
    model = copied(models, "decoder", tmp_path)
    found = json.loads((model / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    edit(model / "config.json", quantization_config={**found, **change})
    assert "quantization_config" in refused(model)
    edit(model / "config.json", quantization_config="int4")
    assert "quantization_config" in refused(model)


@pytest.mark.parametrize("change", [{"source": "x"}, {"recipe": ["x"]}, {"receipts": "x"}])
def test_what_compress_wrote(change: dict[str, Any], models: Path, tmp_path: Path) -> None:
    model = copied(models, "decoder", tmp_path)
    edit(model / "planish.json", **change)
    assert f"{next(iter(change))} in planish.json" in refused(model)


@pytest.mark.parametrize(
    ("name", "end"),
    [("encoder", "LayerNorm.weight"), ("encoder", "classifier.dense.bias"), ("decoder", "k_proj.weight_scale")],
)
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_parameters_that_are_no_numbers_are_named(
    name: str, end: str, value: float, models: Path, tmp_path: Path
) -> None:
    """ONNX would compute NaN as faithfully as torch does."""
    model = copied(models, name, tmp_path)
    tensors = load_file(model / "model.safetensors")
    key = next(key for key in sorted(tensors) if key.endswith(end))
    tensors[key].reshape(-1)[1] = value
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert f"NaN or infinity in {key}" in refused(model)
