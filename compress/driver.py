"""The driver: checkpoint in, recipe's passes one after the other, quantized checkpoint out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from planish import __version__
from planish.compress.bench import Bench, Context, Progress, Stored
from planish.compress.checkpoint import Checkpoint, open_checkpoint
from planish.compress.digest import checkpoint_digest
from planish.compress.disk import disk_errors
from planish.compress.material import Material
from planish.compress.passes import Pass, run
from planish.compress.receipt import measure, state
from planish.compress.recipe import Recipe, load_recipe
from planish.compress.resume import Pieces, WorkFolder
from planish.compress.write import write_checkpoint, write_json
from planish.errors import HostError
from planish.outputs import check_output, staging

if TYPE_CHECKING:
    from planish.compress.judge import Judge

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
    train: str | Path | None = None,
    validation: str | Path | None = None,
    seed: int | None = None,
    steps: str | Path | None = None,
    progress: Progress | None = None,
    trust_remote_code: bool = False,
) -> CompressResult:
    """Shrink a trained checkpoint by a recipe.

    Args:
        model: a directory, a ``.gguf`` file, or a hub id.
        recipe: the name of a shipped recipe, the path of a YAML file, or a recipe.
        output: a path that does not exist yet, or an empty directory.
        train, validation: data to train, calibrate and judge on, instead of the recipe's (JSONL or .txt).
        seed: instead of the recipe's.
        steps: a folder that keeps the checkpoint as it was after each pass (``1-prune``, ``2-distill``, ...).

    Raises:
        CheckpointError, RecipeError, DataError, InputError: one of these is not usable.
        HostError: the disk is full or not writable.
    """
    plan = (recipe if isinstance(recipe, Recipe) else load_recipe(recipe)).on(train, validation, seed)
    target = check_output(output)
    kept = None if steps is None else check_output(steps)
    if kept is not None:
        kept.mkdir(exist_ok=True)
    source = open_checkpoint(model, trust_remote_code)
    report = progress or _silent
    with _work_folder(target, plan, source) as work:
        report("load", 0, 1)
        bench = Bench.of(source.load_model())
        report("load", 1, 1)
        receipts = _run_passes(plan, source, bench, work, report, kept)
        report("write", 0, 1)
        _write(plan, source, bench, receipts, target)
    report("write", 1, 1)
    return CompressResult(target, receipts)


def _write(plan: Recipe, source: Checkpoint, bench: Bench, receipts: list[dict[str, Any]], target: Path) -> None:
    with disk_errors(target.parent), staging(target) as folder:
        write_checkpoint(bench, source, folder)
        receipts[-1]["after"]["digest"] = checkpoint_digest([folder / "model.safetensors", folder / "config.json"])
        write_json(folder / "planish.json", _facts(plan, source, receipts))


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
    plan: Recipe, source: Checkpoint, bench: Bench, work: WorkFolder, report: Progress, steps: Path | None
) -> list[dict[str, Any]]:
    material = Material(plan.data, plan.folder, source, bench)
    judged = plan.data.train is not None or any(step.judged for step in plan.passes)
    judge = _judge(material, work.piece("judge"), report) if judged else None
    receipts: list[dict[str, Any]] = []
    before = {**_state(bench, judge), "digest": source.digest}
    for index, step in enumerate(plan.passes):
        context = Context(
            windows=material.windows,
            pieces=work.pieces(index),
            progress=report,
            seed=plan.data.seed,
            source=source,
            tokenizer=material.tokenizer,
            examples=material.examples,
            data=plan.data,
            folder=plan.folder,
            later=plan.passes[index + 1 :],
        )
        with disk_errors(work.path.parent):
            bench, receipt = _timed(step, bench, context, before, judge)
        material.bench = bench
        receipts.append(receipt)
        before = receipt["after"]
        if steps is not None:
            _write(plan, source, bench, receipts, steps / f"{index + 1}-{step.name}")
    return receipts


def _judge(material: Material, pieces: Pieces, report: Progress) -> Judge:
    from planish.compress.judge import Judge  # transformers' data tools are not needed to quantize

    return Judge(material, pieces, report)


def _timed(
    step: Pass, bench: Bench, context: Context, before: dict[str, Any], judge: Judge | None
) -> tuple[Bench, dict[str, Any]]:
    earlier = set(bench.stored)
    start = time.perf_counter()
    with measure() as peak:
        bench = run(step, bench, context)
    seconds = time.perf_counter() - start
    mine = [bench.stored[name] for name in bench.stored if name not in earlier]
    weights = sum(stored.quantized.values.numel() for stored in mine)
    facts, bench.facts = bench.facts, {}
    receipt = {
        "pass": step.name,
        "settings": step.settings(),
        "seed": context.seed,
        "seconds": round(seconds, 3),
        "peak_memory_bytes": peak(),
        "before": before,
        "after": _state(bench, judge),
        "layers": len(mine),
        "bits_per_weight": round(sum(stored.bits for stored in mine) / max(weights, 1), 4),
        "quality": _mean_quality(mine),
    }
    return bench, receipt | ({"facts": facts} if facts else {})


def _state(bench: Bench, judge: Judge | None) -> dict[str, Any]:
    """What a model is: weights, sizes and, where it is judged, how good."""
    found = state(bench)
    return found if judge is None else {**found, "quality": judge.quality(bench)}


def _mean_quality(layers: list[Stored]) -> dict[str, float]:
    """Each error measured on the layers, averaged over them."""
    names = sorted({name for stored in layers for name in stored.quality})
    values = {name: [stored.quality[name] for stored in layers if name in stored.quality] for name in names}
    return {f"mean_{name}": float(f"{sum(found) / len(found):.6g}") for name, found in values.items()}


def _silent(stage: str, done: int, total: int) -> None:
    return
