"""``genai_config.json``: what onnxruntime-genai has to know to open a generation bundle.

Keys: onnxruntime-genai's configuration reference. Names of inputs and outputs are those of docs/formats.md, section 5.
The ``logits`` output is declared with one position, by which onnxruntime-genai knows that a prefill returns no more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planish.export.graph import Built
from planish.sliced import KEY, is_sliced

__all__ = ["FILE", "genai_config", "write_genai_config"]

FILE = "genai_config.json"

_OWN_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Types onnxruntime-genai treats as itself needs; any other decoder with these inputs and outputs is a ``decoder``."""


def genai_config(built: Built, config: Mapping[str, Any], model_path: str = "onnx/ort/model.onnx") -> dict[str, Any]:
    """The configuration for ``built``, whose model will lie at ``model_path`` in the bundle.

    ``config`` is the checkpoint's ``config.json``. Ids the checkpoint does not name are left out.
    """
    generation = built.generation or {}
    ends = generation["eos_token_ids"]
    pad = generation["pad_token_id"] if generation["pad_token_id"] is not None else (ends or [None])[0]
    tokens = {"bos_token_id": generation["bos_token_id"], "eos_token_id": ends or None, "pad_token_id": pad}
    model = {
        "type": config["model_type"] if config["model_type"] in _OWN_TYPES else "decoder",
        "vocab_size": int(config["vocab_size"]),
        "context_length": generation["max_length"],
        **{key: token for key, token in tokens.items() if token is not None},
        "decoder": _decoder(built, generation, config, model_path),
    }
    return {"model": model, "search": _search(generation)}


def write_genai_config(folder: Path, built: Built, config: Mapping[str, Any]) -> None:
    """Writes ``genai_config.json`` into the bundle in ``folder``."""
    text = json.dumps(genai_config(built, config), sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    (folder / FILE).write_text(text, encoding="utf-8")


def _decoder(built: Built, generation: Mapping[str, Any], config: Mapping[str, Any], model_path: str) -> dict[str, Any]:
    heads = int(config.get("num_attention_heads") or config["n_head"])
    if is_sliced(dict(config)):
        heads = int(config[KEY]["heads"][0])
    session: dict[str, Any] = {"log_severity_level": 3, "provider_options": []}
    session |= built.session
    if built.disabled_optimizers:
        session["optimization.disable_specified_optimizers"] = ";".join(built.disabled_optimizers)
    return {
        "filename": model_path,
        "head_size": generation["head_dim"],
        "hidden_size": int(config.get("hidden_size") or config["n_embd"]),
        "num_attention_heads": heads,
        "num_hidden_layers": generation["num_layers"],
        "num_key_value_heads": generation["num_kv_heads"],
        "session_options": session,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }


def _search(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Greedy unless the checkpoint's own defaults sample."""
    defaults = generation["defaults"]
    return {
        "max_length": generation["max_length"],
        "past_present_share_buffer": True,
        "num_beams": 1,
        "do_sample": bool(defaults),
        "temperature": defaults.get("temperature", 1.0),
        "top_k": defaults.get("top_k", 1 if not defaults else 50),
        "top_p": defaults.get("top_p", 1.0),
        "repetition_penalty": defaults.get("repetition_penalty", 1.0),
    }
