"""What a recipe makes of the sentiment MiniLM, over several seeds: bytes, latency and accuracy against its parent.

    python benchmarks/encoder_small.py PARENT [PARENT...] --data DIRECTORY --recipe encoder-small --seeds 3 -o RESULTS

PARENT is a text classifier, one for all seeds or one for each (fine-tuned with seeds of its own, since what one parent
gets right by luck no student keeps); DIRECTORY holds ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl`` with its
labels. For each seed the whole recipe runs, the bundle is exported, and the test sentences are classified by the
runtime. Then all bundles and the first parent's float32 bundle take turns at the shape. Results go into
RESULTS/results.json as they come; a seed that is there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import planish.compress
import planish.export
import planish.gate
from planish.gate.clock import environment
from planish.gate.data import load_data
from planish.runtime import load


def accuracy(bundle: Path, data: Path) -> float:
    """Share of the sentences whose first label is the true one, as the runtime answers."""
    with load(bundle) as model:
        labels = list(model.manifest.labels or ())
        samples = load_data(data, "text-classification", labels=labels).samples
        said = model.classify([sample.text for sample in samples])
        hits = [labels.index(answer.label) == sample.label[0] for answer, sample in zip(said, samples, strict=True)]
    return sum(hits) / len(hits)


def bundle_bytes(bundle: Path) -> int:
    return sum(file.stat().st_size for file in (bundle / "onnx").rglob("*") if file.is_file())


def run(parent: Path, data: Path, recipe: str, seed: int, folder: Path) -> dict[str, Any]:
    """One seed: CPU seconds of the whole recipe, bytes and accuracy of what it made."""
    checkpoint, bundle = folder / f"checkpoint-{seed}", folder / f"bundle-{seed}"
    before, start = cpu(), time.perf_counter()
    made = planish.compress.compress(
        parent, recipe, checkpoint, train=data / "train.jsonl", validation=data / "validation.jsonl", seed=seed
    )
    spent = {"cpu_seconds": round(cpu() - before, 1), "wall_seconds": round(time.perf_counter() - start, 1)}
    planish.export.export(checkpoint, bundle, dialects=("ort",))
    last = made.receipts[-1]["after"]
    origin = folder / f"parent-{seed}"
    if not origin.is_dir():
        planish.export.export(parent, origin, dialects=("ort",))
    return {
        "seed": seed,
        **spent,
        "accuracy": accuracy(bundle, data / "test.jsonl"),
        "parent_accuracy": accuracy(origin, data / "test.jsonl"),
        "onnx_bytes": bundle_bytes(bundle),
        "bytes": last["bytes"],
        "parameters": last["parameters"],
        "passes": [
            {"pass": one["pass"], "seconds": one["seconds"], **one["after"].get("quality", {})} for one in made.receipts
        ],
    }


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parents", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipe", default="encoder-small")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shape", type=int, nargs=2, default=(8, 64))
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--only", type=int, help="run this seed alone, and measure no latency")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    given.output.mkdir(exist_ok=True)
    if len(given.parents) not in (1, given.seeds):
        parser.error(f"{len(given.parents)} parents for {given.seeds} seeds: give one, or one for each")
    seeds = range(given.seeds) if given.only is None else [given.only]
    results: list[dict[str, Any]] = []
    for seed in seeds:
        file = given.output / f"seed-{seed}.json"
        if not file.is_file():
            parent = given.parents[seed % len(given.parents)]
            found = run(parent, given.data, given.recipe, seed, given.output)
            file.write_text(json.dumps(found, indent=1))
        results.append(json.loads(file.read_text()))
        print(json.dumps({key: value for key, value in results[-1].items() if key != "passes"}), flush=True)
    if given.only is not None:
        return
    first = given.output / "parent-0"
    bundles = [first, *(given.output / f"bundle-{result['seed']}" for result in results)]
    report = planish.gate.bench(bundles, shapes=[tuple(given.shape)], seconds=given.seconds, threads=1, memory=False)
    whole = bundle_bytes(first)
    losses = [100 * (result["parent_accuracy"] - result["accuracy"]) for result in results]
    summary = {
        "parent_onnx_bytes": whole,
        "share_of_bytes": [round(result["onnx_bytes"] / whole, 4) for result in results],
        "speed": [
            {"cpu": round(1 / ratio.median_ratio.estimate, 3), "wall": round(1 / ratio.wall_ratio.estimate, 3)}
            for ratio in report.ratios
        ],
        "points_lost": [round(loss, 3) for loss in losses],
        "points_lost_mean": round(statistics.mean(losses), 3),
        "points_lost_spread": round(statistics.stdev(losses), 3) if len(losses) > 1 else None,
        "environment": environment(),
    }
    (given.output / "results.json").write_text(json.dumps({"seeds": results, **summary}, indent=1))
    print(report.to_markdown())
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
