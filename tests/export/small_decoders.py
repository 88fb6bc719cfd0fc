"""Random decoders of every family, small enough to export in a second, and their quantized checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import transformers
import yaml
from numpy.typing import NDArray
from transformers.utils import logging

from planish.compress import compress
from planish.compress.recipe import parse_recipe
from planish.export.graph import Built

__all__ = ["FAMILIES", "VOCABULARY", "compressed", "edit_config", "quantized", "random_decoder", "tensors", "unpacked"]

Array = NDArray[Any]

_SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 96}
_LLAMA = {**_SHAPE, "intermediate_size": 96, "num_key_value_heads": 2}
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {**_LLAMA, "tie_word_embeddings": True}),
    "llama-rope3": (
        "LlamaConfig",
        {**_LLAMA, "rope_parameters": {**_LLAMA3, "original_max_position_embeddings": 32}, "attention_bias": True},
    ),
    "mistral": ("MistralConfig", {**_LLAMA, "sliding_window": None}),
    "qwen2": ("Qwen2Config", {**_LLAMA, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {**_LLAMA, "head_dim": 32}),
    "gpt2": ("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 96}),
    "gpt2-scaled": (
        "GPT2Config",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 96, "scale_attn_by_inverse_layer_idx": True},
    ),
    "opt": ("OPTConfig", {**_SHAPE, "ffn_dim": 96, "word_embed_proj_dim": 64}),
    "neox": ("GPTNeoXConfig", {**_SHAPE, "intermediate_size": 96, "rotary_pct": 0.25}),
    "neox-serial": (
        "GPTNeoXConfig",
        {
            **_SHAPE,
            "intermediate_size": 96,
            "hidden_size": 128,
            "use_parallel_residual": False,
            "hidden_act": "gelu_new",
        },
    ),
}
"""Name -> class and settings of its configuration; the family is the class's ``model_type``."""

VOCABULARY = 320


def random_decoder(name: str, output: Path, **overrides: Any) -> Path:
    """A float checkpoint with weights large enough that every part of the model matters."""
    torch.manual_seed(0)
    kind, settings = FAMILIES[name]
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = getattr(transformers, kind)(vocab_size=VOCABULARY, **{**settings, **ends, **overrides})
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        noise = torch.randn_like(parameter)
        parameter.data = noise * 0.15 if parameter.ndim > 1 else parameter.data + noise * 0.1
    logging.disable_progress_bar()
    model.save_pretrained(output)
    return output


def quantized(source: Path, output: Path, *, embedding: bool = True, **settings: Any) -> Path:
    """``source`` with rounded weights (``weight-only`` with ``settings``) and, if asked for, an INT8 embedding."""
    weights = {"pass": "weight-only", "bits": 4, "group_size": 32, "symmetric": False, "method": "round", **settings}
    return compressed(source, output, [weights, *([{"pass": "int8-embedding"}] if embedding else [])])


def compressed(source: Path, output: Path, passes: list[dict[str, Any]]) -> Path:
    """``source`` after ``passes``."""
    recipe = yaml.safe_dump({"schema": 1, "name": "test", "passes": passes})
    compress(source, parse_recipe(recipe), output)
    return output


def edit_config(checkpoint: Path, **changes: Any) -> Path:
    """Change keys of ``config.json``; None removes one."""
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    config = {key: value for key, value in {**config, **changes}.items() if value is not None}
    path.write_text(json.dumps(config))
    return checkpoint


def tensors(built: Built) -> dict[str, Array]:
    graph = ir.load(built.folder / built.files[0]).graph
    return {str(n): v.const_value.numpy() for n, v in graph.initializers.items() if v.const_value is not None}


def unpacked(array: Array, bits: int, width: int) -> Array:
    """Signed integers out of bytes, low bits first."""
    octets = array.reshape(len(array), -1)
    if bits == 4:
        octets = np.stack([octets & 15, octets >> 4], axis=-1).reshape(len(array), -1)
    return octets[:, :width].astype(np.int16) - (1 << (bits - 1))
