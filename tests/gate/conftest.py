"""Toy bundles: real ONNX graphs of a few lines behind a real manifest, so that the whole gate runs in milliseconds.

The classifier adds a vector a word and reads the sum off in a matrix; a "planished" one has its weights moved a little.
The decoder has one attention layer's cache as the contract asks, and predicts from the last token alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from planish import runtime

WORDS = ["good", "bad", "fine", "awful", "a", "film", "whale", "sea", "ship", "the", "very", "not"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LABELS = ["negative", "positive"]
WIDTH = 8


def tokenizer_files(directory: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"mask_token": "[MASK]"}), encoding="utf-8")


def weights(seed: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Word vectors whose first number is the word's mood, and a head that reads it."""
    rng = np.random.default_rng(0)
    words = rng.normal(0, 0.2, (len(SPECIAL) + len(WORDS), WIDTH)).astype(np.float32)
    for word, mood in (("good", 2.0), ("fine", 1.0), ("bad", -1.0), ("awful", -2.0)):
        words[len(SPECIAL) + WORDS.index(word), 0] = mood
    head = np.zeros((WIDTH, 2), dtype=np.float32)
    head[0] = (-1.0, 1.0)
    words += np.random.default_rng(seed).normal(0, noise, words.shape).astype(np.float32)
    return words, head


def encoder_graph(task: str, seed: int, noise: float) -> onnx.ModelProto:
    words, head = weights(seed, noise)
    nodes = [helper.make_node("Gather", ["words", "input_ids"], ["vectors"])]
    tensors = [numpy_helper.from_array(words, "words")]
    shape: list[Any] = ["batch", "sequence"]
    outputs = {"logits": [*shape, 2]}
    if task == "feature-extraction":
        nodes[0].output[0] = "last_hidden_state"
        outputs = {"last_hidden_state": [*shape, WIDTH]}
    elif task == "text-classification":
        tensors += [numpy_helper.from_array(head, "head"), numpy_helper.from_array(np.array([1]), "one")]
        nodes += [
            helper.make_node("ReduceSum", ["vectors", "one"], ["sum"], keepdims=0),
            helper.make_node("MatMul", ["sum", "head"], ["logits"]),
        ]
        outputs = {"logits": ["batch", 2]}
    elif task == "token-classification":
        tensors.append(numpy_helper.from_array(np.concatenate([head, -head[:, :1]], axis=1), "head"))
        nodes.append(helper.make_node("MatMul", ["vectors", "head"], ["logits"]))
        outputs = {"logits": [*shape, 3]}
    elif task == "question-answering":
        tensors += [numpy_helper.from_array(np.array([0]), "zero"), numpy_helper.from_array(np.array([1]), "first")]
        nodes += [
            helper.make_node("Gather", ["vectors", "zero"], ["s"], axis=2),
            helper.make_node("Gather", ["vectors", "first"], ["e"], axis=2),
            helper.make_node("Squeeze", ["s", "two"], ["start_logits"]),
            helper.make_node("Squeeze", ["e", "two"], ["end_logits"]),
        ]
        tensors.append(numpy_helper.from_array(np.array([2]), "two"))
        outputs = {"start_logits": shape, "end_logits": shape}
    else:
        table = np.random.default_rng(2).normal(0, 1, words.T.shape) + words.T
        tensors.append(numpy_helper.from_array(table.astype(np.float32), "table"))
        nodes.append(helper.make_node("MatMul", ["vectors", "table"], ["logits"]))
        outputs = {"logits": [*shape, len(words)]}
    return model_of(nodes, tensors, {"input_ids": shape, "attention_mask": shape}, outputs)


def decoder_graph(seed: int, noise: float) -> onnx.ModelProto:
    """The next token depends on the last one alone; the cache is passed through, as one buffer."""
    size = len(SPECIAL) + len(WORDS)
    table = np.random.default_rng(1).normal(0, 1.5, (size, size))
    table += np.random.default_rng(seed).normal(0, noise, table.shape)
    past, total = ["batch", 1, "past", 2], ["batch", 1, "total", 2]
    names = [f"0.{part}" for part in ("key", "value")]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["all"]),
        helper.make_node("Neg", ["logits_to_keep"], ["start"]),
        helper.make_node("Unsqueeze", ["start", "zero"], ["starts"]),
        helper.make_node("Slice", ["all", "starts", "end", "axis"], ["logits"]),
        *(helper.make_node("Identity", [f"past_key_values.{name}"], [f"present.{name}"]) for name in names),
    ]
    constants = {"table": table.astype(np.float32), "logits_to_keep": np.array(1)}
    constants |= {"zero": np.array([0]), "end": np.array([2**31]), "axis": np.array([1])}
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = model_of(
        nodes,
        tensors,
        {"input_ids": ["batch", "sequence"], "attention_mask": ["batch", "all"], "logits_to_keep": []},
        {"logits": ["batch", "positions", size], **{f"present.{name}": total for name in names}},
    )
    for name in names:
        value = helper.make_tensor_value_info(f"past_key_values.{name}", TensorProto.FLOAT, past)
        graph.graph.input.append(value)
    return graph


def model_of(nodes: list[Any], tensors: list[Any], inputs: dict[str, Any], outputs: dict[str, Any]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def tensor_infos(values: Any) -> list[dict[str, Any]]:
    names = {TensorProto.INT64: "int64", TensorProto.FLOAT: "float32"}
    return [
        {
            "name": value.name,
            "dtype": names[value.type.tensor_type.elem_type],
            "shape": [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim],
        }
        for value in values
    ]


def save_bundle(directory: Path, model: onnx.ModelProto, **fields: Any) -> Path:
    (directory / "onnx" / "ort").mkdir(parents=True)
    onnx.checker.check_model(model)
    onnx.save(model, str(directory / "onnx" / "ort" / "model.onnx"))
    tokenizer_files(directory)
    (directory / "config.json").write_text("{}", encoding="utf-8")
    overridable = {tensor.name for tensor in model.graph.initializer}
    runtime.write_manifest(
        directory,
        {
            "architecture": "Toy",
            "model_type": "toy",
            "vocab_size": len(SPECIAL) + len(WORDS),
            "max_length": 32,
            "pad_token_id": 0,
            "dialects": {
                "ort": {
                    "path": "onnx/ort/model.onnx",
                    "opset": 21,
                    "inputs": tensor_infos([v for v in model.graph.input if v.name not in overridable]),
                    "outputs": tensor_infos(model.graph.output),
                }
            },
            **fields,
        },
    )
    return directory


GENERATION = {
    "num_layers": 1,
    "num_kv_heads": 1,
    "head_dim": 2,
    "max_length": 256,
    "cache_dtype": "float32",
    "bos_token_id": None,
    "eos_token_ids": [3],
    "pad_token_id": 0,
    "defaults": {},
}

TASK_FIELDS: dict[str, dict[str, Any]] = {
    "text-classification": {"labels": LABELS, "problem_type": "single_label_classification"},
    "token-classification": {"labels": ["O", "B-GOOD", "B-BAD"]},
    "feature-extraction": {"pooling": {"mode": "mean", "normalize": True}},
    "question-answering": {},
    "fill-mask": {},
    "text-generation": {"generation": GENERATION, "max_length": 256},
}

MakeBundle = Callable[..., Path]


@pytest.fixture
def make_bundle(tmp_path: Path) -> MakeBundle:
    """``make_bundle(name, task, seed=, noise=, graph=, **manifest fields)``; ``graph`` puts another task's graph in."""

    def make(
        name: str,
        task: str = "text-classification",
        *,
        seed: int = 0,
        noise: float = 0.0,
        graph: str | None = None,
        **fields: Any,
    ) -> Path:
        kind = graph or task
        model = decoder_graph(seed, noise) if kind == "text-generation" else encoder_graph(kind, seed, noise)
        return save_bundle(tmp_path / name, model, **{"task": task, **TASK_FIELDS[task], **fields})

    return make


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """300 labelled lines the toy classifier gets right: the sum of the moods decides."""
    rng = np.random.default_rng(5)
    moods = {"good": 2, "fine": 1, "bad": -1, "awful": -2}
    lines = []
    while len(lines) < 300:
        words = list(rng.choice(WORDS, size=6))
        mood = sum(moods.get(word, 0) for word in words)
        if abs(mood) >= 2:
            lines.append(json.dumps({"text": " ".join(words), "label": LABELS[int(mood > 0)]}))
    path = tmp_path / "reviews.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


class StepClock:
    """A clock that moves one millisecond at each look, so that every block takes the same time."""

    def __init__(self) -> None:
        self.now = 0.0

    def cpu(self) -> float:
        self.now += 1e-3
        return self.now

    def wall(self) -> float:
        self.now += 1e-3
        return self.now

    def device(self) -> float:
        return 0.0


@pytest.fixture
def step_clock() -> StepClock:
    return StepClock()
