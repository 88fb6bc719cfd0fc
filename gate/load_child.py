"""The process in which LoadGen drives a bundle: LoadGen ends the process it is in when it is unhappy, and cannot be
stopped from inside.

LoadGen puts requests into a queue; one worker takes what waits, in batches, and tells LoadGen of each answer. A text
becomes an answer as a caller would have it: tokenizing and reading the model's output are timed.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish.errors import PlanishError
from planish.gate.load_plan import LoadPlan
from planish.gate.load_report import read_log
from planish.gate.outputs import first_line, mask_token, masked

if TYPE_CHECKING:
    from planish.runtime.model import Model

__all__ = ["Served", "child"]

Request = Sequence[str]
"""A text, or a question and its context."""

WARM_UP_SECONDS = 0.5
HINT = 0.5  # LoadGen makes its queries beforehand, and must not run out of them: as if all were twice as fast
OFFLINE = 1.15  # one query with all samples, which must last long enough
RUNS = 4  # at most, each counted from how long the last one took
AGAIN = 1.75  # a repeated run is meant to last so much longer than it must: a busy machine may be faster still


def child() -> None:
    """The process: JSON on stdin says what to do; the last line of stdout is JSON, too."""
    given = json.load(sys.stdin)
    try:
        print(json.dumps(serve(given)), flush=True)
    except BaseException as error:
        tell(error)
        raise SystemExit(1) from None


def tell(error: BaseException) -> None:
    """The error as the last line of stdout."""
    words = [error.expected, error.got, error.fix] if isinstance(error, PlanishError) else [first_line(error)]
    print(json.dumps({"error": type(error).__name__, "words": words}), flush=True)


def serve(given: dict[str, Any]) -> dict[str, Any]:
    """Open the bundle, warm it up, let LoadGen run; returns what LoadGen does not know."""
    from planish.runtime.loader import load

    plan = LoadPlan(**given["plan"])
    with load(given["bundle"], given["device"], threads=given["threads"]) as model:
        served = Served(model, given["requests"], plan)
        ask(served, plan, given["logs"])
        return {"device": model.device, "engine_id": model.engine_id, "samples": served.answered}


def ask(served: Served, plan: LoadPlan, logs: str) -> None:
    """Runs of LoadGen until one lasts as long as it should; LoadGen counts the requests beforehand, from a guess."""
    alone, batch = served.warm_up()
    for _ in range(RUNS):
        drive(served, plan, alone, batch, logs)
        faster = served.seconds / plan.seconds / AGAIN
        log = read_log((Path(logs) / "mlperf_log_detail.txt").read_text(encoding="utf-8").splitlines())
        if log.get("result_min_duration_met") is not False:
            return
        alone, batch = alone * faster, batch * faster


def drive(served: Served, plan: LoadPlan, alone: float, batch: float, logs: str) -> None:
    """One run of LoadGen; ``alone`` and ``batch``: seconds for a request by itself and for each of a full batch."""
    import mlperf_loadgen as lg

    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, plan.scenario)
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = round(1000 * plan.seconds)
    settings.min_query_count = 1
    settings.single_stream_expected_latency_ns = max(1, round(HINT * 1e9 * alone))
    settings.multi_stream_samples_per_query = plan.samples_per_query
    settings.multi_stream_expected_latency_ns = max(1, round(HINT * 1e9 * batch * plan.samples_per_query))
    settings.offline_expected_qps = OFFLINE / batch
    settings.use_token_latencies = served.decoder
    if plan.scenario == "Server":
        settings.server_target_qps = plan.target_qps
        settings.server_target_latency_ns = settings.ttft_latency = round(1e9 * (plan.target_seconds or 0))
        settings.tpot_latency = round(1e9 * (plan.target_token_seconds or 0))
    for name in ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed"):
        setattr(settings, name, plan.seed + 1)
    log = lg.LogSettings()
    log.enable_trace = False
    log.log_output.outdir = logs
    served.answered, served.seconds = 0, 0.0
    worker = threading.Thread(target=served.work, args=(lg,), daemon=True)
    worker.start()
    sut = lg.ConstructSUT(served.waiting.put, lambda: None)
    count = len(served.requests)
    library = lg.ConstructQSL(count, count, lambda indices: None, lambda indices: None)
    try:
        lg.StartTestWithLogSettings(sut, library, settings, log)
    finally:
        served.waiting.put(None)
        worker.join()
        lg.DestroyQSL(library)
        lg.DestroySUT(sut)


class Served:
    """An open bundle and the requests it is asked."""

    def __init__(self, model: Model, requests: Sequence[Request], plan: LoadPlan) -> None:
        self.decoder = model.manifest.generation is not None
        self.waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.answered, self.seconds = 0, 0.0  # seconds: from the first request to the last answer
        self._model, self._plan = model, plan
        mask = mask_token(model) if model.manifest.task == "fill-mask" else ""
        self.requests = [(masked(text, mask, n), *rest) if mask else (text, *rest) for n, (text, *rest) in
                         enumerate(requests)]  # fmt: skip
        self._lengths = [sum(map(len, request)) for request in self.requests]

    def warm_up(self) -> tuple[float, float]:
        """Seconds for a request by itself, and for each of a full batch; the fastest seen in about a second."""
        size = max(self._plan.batch_size, self._plan.samples_per_query)
        batch = [self.requests[n % len(self.requests)] for n in range(size)]
        return fastest(lambda: self._ask(batch[:1])), fastest(lambda: self._ask(batch)) / size

    def work(self, lg: Any) -> None:
        """Answer what LoadGen asks until it is done; what goes wrong ends the process, with its reason told."""
        try:
            self._work(lg)
        except BaseException as error:
            tell(error)
            sys.stdout.flush()
            os._exit(1)  # LoadGen would wait for ever

    def _work(self, lg: Any) -> None:
        backlog: deque[Any] = deque()
        start = 0.0
        while True:
            while not backlog or not self.waiting.empty():
                got = self.waiting.get()
                if got is None:
                    return
                start = start or time.perf_counter()
                backlog.extend(self._arranged(got))
            batch = [backlog.popleft() for _ in range(min(len(backlog), self._plan.batch_size))]
            self._answer(lg, batch)
            self.seconds = time.perf_counter() - start

    def _answer(self, lg: Any, batch: Sequence[Any]) -> None:
        asked = [self.requests[sample.index] for sample in batch]
        counts = self._ask(asked, lambda row: first_token(lg, batch[row].id))
        self.answered += len(batch)
        ids = [sample.id for sample in batch]
        told = [lg.QuerySampleResponse(identity, 0, 0, count) for identity, count in zip(ids, counts, strict=True)]
        lg.QuerySamplesComplete(told)

    def _arranged(self, samples: Sequence[Any]) -> Sequence[Any]:
        """More than fill a batch go longest first, so that little of a batch is padding."""
        if len(samples) <= self._plan.batch_size:
            return samples
        return sorted(samples, key=lambda sample: -self._lengths[sample.index])

    def _ask(self, asked: Sequence[Request], first: Callable[[int], None] | None = None) -> list[int]:
        """Answer the requests in one batch; tokens written for each (encoders: 0)."""
        model, texts, size = self._model, [request[0] for request in asked], len(asked)
        task = model.manifest.task
        if task == "text-generation":
            return self._generate(texts, first)
        if task == "question-answering":
            model.answer(texts, [request[1] for request in asked], batch_size=size)
        elif task == "feature-extraction":
            model.embed(texts, batch_size=size)
        elif task == "text-classification":
            model.classify(texts, batch_size=size)
        elif task == "token-classification":
            model.tag(texts, batch_size=size)
        else:
            model.fill(texts, batch_size=size)
        return [0] * size

    def _generate(self, prompts: list[str], first: Callable[[int], None] | None) -> list[int]:
        seen: set[int] = set()
        stream = self._model.generate(prompts, max_new_tokens=self._plan.new_tokens, stream=True)
        for piece in stream:
            if first is not None and piece.index not in seen:
                seen.add(piece.index)
                first(piece.index)
        return [max(1, len(found.token_ids)) for found in stream.result]


def first_token(lg: Any, identity: int) -> None:
    lg.FirstTokenComplete([lg.QuerySampleResponse(identity, 0, 0)])


def fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest of some calls, at least one, after one that is not timed."""
    run()
    times: list[float] = []
    end = time.perf_counter() + WARM_UP_SECONDS
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return max(min(times), 1e-6)
