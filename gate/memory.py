"""Peak memory of one bundle: a fresh process loads it, runs one inference, and says its high-water mark.

A peak cannot be taken back, so measuring it in a process that has held anything else would measure that too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from planish.errors import InconclusiveError

__all__ = ["peak_memory"]

LENGTH = 128
LIMIT_SECONDS = 300


def peak_memory(bundle: str | Path, *, threads: int | None = None, device: str = "auto") -> dict[str, Any]:
    """``{"peak_rss_bytes": ..}`` of a process that loads the bundle and answers once.

    An encoder runs 1x128 tokens, a decoder a prompt of 128 and 16 steps.

    Raises:
        InconclusiveError: the process failed.
    """
    path = Path(bundle).resolve()
    code = "from planish.gate.memory import child; child()"
    command = [sys.executable, "-c", code, str(path), str(threads or 0), device]
    try:
        # In the bundle's folder: Python looks for modules where it is started, and a bundle holds none.
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False, cwd=path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InconclusiveError("a process to measure memory in", str(error), "run it on a quieter machine") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise InconclusiveError("a process that runs the bundle once", last[:200], f"try: planish run {bundle}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def child() -> None:
    """The measured process: bundle, threads and device are its arguments, JSON its last line."""
    from planish.gate.clock import ProcessClock
    from planish.gate.workloads import Shape, longest_input, probes
    from planish.runtime.loader import load

    with load(sys.argv[1], sys.argv[3], threads=int(sys.argv[2]) or None) as model:
        shape = Shape(1, min(LENGTH, longest_input(model)))
        probes([model], shape, ProcessClock(), 0, inferences=1)[0](ProcessClock())
    print(json.dumps({"peak_rss_bytes": high_water_mark()}))


def high_water_mark() -> int:
    """Most resident memory this process has had, in bytes."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
