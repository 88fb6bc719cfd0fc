"""Peak memory of a generation in a fresh process, step by step: import, load, first answer, long prompt.

    python benchmarks/generate_rss.py BUNDLE [--prompt-tokens 512] [--new-tokens 64] [--batch 1] [--limit-mb 280]

Each number is the peak resident set (VmHWM of /proc/self/status) of a new process that did no more than the step named,
so no step is charged with another's garbage. Exits 1 if the last one is above ``--limit-mb``. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

STEPS = ("python", "import", "load", "answer", "generate")
TEXT = "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse. "


def peak_mb() -> dict[str, float]:
    """Peak and present memory in MB (10^6 bytes); file pages can be dropped by the kernel, anonymous ones cannot."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    fields = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmHWM", "RssAnon", "RssFile"))}
    return {name: round(int(kib) * 1024 / 1e6, 1) for name, kib in fields.items()}


def child(arguments: argparse.Namespace) -> None:
    """Do everything up to the step and print the peak."""
    done = STEPS.index(arguments.step)
    if done >= STEPS.index("import"):
        from planish import runtime
    if done >= STEPS.index("load"):
        model = runtime.load(arguments.bundle, threads=arguments.threads)
    if done == STEPS.index("answer"):
        model.generate("The capital of France is", max_new_tokens=8)
    if done == STEPS.index("generate"):
        prompt = (TEXT * (arguments.prompt_tokens // 16 + 1)).strip()
        assert model._text is not None
        prompts = [model._text.encode([prompt])[0].ids[: arguments.prompt_tokens]] * arguments.batch
        results = model.generate(prompts, max_new_tokens=arguments.new_tokens)
        assert all(result.prompt_tokens == arguments.prompt_tokens for result in results)
    print(json.dumps(peak_mb()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit-mb", type=float, default=280.0)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        child(arguments)
        return 0
    import numpy
    import onnxruntime

    print(f"python {platform.python_version()}, onnxruntime {onnxruntime.__version__}, numpy {numpy.__version__}")
    print(f"{platform.machine()}, {os.cpu_count()} processors, {arguments.threads} threads")
    print(f"{arguments.batch} x {arguments.prompt_tokens} prompt tokens, {arguments.new_tokens} new ones each\n")
    last = 0.0
    for step in STEPS:
        command = [sys.executable, __file__, *sys.argv[1:], "--step", step]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            return done.returncode
        peak = json.loads(done.stdout.splitlines()[-1])
        last = peak["VmHWM"]
        print(f"{step:10} peak {last:7.1f} MB   (now: anonymous {peak['RssAnon']:6.1f}, files {peak['RssFile']:6.1f})")
    return int(last > arguments.limit_mb)


if __name__ == "__main__":
    raise SystemExit(main())
