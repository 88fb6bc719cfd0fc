"""The driver: checkpoint in, recipe's passes one after the other, quantized checkpoint out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from planish import __version__
from planish.compress.bench import Bench, Context, Progress
from planish.compress.checkpoint import Checkpoint, open_checkpoint
from planish.compress.data import token_windows
from planish.compress.digest import checkpoint_digest
from planish.compress.passes import Pass, run
from planish.compress.receipt import measure, state
from planish.compress.recipe import Recipe, load_recipe
from planish.compress.walk import normalized
from planish.compress.write import check_output, staging, write_checkpoint, write_json

__all__ = ["CompressResult", "compress"]


@dataclass(frozen=True)
class CompressResult:
    """Where the quantized checkpoint is, and what each pass did (docs/formats.md, section 2)."""

    path: Path
    receipts: list[dict[str, Any]]


def compress(
    model: str | Path,
    recipe: str | Path | Recipe,
    output: str | Path,
    *,
    progress: Progress | None = None,
    trust_remote_code: bool = False,
) -> CompressResult:
    """Shrink a trained checkpoint by a recipe.

    Args:
        model: a directory, a ``.gguf`` file, or a hub id.
        recipe: the name of a shipped recipe, the path of a YAML file, or a recipe.
        output: a path that does not exist yet, or an empty directory.

    Raises:
        CheckpointError, RecipeError, DataError, InputError: one of these three is not usable.
        HostError: the disk is full or not writable.
    """
    plan = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    target = check_output(output)
    source = open_checkpoint(model, trust_remote_code)
    report = progress or _silent
    report("load", 0, 1)
    bench = Bench.of(source.load_model())
    report("load", 1, 1)
    receipts = _run_passes(plan, source, bench, target, report)
    report("write", 0, 1)
    with staging(target) as folder:
        write_checkpoint(bench, source, folder)
        receipts[-1]["after"]["digest"] = checkpoint_digest([folder / "model.safetensors", folder / "config.json"])
        identity = {"name": source.name, "digest": source.digest}
        facts = {
            "schema": 1,
            "planish": __version__,
            "recipe": plan.to_json(),
            "source": identity,
            "receipts": receipts,
        }
        write_json(folder / "planish.json", facts)
    report("write", 1, 1)
    return CompressResult(target, receipts)


@torch.no_grad()
def _run_passes(plan: Recipe, source: Checkpoint, bench: Bench, target: Path, report: Progress) -> list[dict[str, Any]]:
    @cache
    def windows() -> torch.Tensor:
        limit = getattr(normalized(bench.model.config), "max_position_embeddings", None)
        return token_windows(plan.data, plan.folder, source.tokenizer(), limit)

    receipts = []
    before = {**state(bench), "digest": source.digest}
    for index, step in enumerate(plan.passes):
        context = Context(windows, target.parent / f".{target.name}.partial" / str(index), report, plan.data.seed)
        bench, receipt = _timed(step, bench, context, before)
        receipts.append(receipt)
        before = receipt["after"]
    return receipts


def _timed(step: Pass, bench: Bench, context: Context, before: dict[str, Any]) -> tuple[Bench, dict[str, Any]]:
    earlier = set(bench.stored)
    start = time.perf_counter()
    with measure() as peak:
        bench = run(step, bench, context)
    seconds = time.perf_counter() - start
    mine = [bench.stored[name] for name in bench.stored if name not in earlier]
    weights = sum(stored.quantized.values.numel() for stored in mine)
    receipt = {
        "pass": step.name,
        "settings": step.settings(),
        "seed": context.seed,
        "seconds": round(seconds, 3),
        "peak_memory_bytes": peak(),
        "before": before,
        "after": state(bench),
        "layers": len(mine),
        "bits_per_weight": round(sum(stored.bits for stored in mine) / max(weights, 1), 4),
        "quality": {},
    }
    return bench, receipt


def _silent(stage: str, done: int, total: int) -> None:
    return
