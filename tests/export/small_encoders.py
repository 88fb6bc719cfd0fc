"""Small random encoders of every family and task, and their quantized checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from planish.compress import compress
from planish.export.quiet import quiet
from tests.tiny import word_tokenizer

__all__ = ["FAMILIES", "small_encoder", "small_int8", "small_quantized"]

VOCABULARY = 100
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,  # so narrow a layer needs it to pass its input on as strongly as a trained one
}
DISTILBERT = {
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 64,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,  # so narrow a layer needs it to pass its input on as strongly as a trained one
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", SHAPE),
    "distilbert": ("DistilBertConfig", DISTILBERT),
    "electra": ("ElectraConfig", {**SHAPE, "embedding_size": 16}),
    "mpnet": ("MPNetConfig", {**SHAPE, "max_position_embeddings": 42}),
    "roberta": ("RobertaConfig", {**SHAPE, "max_position_embeddings": 42, "type_vocab_size": 1}),
    "xlm-roberta": ("XLMRobertaConfig", {**SHAPE, "max_position_embeddings": 42, "type_vocab_size": 1}),
}


def small_encoder(family: str, task: str, output: Path) -> Path:
    """A random checkpoint, two layers of 32, whose biases are not the zeros transformers starts with."""
    from planish.export.reference import AUTO_CLASSES

    name, options = FAMILIES[family]
    torch.manual_seed(0)
    with quiet():
        labels = {"id2label": {0: "no", 1: "maybe", 2: "yes"}} if task.endswith("classification") else {}
        config = getattr(transformers, name)(**labels, **options)
        model = getattr(transformers, AUTO_CLASSES[task]).from_config(config)
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(output)
    return output


def small_int8(family: str, task: str, folder: Path) -> Path:
    """Its quantized checkpoint by the shipped recipe."""
    return small_quantized(family, task, "int8", folder)


def small_quantized(family: str, task: str, recipe: str, folder: Path) -> Path:
    """Its quantized checkpoint by a recipe; the parent lies beside it."""
    model = small_encoder(family, task, folder / f"{family}-{task}")
    word_tokenizer(VOCABULARY).save_pretrained(model)
    made = folder / f"{family}-{task}-{recipe}"
    with quiet():
        compress(str(model), recipe, made)
    return made
