"""What the tests of distillation share: a task a tiny model learns in seconds, and a pass run outside a recipe."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from planish import recipes
from planish.compress.bench import Bench, Context
from planish.compress.checkpoint import Checkpoint, open_checkpoint
from planish.compress.examples import Examples, read_examples
from planish.compress.passes import Pass, build, run
from planish.compress.recipe import Data
from planish.compress.resume import Pieces, WorkFolder

GOOD = ["whale", "ship", "sea", "captain"]
BAD = ["man", "old", "way", "night"]
REST = ["the", "of", "and", "with", "that", "his", "was", "for", "all", "this"]


def write_rows(path: Path, count: int, seed: int, *, label: Callable[[int], Any] = lambda good: good) -> Path:
    """Sentences whose label says whether there are more of the good words than of the bad."""
    draw, lines = random.Random(seed), []
    for _ in range(count):
        good = draw.randint(0, 1)
        words = draw.choices(GOOD if good else BAD, k=2) + draw.choices(BAD if good else GOOD)
        words += draw.choices(REST, k=draw.randint(2, 12))
        draw.shuffle(words)
        lines.append(json.dumps({"text": " ".join(words), "label": label(good)}))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def train_teacher(folder: Path, data: Data, *, steps: int = 150) -> Path:
    """Train the checkpoint at ``folder`` on its labels, in place."""
    source = open_checkpoint(folder)
    model: Any = source.load_model()
    examples = examples_of(source, data, model)
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    torch.manual_seed(0)
    done = 0
    with torch.enable_grad():
        while done < steps:
            for batch in examples.batches("train", 16, seed=0, epoch=done):
                model(**batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                done += 1
    model.eval().save_pretrained(folder)
    return folder


def examples_of(source: Checkpoint, data: Data, model: Any) -> Examples:
    return read_examples(data, Path.cwd(), source.tokenizer(), model, source.task, source.raw_config)


def text_file(path: Path, characters: int = 20_000) -> Path:
    path.write_text(recipes.text("calibrate")[:characters], encoding="utf-8")
    return path


class Workshop:
    """A parent, a bench with its model, and a way to run passes on it."""

    def __init__(self, parent: Path, data: Data, work: Path, seed: int = 0) -> None:
        self.source = open_checkpoint(parent)
        self.bench = Bench.of(self.source.load_model())
        self.data, self.seed = data, seed
        self.folder = WorkFolder(work, {"test": str(parent)})
        self._examples: Examples | None = None

    def examples(self) -> Examples:
        if self._examples is None:
            self._examples = examples_of(self.source, self.data, self.bench.model)
        return self._examples

    def context(self, later: tuple[Pass, ...] = (), progress: Any = None) -> Context:
        return Context(
            windows=lambda: (torch.randint(0, 512, (4, 32), generator=torch.Generator().manual_seed(0)),),
            pieces=self.pieces,
            progress=progress or (lambda stage, done, total: None),
            seed=self.seed,
            source=self.source,
            tokenizer=self.source.tokenizer,
            examples=self.examples,
            data=self.data,
            folder=Path.cwd(),
            later=later,
        )

    @property
    def pieces(self) -> Pieces:
        return self.folder.pieces(0)

    @torch.no_grad()
    def run(self, settings: dict[str, Any], *later: dict[str, Any], progress: Any = None) -> dict[str, Any]:
        """Run the pass distill; returns its facts."""
        following = tuple(build(one["pass"], {k: v for k, v in one.items() if k != "pass"}, "test") for one in later)
        self.bench.facts = {}
        run(build("distill", settings, "test"), self.bench, self.context(following, progress))
        return self.bench.facts
