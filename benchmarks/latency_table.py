"""How well a latency table predicts: random sub-models of an encoder, predicted and measured.

    python benchmarks/latency_table.py MODEL --recipe int8-dynamic --models 10 --shape 8 64

Sub-models whose blocks each keep a random number of heads and neurons are exported. They and the table's probes take
turns in one sitting after the other (CPU time of one thread), so that what changes on the machine meanwhile is not
taken for an error of the table: on a busy one, two measurements ten minutes apart differed by 12 %.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path

import planish.compress
import planish.export
import planish.gate
from planish import latency
from planish.compress.bench import Bench
from planish.compress.checkpoint import open_checkpoint
from planish.compress.latency_table import LatencyTable
from planish.compress.slicing import cut_blocks, cut_heads, cut_neurons
from planish.compress.write import write_checkpoint
from planish.gate.clock import environment
from planish.sliced import Shape, shapes_of


def sub_model(model: Path, recipe: str, folder: Path, seed: int) -> list[Shape]:
    """Cut at random, quantized and exported as ``folder/bundle``; returns the blocks' shapes."""
    dice = random.Random(seed)
    source = open_checkpoint(model)
    bench = Bench.of(source.load_model())
    full = shapes_of(bench.model)
    cut_blocks(bench, sorted(dice.sample(range(len(full)), dice.randint(len(full) // 2, len(full)))))
    for block, shape in enumerate(shapes_of(bench.model)):
        heads = sorted(dice.sample(range(shape.kv_heads), dice.randint(1, shape.kv_heads)))
        cut_heads(bench, block, heads)
        cut_neurons(bench, block, range(32 * dice.randint(1, shape.ffn // 32)))
    cut = folder / "cut"
    cut.mkdir(parents=True)
    write_checkpoint(bench, source, cut)
    plan = planish.compress.load_recipe(recipe).keeping(latency.QUANTIZERS)
    planish.compress.compress(cut, plan, folder / "quantized")
    planish.export.export(folder / "quantized", folder / "bundle", dialects=("ort",))
    return shapes_of(bench.model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--recipe", default="int8-dynamic")
    parser.add_argument("--models", type=int, default=10)
    parser.add_argument("--shape", type=int, nargs=2, default=(8, 64))
    parser.add_argument("--seconds", type=float, default=120.0)
    given = parser.parse_args()
    shape = (given.shape[0], given.shape[1])
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        probes = latency.prepare(str(given.model), given.recipe, work / "probes")
        shapes = [sub_model(given.model, given.recipe, work / str(seed), seed) for seed in range(given.models)]
        bundles = [work / f"model-{seed}" for seed in range(given.models)]
        for seed, bundle in enumerate(bundles):
            (work / str(seed) / "bundle").rename(bundle)
        everything = [*(work / "probes" / probe.name for probe in probes), *bundles]
        report = planish.gate.bench(everything, shapes=[shape], seconds=given.seconds, threads=1, memory=False)
        took = {row.bundle: 1000 * row.cpu for row in report.measurements}
        facts, _ = latency.read_index(work / "probes")
        about = {"schema": 1, "batch": shape[0], "length": shape[1], "device": {}}
        about |= {key: facts[key] for key in ("profile", "recipe", "hidden")}
        made = about | latency.table_of(probes, [took[probe.name] for probe in probes], int(facts["layers"]))
        latency.write_table(made, work / "table.json")
        print((work / "table.json").read_text())
        table = LatencyTable.load(work / "table.json")
    off = []
    for seed, blocks in enumerate(shapes):
        predicted, measured = table.predict(blocks), took[f"model-{seed}"]
        off.append(predicted / measured - 1)
        sizes = " ".join(f"{block.heads}/{block.ffn}" for block in blocks)
        print(
            f"model {seed}: predicted {predicted:.2f} ms, measured {measured:.2f} ms, {100 * off[-1]:+.1f} %  {sizes}"
        )
    print(f"largest deviation {100 * max(map(abs, off)):.1f} %")
    print(json.dumps(environment()))


if __name__ == "__main__":
    main()
