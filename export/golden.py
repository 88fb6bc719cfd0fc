"""Inputs to try a graph on, ragged and padded, and the small golden pair that travels in a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from planish import recipes
from planish.runtime.text import load_tokenizer

__all__ = ["GOLDEN_LENGTHS", "encoder_inputs", "run_torch", "text_inputs", "write_golden"]

Arrays = dict[str, NDArray[Any]]

GOLDEN_LENGTHS = (12, 5, 1)
"""Tokens of each row of the golden batch of an encoder."""


def encoder_inputs(
    names: Sequence[str], lengths: Sequence[int], *, vocab_size: int, pad_token_id: int | None, seed: int = 0
) -> Arrays:
    """A batch of random ids, int64 ``[len(lengths), max(lengths)]``, padded on the right; two segments a row."""
    rng = np.random.default_rng(seed)
    shape = (len(lengths), max(lengths))
    pad = pad_token_id or 0
    ids = rng.integers(0, vocab_size, shape)
    ids[ids == pad] = (pad + 1) % vocab_size
    mask = (np.arange(shape[1]) < np.asarray(lengths)[:, None]).astype(np.int64)
    segments = (np.arange(shape[1]) >= (np.asarray(lengths)[:, None] + 1) // 2).astype(np.int64) * mask
    batch = {"input_ids": np.where(mask == 1, ids, pad), "attention_mask": mask, "token_type_ids": segments}
    return {name: batch[name].astype(np.int64) for name in names}


def text_inputs(
    names: Sequence[str], tokenizer: Path, *, vocab_size: int, max_length: int, rows: int = 24
) -> list[Arrays]:
    """Inputs of single texts from the built-in one, int64 ``[1, length]`` and unpadded, of lengths up to the model's.

    Random ids where there is no ``tokenizer`` (a ``tokenizer.json``).
    """
    lengths = [min(length, max_length) for length in (8, 32, 128, 512)]
    rng = np.random.default_rng(0)
    encode = load_tokenizer(tokenizer.read_bytes()).encode if tokenizer.is_file() else None
    text = recipes.text("calibrate")
    found = []
    for row in range(rows):
        length = lengths[row % len(lengths)]
        start = len(text) * row // rows
        ids = encode(text[start : start + 8 * length]).ids[:length] if encode else rng.integers(0, vocab_size, length)
        array = np.asarray(ids, np.int64)[None]
        batch = {"input_ids": array, "attention_mask": np.ones_like(array), "token_type_ids": np.zeros_like(array)}
        found.append({name: batch[name] for name in names})
    return found


def run_torch(model: Any, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
    """``outputs`` of a transformers model, by name."""
    with torch.no_grad():
        answer = model(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    return {name: answer[name].float().numpy() for name in outputs}


def write_golden(bundle: Path, inputs: Arrays, outputs: Arrays) -> None:
    """``golden/inputs.npz`` and ``golden/outputs.npz``; the same arrays give the same bytes."""
    folder = bundle / "golden"
    folder.mkdir(parents=True)
    for name, arrays in (("inputs", inputs), ("outputs", outputs)):
        np.savez(folder / f"{name}.npz", allow_pickle=False, **{key: arrays[key] for key in sorted(arrays)})
