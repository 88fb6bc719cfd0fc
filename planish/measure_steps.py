"""Latency after each pass: every step is exported, all are measured in turns, and the receipts say what came out."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish.options import shape_of
from planish.outputs import check_output, replace_text

if TYPE_CHECKING:
    from planish.compress import CompressResult

__all__ = ["compress_measured", "measure_latency"]

Progress = Callable[[str, int, int], None]
SECONDS_EACH = 5.0
"""Of measuring, for each bundle."""


def compress_measured(
    model: str,
    recipe: str,
    output: Path,
    measure: str | None,
    profile: str,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> CompressResult:
    """``compress``, and with a shape to ``measure`` (``8x64``) the latency before and after each pass.

    Raises what ``compress`` and ``export`` raise; the checkpoint is whole either way.
    """
    from planish import compress, profiles

    if measure is None:
        return compress.compress(model, recipe, output, progress=progress, **options)
    shape = shape_of(measure)
    profiles.load(profile)
    target = check_output(output)
    opened = compress.open_checkpoint(model, options.get("trust_remote_code", False))
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.steps.", dir=target.parent) as name:
        work = Path(name)
        steps = work / "steps"
        made = compress.compress(model, recipe, target, steps=steps, progress=progress, **options)
        from planish.ship import as_directory

        parent = as_directory(opened, work / "parent")
        folders = [parent, *sorted(steps.iterdir(), key=lambda path: int(path.name.split("-")[0]))]
        found = measure_latency(folders, work, shape, profile, progress)
    for receipt, before, after in zip(made.receipts, found, found[1:], strict=False):
        receipt["before"]["latency"], receipt["after"]["latency"] = before, after
    facts = json.loads((made.path / "planish.json").read_text(encoding="utf-8"))
    facts["receipts"] = made.receipts
    text = json.dumps(facts, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    replace_text(made.path / "planish.json", text)
    return made


def measure_latency(
    checkpoints: list[Path], work: Path, shape: tuple[int, int], profile: str, progress: Progress | None
) -> list[dict[str, Any]]:
    """Milliseconds of each checkpoint's graph in ONNX Runtime, all in turns, one thread, CPU time where a CPU runs it.

    Decoders: of a prefill of the shape. ``{"ms", "shape", "clock", "ratio"}``, the ratio to the first checkpoint's.
    """
    from planish import export, gate

    bundles = []
    for number, checkpoint in enumerate(checkpoints):
        bundle = work / f"bundle-{number}"
        export.export(checkpoint, bundle, profile=profile, dialects=("ort",), progress=progress)
        bundles.append(bundle)
    seconds = SECONDS_EACH * len(bundles)
    report = gate.bench(bundles, shapes=[shape], seconds=seconds, threads=1, memory=False, progress=progress)
    judged = report.ratios[0].judged if report.ratios else "cpu"
    times = {row.bundle: row for row in report.measurements if row.phase in ("inference", "prefill")}
    milliseconds = [1000 * (row.cpu if judged == "cpu" else row.p50) for row in (times[b.name] for b in bundles)]
    words = f"{shape[0]}x{shape[1]}"
    return [
        {"ms": round(ms, 4), "shape": words, "clock": judged, "ratio": round(ms / milliseconds[0], 4)}
        for ms in milliseconds
    ]
