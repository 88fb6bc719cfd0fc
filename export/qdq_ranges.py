"""How large the values of a decoder become on text: what its float16 graph has to keep in float32.

The decoder is emitted once in float32, with the names its float16 twin will ask for, and run on windows of the built-in
text from position 0 on: the first tokens of a row are where decoders keep their largest activations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from planish import recipes
from planish.errors import CheckpointError
from planish.export.emit_blocks import Dimensions
from planish.export.emit_qdq_blocks import QdqBlocks
from planish.export.emit_qdq_floats import LIMIT
from planish.export.graph import Progress
from planish.runtime.text import load_tokenizer

__all__ = ["ValueRanges", "calibration_rows", "measure_values", "watch"]

WINDOWS, WINDOW = 4, 256
"""Rows of text and their length. On SmolLM2-135M 4 x 256 tokens find the same values beyond the limit as 16 x 512."""

_REPORTED = LIMIT / 16
"""Values this large are named in the manifest one by one, smaller ones as the largest of their kind."""


@dataclass(frozen=True)
class ValueRanges:
    """Name of a value -> largest magnitude on ``text``."""

    largest: Mapping[str, float]
    text: str

    def to_json(self) -> dict[str, Any]:
        """For the manifest. A kind is a name with its numbers left out."""
        found: dict[str, float] = {}
        for name, seen in self.largest.items():
            key = name if seen >= _REPORTED else re.sub(r"\d+", "*", name)
            found[key] = max(found.get(key, 0.0), float(f"{seen:.3g}"))
        wide = sorted(name for name, seen in self.largest.items() if not seen <= LIMIT)
        return {"limit": LIMIT, "text": self.text, "largest": found, "fp32": wide}


def watch(blocks: QdqBlocks) -> list[str]:
    """One more scalar output for each named value of a float32 decoder, its largest magnitude; returns the names."""
    graph, names = blocks.graph, []
    for index, (name, value) in enumerate(blocks.floats.seen):
        largest = graph.op("ReduceMax", graph.op("Abs", value), keepdims=0)
        graph.output(largest, f"range.{index}", "float32", ())
        names.append(name)
    return names


def measure_values(
    path: Path, names: Sequence[str], rows: NDArray[np.int64], d: Dimensions, progress: Progress | None = None
) -> dict[str, float]:
    """Largest magnitudes on ``rows`` in the graph at ``path``, whose outputs :func:`watch` declared.

    Raises ``CheckpointError`` if one is infinite or no number.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs = [f"range.{index}" for index in range(len(names))]
    found: dict[str, float] = {}
    for index, row in enumerate(rows):
        if progress is not None:
            progress("ranges", index, len(rows))
        seen = session.run(outputs, _inputs(row[None], d))
        for name, value in zip(names, seen, strict=True):
            if not np.isfinite(value):
                raise CheckpointError(
                    "a model whose values stay finite on text",
                    f"{value} in {name}",
                    "check the checkpoint: its float32 model computes no numbers either",
                )
            found[name] = max(found.get(name, 0.0), float(value))
    return found


def calibration_rows(checkpoint: Path, vocab: int, longest: int) -> tuple[NDArray[np.int64], str]:
    """Token ids ``[rows, length]`` and where they come from: the built-in text, or chance without a tokenizer."""
    length = min(WINDOW, longest)
    path = checkpoint / "tokenizer.json"
    if path.is_file():
        text = recipes.text("calibrate")
        ids = load_tokenizer(path.read_bytes()).encode(text[: WINDOWS * length * 24], add_special_tokens=False).ids
        usable = [token for token in ids if token < vocab][: WINDOWS * length]
        if len(usable) >= length:
            rows = np.array(usable[: len(usable) // length * length], np.int64).reshape(-1, length)
            return rows, f"built-in text, {len(rows)} x {length} tokens"
    rng = np.random.default_rng(0)
    return rng.integers(0, vocab, (WINDOWS, length)), f"random tokens, {WINDOWS} x {length}"


def _inputs(ids: NDArray[np.int64], d: Dimensions) -> dict[str, NDArray[Any]]:
    positions = np.arange(ids.shape[1])[None]
    empty = np.zeros((1, d.kv_heads, 0, d.head_dim), np.float32)
    past = {f"past_key_values.{i}.{part}": empty for i in range(d.layers) for part in ("key", "value")}
    last = positions[:, -1:]
    return {
        "input_ids": ids,
        "position_ids": positions,
        "attention_mask": np.ones_like(ids),
        "logits_index": last,
        **past,
    }
