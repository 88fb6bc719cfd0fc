"""A GGUF file as a checkpoint directory that the other halves can read."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from planish.compress.permute import permute_llama
from planish.compress.quiet import quiet
from planish.errors import CheckpointError
from planish.outputs import check_output, staging

__all__ = ["gguf_checkpoint", "off_grid_checkpoint"]


def gguf_checkpoint(gguf: Path, output: Path) -> Path:
    """Write the model and tokenizer of a GGUF file as a float32 safetensors checkpoint directory; returns ``output``.

    float32, because a 4-bit weight ``q * scale + minimum`` of two fp16 numbers needs more than fp16's 11 bits.
    """
    return _convert(gguf, output, seed=None)


def off_grid_checkpoint(gguf: Path, output: Path, seed: int = 0) -> Path:
    """:func:`gguf_checkpoint` with :func:`permute_llama` applied: same logits, weights off the file's 4-bit grid."""
    return _convert(gguf, output, seed=seed)


def _convert(gguf: Path, output: Path, seed: int | None) -> Path:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not gguf.is_file():
        raise CheckpointError("a GGUF file", f"nothing at {gguf}", "name an existing .gguf file")
    output = check_output(output)
    with quiet(gguf=True):
        model = _plain(AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32))
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        if seed is not None:
            permute_llama(model, seed)
        with staging(output) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    return output


def _plain(loaded: Any) -> Any:
    """The same model without the mark "quantized by gguf", with which transformers refuses to save unpacked floats."""
    config = copy.deepcopy(loaded.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(loaded)(config).to(torch.float32).eval()
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    return model
