"""What each pass cost and brought: receipts as a table; and what a recipe makes when one of its passes is left out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish.describe import json_object
from planish.errors import CheckpointError, InputError, PlanishError
from planish.gate.receipts import headline

__all__ = ["HEAD", "Explained", "explain", "leave_one_out"]

Progress = Callable[[str, int, int], None]
HEAD = ("pass", "MB", "parameters", "MFLOPs", "quality", "agreement", "latency", "seconds")
LEFT_OUT_HEAD = ("without", "MB", "parameters", "MFLOPs", "quality", "agreement")


@dataclass(frozen=True)
class Explained:
    """Receipts of ``name``, made by ``recipe`` from ``source``."""

    name: str
    recipe: str
    recipe_text: str | None
    source: str
    receipts: tuple[Mapping[str, Any], ...]

    def rows(self) -> list[list[str]]:
        """A row for the parent and one for each pass: what was left after it, and by how much it changed."""
        states = [("parent", None, self.receipts[0]["before"], "")]
        for receipt in self.receipts:
            states.append((receipt["pass"], receipt["before"], receipt["after"], f"{receipt['seconds']:.0f}"))
        return [state_cells(*state) for state in states]

    def notes(self) -> list[str]:
        """What passes found worth saying, a line each."""
        lines = []
        for receipt in self.receipts:
            facts = receipt.get("facts") or {}
            words = [
                f"{key} {fact_words(value)}" for key, value in facts.items() if not isinstance(value, (dict, list))
            ]
            if words:
                lines.append(f"{receipt['pass']}: {', '.join(words)}")
        return lines

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "recipe": self.recipe,
            "source": self.source,
            "receipts": [dict(receipt) for receipt in self.receipts],
        }


def explain(path: Path) -> Explained:
    """Read the receipts of a checkpoint ``planish compress`` wrote, or of a bundle of one.

    Raises:
        InputError: neither is there, or it was made without passes.
        CheckpointError, BundleError: it is damaged.
    """
    if (path / "manifest.json").exists():
        from planish import runtime

        told = runtime.read_manifest(path).to_json()
        recipe, source, receipts = told["recipe"] or {}, told["source"], told["receipts"]
    elif (path / "planish.json").is_file():
        told = json_object(path / "planish.json")
        recipe, source, receipts = told.get("recipe"), told.get("source"), told.get("receipts")
    else:
        fix = "name what planish compress or planish ship wrote"
        raise InputError("a compressed checkpoint (planish.json) or a bundle", str(path), fix)
    if not receipts:
        raise InputError("receipts of passes", f"none in {path}, which no recipe made", "compress it first")
    return checked(path, recipe, source, receipts)


def checked(path: Path, recipe: Any, source: Any, receipts: Any) -> Explained:
    """The receipts, if they are such."""
    try:
        for receipt in receipts:
            str(receipt["pass"]), float(receipt["seconds"])
            for side in ("before", "after"):
                int(receipt[side]["bytes"]), int(receipt[side]["parameters"])
        return Explained(path.name, str(recipe["name"]), recipe.get("text"), str(source["name"]), tuple(receipts))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        got = f"{type(error).__name__}: {error}"[:120]
        raise CheckpointError(
            f"receipts with pass, seconds, before and after in {path}", got, "compress again"
        ) from None


def leave_one_out(
    path: Path,
    model: str,
    *,
    train: Path | None = None,
    validation: Path | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> list[list[str]]:
    """Run the recipe of ``path`` again without each of its passes in turn: what is left, and how good.

    As long as the recipe itself, times its passes. A recipe that cannot run without a pass says so in its row.

    Raises:
        InputError: the checkpoint or bundle does not hold its recipe, or ``model`` is not what it was made from.
    """
    from planish import compress
    from planish.compress.recipe import parse_recipe

    found = explain(path)
    if found.recipe_text is None:
        raise InputError("a checkpoint, which holds its recipe", f"a bundle: {path}", "name the checkpoint of it")
    opened = compress.open_checkpoint(model, trust_remote_code)
    if opened.digest != found.receipts[0]["before"].get("digest"):
        raise InputError(f"the checkpoint {path.name} was made from ({found.source})", model, "name its parent")
    seed = int(found.receipts[0]["seed"])
    plan = parse_recipe(found.recipe_text, where=f"the recipe of {path.name}").on(train, validation, seed)
    rows = [left_out_cells("nothing", found.receipts[-1]["after"])]
    for index, step in enumerate(plan.passes):
        shorter = plan.without(index)
        if not shorter.passes:
            rows.append([step.name, *["nothing is left to do"], *[""] * (len(LEFT_OUT_HEAD) - 2)])
            continue
        with tempfile.TemporaryDirectory() as name:
            try:
                made = compress.compress(model, shorter, Path(name) / "checkpoint", progress=progress)
            except PlanishError as error:
                rows.append([step.name, f"cannot run: {error.got}"[:60], *[""] * (len(LEFT_OUT_HEAD) - 2)])
                continue
        rows.append(left_out_cells(step.name, made.receipts[-1]["after"]))
    return rows


def state_cells(name: str, before: Mapping[str, Any] | None, after: Mapping[str, Any], seconds: str) -> list[str]:
    """A row of the table."""
    return [
        name,
        changed(before, after, "bytes", 1e6, "{:.1f}"),
        changed(before, after, "parameters", 1e6, "{:.2f} M"),
        changed(before, after, "flops", 1e6, "{:.0f}"),
        quality_cell(before, after),
        number(after.get("quality"), "agreement", "{:.3f}"),
        latency_cell(after),
        seconds,
    ]


def left_out_cells(name: str, after: Mapping[str, Any]) -> list[str]:
    return [name, *state_cells(name, None, after, "")[1:6]]


def changed(before: Mapping[str, Any] | None, after: Mapping[str, Any], key: str, unit: float, form: str) -> str:
    """A figure, with the change in percent where there was any."""
    if key not in after:
        return "-"
    value = form.format(after[key] / unit)
    if before is None or not before.get(key) or before[key] == after[key]:
        return value
    return f"{value} ({100 * (after[key] / before[key] - 1):+.0f} %)"


def quality_cell(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> str:
    """The headline metric, and by how much the pass changed it."""
    quality, name = after.get("quality") or {}, headline(after)
    if name is None:
        return "-"
    earlier = ((before or {}).get("quality") or {}).get(name)
    change = "" if earlier is None else f" ({quality[name] - earlier:+.4f})"
    return f"{name} {quality[name]:.4f}{change}"


def latency_cell(after: Mapping[str, Any]) -> str:
    latency = after.get("latency")
    return "-" if not latency else f"{latency['ms']:.2f} ms at {latency['shape']}, {1 / latency['ratio']:.2f}x"


def number(values: Mapping[str, Any] | None, key: str, form: str) -> str:
    return form.format(values[key]) if values and key in values else "-"


def fact_words(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
