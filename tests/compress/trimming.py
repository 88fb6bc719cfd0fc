"""Runs the pass trim-vocabulary alone, without a driver around it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from planish.compress.bench import Bench, Context
from planish.compress.checkpoint import Checkpoint, open_checkpoint
from planish.compress.material import Material
from planish.compress.passes import build
from planish.compress.recipe import Data
from planish.compress.resume import WorkFolder
from planish.compress.write import write_checkpoint

__all__ = ["context_of", "trimmed"]


def quiet(stage: str, done: int, total: int) -> None:
    return


def trimmed(
    checkpoint: Path, folder: Path, texts: list[str] | None = None, data: Data | None = None, **settings: Any
) -> tuple[Bench, Path]:
    """Run the pass alone on ``checkpoint``, and write what came of it to a new folder in ``folder``."""
    if texts is not None:
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / "corpus.jsonl").write_text(lines, encoding="utf-8")
        settings["corpus"] = "corpus.jsonl"
    source, data = open_checkpoint(checkpoint), data or Data()
    bench = Bench.of(source.load_model())
    step = build("trim-vocabulary", settings, "test")
    with torch.no_grad():
        step.apply(bench, context_of(bench, source, folder, data))
    output = folder / "trimmed"
    output.mkdir()
    write_checkpoint(bench, source, output)
    return bench, output


def context_of(bench: Bench, source: Checkpoint, folder: Path, data: Data) -> Context:
    material = Material(data, folder, source, bench)
    return Context(
        windows=material.windows,
        pieces=WorkFolder(folder / "work", {}).pieces(0),
        progress=quiet,
        seed=0,
        source=source,
        tokenizer=material.tokenizer,
        examples=material.examples,
        data=data,
        folder=folder,
    )
