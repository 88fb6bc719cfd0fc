"""How often do the gate's 95 % intervals hold the truth? By simulation, on the kinds of data they are used for.

    python benchmarks/interval_coverage.py [--rounds 2000] [--only "answer F1"]

The cases stand in `tests/interval_cases.py`; each draws a sample from a known population and calls the function the
gate calls. "Too high" counts intervals wholly above the truth, "too low" those wholly below it: a right interval has
2.5 % of each. For a loss or a ratio, too high is what makes a false regress, too low what makes a false pass.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.interval_cases import cases, coverage  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--only", default="", help="cases whose name holds these words")
    options = parser.parse_args()
    error = 100 * math.sqrt(0.95 * 0.05 / options.rounds)
    print(
        f"Python {platform.python_version()}, numpy {np.__version__}, {platform.machine()}, {os.cpu_count()} processors"
    )
    by_chance = f"a true 95 % is found within +-{2 * error:.1f} of 95 nineteen times of twenty"
    print(f"{options.rounds} rounds each, seed 0; {by_chance}\n")
    print(f"{'interval of':22} {'data':33} {'holds %':>8} {'too high':>9} {'too low':>8} {'median width':>13}")
    begun = time.process_time()
    for case in cases():
        if options.only not in case.name:
            continue
        found = coverage(case, options.rounds)
        shares = f"{100 * found.inside:8.1f} {100 * found.above:9.1f} {100 * found.below:8.1f}"
        mark = "" if 0.93 <= found.inside <= 0.97 else "  *"
        print(f"{case.name:22} {case.data:33} {shares} {found.width:13.4g}{mark}", flush=True)
    print(f"\n* not within 95 +- 2\n{time.process_time() - begun:.0f} CPU seconds")


if __name__ == "__main__":
    main()
