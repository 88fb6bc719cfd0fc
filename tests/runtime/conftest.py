"""Tiny models that exist twice: as an ONNX graph in a bundle, and as a torch model for the pipelines we compare with.

A token's output is ``table[id] + positions[position] + mean over the row's real tokens of context[id]``, so an output
shows whether ids, positions and padding were right. Nothing of `planish.export` is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from planish.runtime import Manifest, write_manifest
from planish.runtime.text import TextEncoder
from tests.runtime import tiny_decoder
from tests.tiny import byte_level_tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MAX_LENGTH = 48


@dataclass(frozen=True)
class Tables:
    """The weights of a tiny model: [vocab, width], [MAX_LENGTH, width], [vocab, width]."""

    table: np.ndarray
    positions: np.ndarray
    context: np.ndarray

    @classmethod
    def random(cls, vocab: int, width: int, seed: int, scale: float = 3.0) -> Tables:
        draw = np.random.default_rng(seed)
        shapes = ((vocab, width), (512, width), (vocab, width))
        return cls(*(draw.normal(0, scale, shape).astype(np.float32) for shape in shapes))

    def __call__(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        weights = mask[..., None].astype(np.float32)
        mean = (self.context[ids] * weights).sum(1, keepdims=True) / weights.sum(1, keepdims=True)
        return np.asarray(self.table[ids] + self.positions[None, : ids.shape[1]] + mean)


def build_graph(tables: Tables, task: str, path: Path) -> list[dict[str, Any]]:
    """Writes the ONNX model; returns the manifest's outputs."""
    width = tables.table.shape[1]
    weights = {"table": tables.table, "positions": tables.positions, "context": tables.context}
    constants = {"zero": [0], "one": [1], "axis": [1], "last": [2]}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["own"]),
        helper.make_node("Shape", ["input_ids"], ["length"], start=1, end=2),
        helper.make_node("Slice", ["positions", "zero", "length"], ["place"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["weights"]),
        helper.make_node("Gather", ["context", "input_ids"], ["seen"]),
        helper.make_node("Mul", ["seen", "weights"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "axis"], ["sum"]),
        helper.make_node("ReduceSum", ["weights", "axis"], ["count"]),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("Add", ["own", "place"], ["placed"]),
        helper.make_node("Add", ["placed", "mean"], ["tokens"]),
    ]
    outputs: list[dict[str, Any]]
    if task == "question-answering":
        outputs = [{"name": name, "shape": ["batch", "sequence"]} for name in ("start_logits", "end_logits")]
        nodes.append(helper.make_node("Split", ["tokens"], ["starts", "ends"], axis=2, num_outputs=2))
        nodes.append(helper.make_node("Squeeze", ["starts", "last"], ["start_logits"]))
        nodes.append(helper.make_node("Squeeze", ["ends", "last"], ["end_logits"]))
    elif task == "text-classification":
        outputs = [{"name": "logits", "shape": ["batch", width]}]
        nodes.append(helper.make_node("Squeeze", ["mean", "one"], ["logits"]))
    else:
        name = "last_hidden_state" if task == "feature-extraction" else "logits"
        outputs = [{"name": name, "shape": ["batch", "sequence", width]}]
        nodes.append(helper.make_node("Identity", ["tokens"], [name]))
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    initializers += [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()]
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "sequence"]) for n in INPUTS]
    results = [helper.make_tensor_value_info(o["name"], TensorProto.FLOAT, o["shape"]) for o in outputs]
    graph = helper.make_graph(nodes, "tiny", inputs, results, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True)
    path.write_bytes(model.SerializeToString())
    return [{**output, "dtype": "float32"} for output in outputs]


INPUTS = ("input_ids", "attention_mask")


def write_bundle(root: Path, task: str, tables: Tables, tokenizer: Tokenizer | None, **changes: Any) -> Manifest:
    """A bundle of a tiny model; ``changes`` replace manifest fields."""
    root.mkdir(parents=True)
    outputs = build_graph(tables, task, root / "onnx/ort/model.onnx")
    if tokenizer is not None:
        tokenizer.save(str(root / "tokenizer.json"))
        roles = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
        (root / "tokenizer_config.json").write_text(json.dumps(roles), encoding="utf-8")
    (root / "config.json").write_text(json.dumps({"model_type": "bert", "type_vocab_size": 2}), encoding="utf-8")
    inputs = [{"name": name, "dtype": "int64", "shape": ["batch", "sequence"]} for name in INPUTS]
    fields: dict[str, Any] = {
        "task": task,
        "architecture": "BertModel",
        "model_type": "bert",
        "vocab_size": len(tables.table),
        "max_length": MAX_LENGTH,
        "pad_token_id": 0,
        "dialects": {"ort": {"path": "onnx/ort/model.onnx", "opset": 21, "inputs": inputs, "outputs": outputs}},
        "profile": "cpu-x86-avx2",
    }
    return write_manifest(root, {**fields, **changes})


@pytest.fixture(scope="session")
def word_pieces(judge_text: str) -> Tokenizer:
    """A WordPiece tokenizer with the template of BERT, 600 tokens."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(judge_text[:60_000].splitlines(), trainer)
    template = {"single": "[CLS] $A [SEP]", "pair": "[CLS] $A [SEP] $B:1 [SEP]:1"}
    tokenizer.post_processor = processors.TemplateProcessing(**template, special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return tokenizer


@pytest.fixture(scope="session")
def byte_pieces(judge_text: str) -> Tokenizer:
    """A byte-level BPE tokenizer with RoBERTa's post-processor, 600 tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL, show_progress=False, initial_alphabet=sorted(alphabet)
    )
    tokenizer.train_from_iterator(judge_text[:60_000].splitlines(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2), add_prefix_space=False)
    return tokenizer


@dataclass(frozen=True)
class Tiny:
    """A tiny bundle and the weights inside."""

    path: Path
    tables: Tables
    manifest: Manifest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, word_pieces: Tokenizer) -> Callable[..., Tiny]:
    """Makes a tiny bundle for a task: ``tiny(task, width, tokenizer=..., change=..., **manifest fields)``.

    ``change`` is called with the random weights before they are written.
    """

    def make(
        task: str,
        width: int,
        *,
        tokenizer: Tokenizer | None = word_pieces,
        change: Callable[[Tables], object] = lambda tables: None,
        **fields: Any,
    ) -> Tiny:
        root = tmp_path_factory.mktemp("tiny") / "bundle"
        tables = Tables.random(600, width, seed=0)
        change(tables)
        return Tiny(root, tables, write_bundle(root, task, tables, tokenizer, **fields))

    return make


@pytest.fixture(scope="session")
def sentences(judge_text: str) -> list[str]:
    """Real sentences of 20 to 300 characters."""
    found = [line.strip() for line in judge_text.replace("\n", " ").split(".")]
    return [line for line in found if 20 <= len(line) <= 300][:200]


# The tiny decoder of the tests of generation and scores.
@pytest.fixture(scope="session")
def encoder() -> TextEncoder:
    return TextEncoder(byte_level_tokenizer("gpt").backend_tokenizer, {})


@pytest.fixture(scope="session")
def vocab(encoder: TextEncoder) -> int:
    return int(encoder.tokenizer.get_vocab_size())


@pytest.fixture(scope="session")
def model(vocab: int) -> Any:
    return tiny_decoder.make_model(vocab)


@pytest.fixture(scope="session")
def session(model: Any) -> Any:
    return tiny_decoder.make_session(model)
