"""loadgen(): MLPerf's LoadGen asks a bundle, as it comes in one of its four scenarios.

What `bench` measures are tensors of one shape; here texts come as they come to a service, and the figure is what a
caller waits, tokenizing and reading the output included. It is LoadGen that makes the requests, takes the times and
says whether the run is valid (`planish[loadgen]`), in a process of its own. Nothing is interleaved: two runs compare
two times of day, which is what `planish.gate.gate` is for.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import planish.errors
from planish.errors import HostError, InconclusiveError, PlanishError
from planish.gate.clock import environment
from planish.gate.data import load_data, unlabelled
from planish.gate.load_plan import LoadPlan
from planish.gate.load_report import LoadReport, rate_of, read_log, reasons_of, times_of, token_rate_of
from planish.gate.verdict import default_texts
from planish.outputs import check_output
from planish.runtime.manifest import read_manifest

if TYPE_CHECKING:
    from planish.gate.data import Dataset
    from planish.runtime.manifest import Manifest

__all__ = ["loadgen"]

Progress = Callable[[str, int, int], None]

CHILD = "from planish.gate.load_child import child; child()"
OPENING = 120.0  # seconds a bundle may take to open and to warm up
PATIENCE = 10.0  # so many times the seconds asked for, for answers that are late
PROMPT = 200  # characters of a prompt, where a novel is given instead of prompts
PROMPTS = 64


def loadgen(
    bundle: str | Path,
    scenario: str,
    *,
    data: str | Path | Dataset | None = None,
    seconds: float = 60.0,
    target_qps: float | None = None,
    target_seconds: float | None = None,
    target_token_seconds: float | None = None,
    samples_per_query: int = 8,
    batch_size: int = 32,
    new_tokens: int = 16,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    logs: str | Path | None = None,
    progress: Progress | None = None,
) -> LoadReport:
    """Let LoadGen ask a bundle in one scenario: SingleStream, MultiStream, Server or Offline.

    Args:
        data: texts to ask, JSONL or .txt, labels not needed; None: text that ships with planish.
        seconds: the least the run takes, else it is repeated with more requests; the rest are those of `LoadPlan`.
        logs: a directory to be made for LoadGen's own logs; None keeps none.
        progress: called each second with stage, seconds passed, seconds asked for.

    Raises:
        InputError: an unknown scenario; a setting that is missing, idle or impossible.
        DataError: a bad line in the data.
        BundleError: a bundle is damaged.
        HostError: LoadGen is not installed.
        InconclusiveError: the process failed, or took ten times as long as it should.
    """
    manifest = read_manifest(bundle)
    plan = LoadPlan(
        scenario, seconds, target_qps, target_seconds, target_token_seconds, samples_per_query, batch_size, new_tokens,
        seed,
    )  # fmt: skip
    plan.check(decoder=manifest.generation is not None)
    kept = None if logs is None else check_output(logs)
    samples, requests = requests_for(manifest, data)
    version = loadgen_version()
    before = {**environment(), "threads": threads}
    with tempfile.TemporaryDirectory(prefix="planish-loadgen-") as folder:
        order = {"bundle": str(Path(bundle).resolve()), "device": device, "threads": threads, "logs": folder}
        served = run(order | {"plan": plan.to_json(), "requests": requests}, plan, progress)
        log = read_log((Path(folder) / "mlperf_log_detail.txt").read_text(encoding="utf-8").splitlines())
        if kept is not None:
            shutil.copytree(folder, kept, dirs_exist_ok=True)
    size = sum(entry.size for entry in manifest.files.values())
    name = Path(bundle).resolve().name
    facts = {"name": name, "task": manifest.task, "digest": manifest.digest, "bytes": size}
    data_facts = {"name": samples.name, "requests": len(requests)}
    return LoadReport(
        bundle=facts | {"device": served["device"], "engine_id": served["engine_id"]},
        scenario=scenario,
        valid=log["result_validity"] == "VALID",
        missed=log.get("result_perf_constraints_met") is False,
        reasons=tuple(reasons_of(log, plan)),
        queries=log["result_query_count"],
        samples=served["samples"],
        samples_per_second=rate_of(log, plan),
        tokens_per_second=token_rate_of(log),
        latency=times_of(log, "latency"),
        query=times_of(log, "query"),
        first_token=times_of(log, "first_token"),
        per_token=times_of(log, "per_token"),
        settings=plan.to_json() | {"loadgen": version, "data": data_facts},
        environment={"before": before, "after": environment()},
    )


def loadgen_version() -> str:
    """Raises HostError where LoadGen is not installed."""
    if find_spec("mlperf_loadgen") is None:
        fix = "type: pip install 'planish[loadgen]' (on ARM it is compiled: have g++ and the Python headers)"
        raise HostError("MLPerf's LoadGen", "no module 'mlperf_loadgen' here", fix)
    try:
        return importlib.metadata.version("mlcommons-loadgen")
    except importlib.metadata.PackageNotFoundError:  # built by hand
        return "unknown"


def requests_for(manifest: Manifest, data: str | Path | Dataset | None) -> tuple[Dataset, list[list[str]]]:
    """The data, and of each sample what is asked: a text, or a question and its context."""
    if data is None:
        texts = default_texts(manifest.task)
        if manifest.task == "text-generation":
            whole = texts[0]
            starts = range(0, len(whole) - PROMPT, max(PROMPT, len(whole) // PROMPTS))
            texts = [whole[start : start + PROMPT].strip() for start in starts]
        samples = unlabelled("built-in text", texts, manifest.task)
    elif isinstance(data, (str, Path)):
        samples = load_data(data, manifest.task, manifest.labels, manifest.problem_type)
    else:
        samples = data
    if manifest.task == "question-answering":
        return samples, [[sample.question, sample.context] for sample in samples.samples]
    return samples, [[text] for sample in samples.samples for text in (sample.text, sample.pair) if text]


def run(order: dict[str, Any], plan: LoadPlan, progress: Progress | None) -> dict[str, Any]:
    """The child's answer. An interrupt, or a time that is up, ends the child, too."""
    command, pipe = [sys.executable, "-c", CHILD], subprocess.PIPE
    # In the bundle's folder: Python looks for modules where it is started, and a bundle holds none.
    with subprocess.Popen(command, text=True, cwd=order["bundle"], stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            given: str | None = json.dumps(order)
            start, total = time.monotonic(), max(1, round(plan.seconds))
            while True:
                try:
                    said, wrong = process.communicate(given, timeout=1.0)
                    break
                except subprocess.TimeoutExpired:
                    given, passed = None, time.monotonic() - start
                if passed > OPENING + PATIENCE * plan.seconds:
                    fix = "ask for fewer --target-qps, or for a smaller --batch-size"
                    raise InconclusiveError(f"answers within {passed:.0f} s", "none yet", fix)
                if progress:
                    progress("LoadGen", min(total, int(passed)), total)
        except BaseException:
            process.kill()
            raise
    return answer_of(said, wrong, process.returncode)


def answer_of(said: str, wrong: str, code: int) -> dict[str, Any]:
    """The last line of the child; its error, if it has one, is raised as what it was."""
    try:
        found: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        found = {"error": "", "words": [(wrong.strip().splitlines() or [f"exit code {code}"])[-1][:200]]}
    if "error" not in found:
        return found
    kind = getattr(planish.errors, found["error"], None)
    if isinstance(kind, type) and issubclass(kind, PlanishError) and len(found["words"]) == 3:
        raise kind(*found["words"])
    raise InconclusiveError("a process that LoadGen asks", found["words"][0], "try: planish run BUNDLE")
