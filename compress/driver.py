"""The driver: checkpoint in, recipe's passes one after the other, quantized checkpoint out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from planish import __version__
from planish.compress.bench import Bench, Context, Progress, Stored
from planish.compress.checkpoint import Checkpoint, open_checkpoint
from planish.compress.data import token_windows
from planish.compress.digest import checkpoint_digest
from planish.compress.disk import disk_errors
from planish.compress.passes import Pass, run
from planish.compress.receipt import measure, state
from planish.compress.recipe import Recipe, load_recipe
from planish.compress.resume import WorkFolder
from planish.compress.walk import longest_text
from planish.compress.write import write_checkpoint, write_json
from planish.errors import HostError
from planish.outputs import check_output, staging

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
    with _work_folder(target, plan, source) as work:
        report("load", 0, 1)
        bench = Bench.of(source.load_model())
        report("load", 1, 1)
        receipts = _run_passes(plan, source, bench, work, report)
        report("write", 0, 1)
        with disk_errors(target.parent), staging(target) as folder:
            write_checkpoint(bench, source, folder)
            receipts[-1]["after"]["digest"] = checkpoint_digest([folder / "model.safetensors", folder / "config.json"])
            write_json(folder / "planish.json", _facts(plan, source, receipts))
    report("write", 1, 1)
    return CompressResult(target, receipts)


def _facts(plan: Recipe, source: Checkpoint, receipts: list[dict[str, Any]]) -> dict[str, Any]:
    identity = {"name": source.name, "digest": source.digest}
    return {"schema": 1, "planish": __version__, "recipe": plan.to_json(), "source": identity, "receipts": receipts}


@contextlib.contextmanager
def _work_folder(target: Path, plan: Recipe, source: Checkpoint) -> Iterator[WorkFolder]:
    """The folder a killed run continues from; removed at the end, kept on Ctrl-C."""
    versions = {"planish": __version__, "torch": torch.__version__}
    with disk_errors(target.parent):
        work = WorkFolder(target, {"recipe": plan.digest, "source": source.digest, **versions})
    keep = False
    try:
        yield work
    except KeyboardInterrupt:
        keep = work.has_pieces()
        hint = f"finished layers are kept in {work.path}; the same command continues there" if keep else ""
        raise KeyboardInterrupt(hint) from None
    except MemoryError as error:
        raise HostError(
            "enough memory for the model", "none left", "close other programs or lower data.samples"
        ) from error
    finally:
        work.close(keep=keep)


@torch.no_grad()
def _run_passes(
    plan: Recipe, source: Checkpoint, bench: Bench, work: WorkFolder, report: Progress
) -> list[dict[str, Any]]:
    @cache
    def windows() -> tuple[torch.Tensor, ...]:
        return token_windows(plan.data, plan.folder, source.tokenizer(), longest_text(bench.model))

    receipts = []
    before = {**state(bench), "digest": source.digest}
    for index, step in enumerate(plan.passes):
        context = Context(windows, work.pieces(index), report, plan.data.seed)
        with disk_errors(work.path.parent):
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
        "quality": _mean_quality(mine),
    }
    return bench, receipt


def _mean_quality(layers: list[Stored]) -> dict[str, float]:
    """Each error measured on the layers, averaged over them."""
    names = sorted({name for stored in layers for name in stored.quality})
    values = {name: [stored.quality[name] for stored in layers if name in stored.quality] for name in names}
    return {f"mean_{name}": float(f"{sum(found) / len(found):.6g}") for name, found in values.items()}


def _silent(stage: str, done: int, total: int) -> None:
    return
