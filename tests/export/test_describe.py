"""What the manifest says about a checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from planish.errors import CheckpointError, InputError
from planish.export.describe import describe, infer_task
from planish.export.reader import CheckpointReader
from tests.export.small_encoders import small_encoder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_encoder("bert", "feature-extraction", tmp_path / "model")


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertModel", "feature-extraction"),
        ("DistilBertForSequenceClassification", "text-classification"),
        ("ElectraForTokenClassification", "token-classification"),
        ("RobertaForQuestionAnswering", "question-answering"),
        ("MPNetForMaskedLM", "fill-mask"),
        ("LlamaForCausalLM", "text-generation"),
        ("GPT2LMHeadModel", "text-generation"),
    ],
)
def test_task_of_an_architecture(architecture: str, task: str) -> None:
    assert infer_task({"architectures": [architecture]}) == task
    assert infer_task({"architectures": [architecture]}, "fill-mask") == "fill-mask"


@pytest.mark.parametrize("names", [None, [], ["NoSuchModel"], ["T5ForConditionalGeneration"]])
def test_an_architecture_that_does_not_tell(names: Any) -> None:
    with pytest.raises(CheckpointError, match="--task"):
        infer_task({"architectures": names})
    with pytest.raises(InputError, match="did you mean 'fill-mask'"):
        infer_task({"architectures": names}, "fill-mas")


def test_sentence_transformers_say_how_to_pool_and_where_to_cut(model: Path) -> None:
    kinds = ["Transformer", "Pooling", "Normalize"]
    modules = [
        {"path": f"{i}_{k}" if i else "", "type": f"sentence_transformers.models.{k}"} for i, k in enumerate(kinds)
    ]
    write(model / "modules.json", modules)
    write(model / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, "pooling_mode_cls_token": True})
    write(model / "sentence_bert_config.json", {"max_seq_length": 16})
    fields = describe(model, CheckpointReader(model), "feature-extraction")
    assert fields["pooling"] == {"mode": "cls", "normalize": True}
    assert fields["max_length"] == 16
    assert describe(model, CheckpointReader(model), "fill-mask")["pooling"] is None
    write(model / "1_Pooling" / "config.json", {"pooling_mode": "lasttoken"})
    with pytest.raises(CheckpointError, match="lasttoken"):
        describe(model, CheckpointReader(model), "feature-extraction")


def test_a_plain_model_has_no_pooling_and_the_limits_of_its_positions(model: Path) -> None:
    write(model / "tokenizer_config.json", {"model_max_length": int(1e30)})
    fields = describe(model, CheckpointReader(model), "feature-extraction")
    assert fields["pooling"] is None
    assert fields["labels"] is None
    assert fields["max_length"] == 40
    write(model / "tokenizer_config.json", {"model_max_length": 24})
    assert describe(model, CheckpointReader(model), "feature-extraction")["max_length"] == 24


def test_labels_stand_in_the_order_of_their_ids(tmp_path: Path) -> None:
    model = small_encoder("electra", "token-classification", tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["id2label"] = {str(i): f"L{i}" for i in reversed(range(12))}
    write(model / "config.json", config)
    fields = describe(model, CheckpointReader(model), "token-classification")
    assert fields["labels"] == [f"L{i}" for i in range(12)]


def test_labels_transformers_leaves_out_are_the_ones_it_makes_up(tmp_path: Path) -> None:
    model = small_encoder("bert", "text-classification", tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    del config["id2label"], config["label2id"]
    write(model / "config.json", config)
    assert describe(model, CheckpointReader(model), "text-classification")["labels"] == ["LABEL_0", "LABEL_1"]
    write(model / "config.json", {**config, "num_labels": 3})
    labels = describe(model, CheckpointReader(model), "token-classification")["labels"]
    assert labels == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_source_is_the_parent_and_the_digest_sees_every_bit(model: Path, tmp_path: Path) -> None:
    first = describe(model, CheckpointReader(model), "feature-extraction")["source"]
    assert first["name"] == "model"
    assert first["digest"] == first["checkpoint"]
    other = tmp_path / "other"
    shutil.copytree(model, other)
    data = bytearray((other / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "model.safetensors").write_bytes(data)
    write(other / "planish.json", {"source": {"name": "parent", "digest": "sha256:0"}, "recipe": None, "receipts": []})
    second = describe(other, CheckpointReader(other), "feature-extraction")["source"]
    assert (second["name"], second["digest"]) == ("parent", "sha256:0")
    assert second["checkpoint"] != first["checkpoint"]


def test_broken_side_files_are_the_checkpoint_s_fault(model: Path) -> None:
    (model / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        describe(model, CheckpointReader(model), "feature-extraction")
