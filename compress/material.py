"""What passes read: calibration windows, examples and tokenizer, in the vocabulary the model on the bench has now."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from planish.compress.bench import Bench
from planish.compress.checkpoint import Checkpoint
from planish.compress.data import token_windows
from planish.compress.quiet import quiet
from planish.compress.recipe import Data
from planish.compress.walk import longest_text
from planish.compress.write import write_json, write_side_files

if TYPE_CHECKING:
    from planish.compress.examples import Examples

__all__ = ["Material"]


@dataclass
class Material:
    """Read once, and again after a pass has trimmed the vocabulary."""

    data: Data
    folder: Path
    source: Checkpoint
    bench: Bench
    _read: dict[str, Any] = field(default_factory=dict)
    _vocabulary: torch.Tensor | None = None

    def windows(self) -> tuple[torch.Tensor, ...]:
        """Calibration windows, int64 ``[samples, length]`` each."""
        windows: tuple[torch.Tensor, ...] = self._once("windows", self._windows)
        return windows

    def examples(self) -> Examples:
        """Training and validation examples."""
        examples: Examples = self._once("examples", self._examples)
        return examples

    def tokenizer(self) -> Any:
        """transformers' fast tokenizer."""
        return self._once("tokenizer", self._tokenizer)

    def _once(self, name: str, make: Any) -> Any:
        if self.bench.vocabulary is not self._vocabulary:
            self._read.clear()
            self._vocabulary = self.bench.vocabulary
        if name not in self._read:
            self._read[name] = make()
        return self._read[name]

    def _windows(self) -> tuple[torch.Tensor, ...]:
        return token_windows(self.data, self.folder, self.tokenizer(), longest_text(self.bench.model))

    def _examples(self) -> Examples:
        from planish.compress.examples import read_examples

        config = {**self.source.raw_config, **self.bench.config}
        model, task = self.bench.model, self.source.task
        return read_examples(self.data, self.folder, self.tokenizer(), model, task, config)

    def _tokenizer(self) -> Any:
        if not self.bench.files:
            return self.source.tokenizer()
        from transformers import AutoTokenizer

        with tempfile.TemporaryDirectory() as name, quiet():
            folder = Path(name)
            write_side_files(self.source, self.bench, folder)
            write_json(folder / "config.json", {**self.source.raw_config, **self.bench.config})
            return AutoTokenizer.from_pretrained(folder, local_files_only=True)
