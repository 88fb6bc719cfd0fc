"""selftest(): does the gate work here? Its own rules, on this machine, with this bundle, against what it promises.

- **Latency, measured**: the bundle against itself (A/A), and against itself with 10 % more work really done, in rounds
  like the gate's own: `planish.gate.latency.compare`, sessions opened anew for every sitting. The absolute floor is
  left out: it forgives small differences by intent. Then the sittings of the A/A rounds, `planish.gate.replays`.
- **Accuracy**: the bundle's own answers with changes planted, `planish.gate.planted_answers`.

What counts as broken is in `planish.gate.trials`. A machine so busy that most rounds stay open is no proof of anything.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from planish.gate.checks import Verdict
from planish.gate.clock import Clock, ProcessClock, environment, judged_on
from planish.gate.data import Dataset, plain_texts
from planish.gate.drift import Watch
from planish.gate.embeddings import each_text
from planish.gate.gpu_state import card_of
from planish.gate.latency import SETTLED, Sitting, compare
from planish.gate.limits import Limits, check_seconds
from planish.gate.outputs import collect
from planish.gate.planted import planted_sitting
from planish.gate.planted_answers import (
    SAMPLES,
    Plant,
    answers_of,
    judge_cosines,
    judge_flips,
    judge_windows,
    perplexity_of,
)
from planish.gate.replays import replays
from planish.gate.report import table
from planish.gate.slowdown import FIRST_LOOK, Comparison, Plan
from planish.gate.trials import Promise, Trials
from planish.gate.verdict import dataset_for
from planish.gate.workloads import GATE_SHAPES, PHASES, shapes_for
from planish.runtime.loader import load

if TYPE_CHECKING:
    from planish.runtime.model import Model

__all__ = ["SelftestReport", "accuracy_trials", "latency_trials", "selftest"]

Progress = Callable[[str, int, int], None]
Finding = Literal["works", "broken", "undecided"]

PLANT = 0.1
MOST_ROUNDS = 12  # of each kind
ROUNDS_AIMED_AT = 16  # of both kinds together
SITTINGS = 12  # a round has time for so many, if there is time for all rounds; nine at least
TOKENS = 1_536  # 24 windows of 64
PROMPT = 16  # most of a decoder's prompt: it is not timed, and steps are as dear after a short one
HARMLESS = 20  # of 1,000 answers; INT8 changes 13 (a scale a channel) to 32 (a scale a tensor)
LOST = 10  # of 1,000 answers: one point
FEW_TRIALS, MANY_TRIALS = 200, 1000
FALSE_ALARMS = Promise(Verdict.REGRESS, "at most", 0.025)
POWER = Promise(Verdict.REGRESS, "at least", 0.9)
SLIPS = Promise(Verdict.PASS, "at most", 0.025)


@dataclass(frozen=True)
class SelftestReport:
    """The result of `selftest`.

    Attributes:
        trials: every kind of trial, with its promise and what was counted.
        open_question: why latency could not be tried, or nothing.
        environment: ``{"before": {...}, "after": {...}}``.
    """

    bundle: str
    task: str
    trials: tuple[Trials, ...]
    environment: Mapping[str, Any]
    seed: int
    seconds: float
    open_question: str = ""

    @property
    def finding(self) -> Finding:
        """Broken if one promise is; else undecided if the machine left a question open; else it works."""
        if any(one.broken for one in self.trials):
            return "broken"
        return "undecided" if self.open_question or any(one.undecided for one in self.trials) else "works"

    @property
    def exit_code(self) -> int:
        """0 the gate works here, 1 it does not, 3 the machine is too noisy, or the time too short, to say."""
        return {"works": 0, "broken": 1, "undecided": 3}[self.finding]

    @property
    def reasons(self) -> list[str]:
        """The trials that decided it."""
        if self.finding == "broken":
            return [one.reason for one in self.trials if one.broken]
        open_trials = [one.reason for one in self.trials if one.undecided]
        return [f"{reason}: give more --seconds, or a quieter machine" for reason in open_trials] + (
            [self.open_question] if self.open_question else []
        )

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        return {
            "schema": 1,
            "finding": self.finding,
            "exit_code": self.exit_code,
            "reasons": self.reasons,
            "bundle": self.bundle,
            "task": self.task,
            "trials": [one.to_json() for one in self.trials],
            "environment": dict(self.environment),
            "seed": self.seed,
            "seconds": round(self.seconds, 3),
        }

    def to_markdown(self) -> str:
        """The finding, what decided it, and a table of all trials."""
        head = f"# planish gate selftest: {WORDS[self.finding]}\n\n`{self.bundle}`, {self.task}"
        before, after = self.environment["before"], self.environment["after"]
        words = [f"{key} {before[key]}" for key in ("cpu", "threads", "onnxruntime", "governor") if before.get(key)]
        load_words = f"load {before.get('load')} before, {after.get('load')} after"
        foot = f"Seed {self.seed}, {self.seconds:.0f} s, {', '.join([*words, load_words])}."
        parts = [head, "\n".join(f"- {reason}" for reason in self.reasons), table(HEAD, map(cells, self.trials)), foot]
        return "\n\n".join(part for part in parts if part) + "\n"


WORDS = {"works": "the gate works here", "broken": "THE GATE IS BROKEN HERE", "undecided": "this machine cannot say"}
HEAD = (
    "trials", "n", "regress", "inconclusive", "pass", "power or false alarms, 95 %", "promised", "detectable",
)  # fmt: skip


def cells(one: Trials) -> list[str]:
    share = one.regress
    kind = "power" if one.planted else "false alarms"
    counts = [str(one.count(verdict)) for verdict in (Verdict.REGRESS, Verdict.INCONCLUSIVE, Verdict.PASS)]
    found = f"{kind} {100 * share.estimate:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})"
    promised = f"{one.promise}: {'BROKEN' if one.broken else 'kept'}" if one.promise else ""
    detectable = f"+{100 * (one.detectable - 1):.1f} %" if one.detectable is not None else ""
    return [one.name, str(len(one.verdicts)), *counts, found, promised, detectable]


def selftest(
    bundle: str | Path,
    *,
    data: str | Path | Dataset | None = None,
    latency: bool = True,
    seconds: float = 240.0,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    clock: Clock | None = None,
    progress: Progress | None = None,
) -> SelftestReport:
    """Try the gate on one bundle, with its default limits.

    Args:
        data: an evaluation file, with labels or without, of which 1,000 random lines are taken (decoders: the first
            1,536 tokens of them); None: text that ships with planish.
        seconds: for everything together; the bundle's answers come first, latency has what they leave.
        threads: as `planish.gate.gate` has it.
        clock: what to measure with; tests put their own.
        progress: called with stage, done, total.

    Raises:
        InputError: ``seconds`` that are not above 0.
        DataError: a bad line in the data.
        BundleError: the bundle is damaged.
        InconclusiveError: fewer than 20 samples with an answer.
    """
    begun, limits, rng = time.perf_counter(), Limits(), np.random.default_rng(seed)
    check_seconds(seconds)
    with load(bundle, device, threads=threads) as model:
        samples = at_most(SAMPLES, dataset_for(model, data, None), rng)
        found = accuracy_trials(model, samples, limits, rng, progress)
        judged = judged_on([model])
        card = None if judged == "cpu" else card_of(device, model.device)
        shapes = shapes_for((model,), None, GATE_SHAPES)
        shape, together = shapes[0], len(shapes) * (1 if model.manifest.generation is None else len(PHASES))
        length = min(shape.length, PROMPT) if model.manifest.generation is not None else shape.length
        task, vocabulary = model.manifest.task, model.manifest.vocab_size
    timed_threads = 1 if threads is None and judged == "cpu" else threads
    before, question = {**environment(), "threads": timed_threads, "judged": judged}, ""
    if latency:
        timer = clock or ProcessClock()
        ids = rng.integers(0, vocabulary, size=(shape.batch, length), dtype=np.int64)
        opened = {"device": device, "threads": timed_threads, "session_options": SETTLED}
        left = max(seconds - (time.perf_counter() - begun), 1e-9)
        plan = Plan(limits.latency_limit, 0.0, judged, left, seed=seed, among=together)

        def sitting(plant: float) -> Sitting:
            return planted_sitting(bundle, ids, plant, timer, opened)

        timed, question = latency_trials(sitting, plan, timer, rng, progress, lambda: Watch(card))
        found = timed + found
    return SelftestReport(
        bundle=Path(bundle).resolve().name,
        task=task,
        trials=tuple(found),
        environment={"before": before, "after": environment()},
        seed=seed,
        seconds=time.perf_counter() - begun,
        open_question=question,
    )


def at_most(count: int, data: Dataset, rng: np.random.Generator) -> Dataset:
    """The data, or so many of its samples, drawn at random and in their order."""
    if len(data.samples) <= count:
        return data
    drawn = np.sort(rng.choice(len(data.samples), size=count, replace=False))
    return replace(data, samples=tuple(data.samples[index] for index in drawn))


def latency_trials(
    sitting: Callable[[float], Sitting],
    plan: Plan,
    clock: Clock,
    rng: np.random.Generator,
    progress: Progress | None = None,
    watch: Callable[[], Watch] | None = None,
) -> tuple[list[Trials], str]:
    """Rounds in turn without and with a plant until the time is up, and the replays; and why there are none.

    Args:
        sitting: opens both sides anew, the candidate with so much more work.
        plan: its ``seconds`` are for all rounds together.
        watch: makes what looks at the machine during a round.
    """
    end, begun = clock.wall() + plan.seconds, clock.wall()
    compare(sitting(0.0), replace(plan, seconds=1e-9, max_pairs=1), clock=clock)
    one = clock.wall() - begun
    needed, left = 2 * FIRST_LOOK * one, end - clock.wall()
    if needed > left:
        words = f"{plan.seconds:.0f} s were left for latency, and a sitting takes {one:.1f} s"
        return [], f"{words}: give {math.ceil(2 * needed)} more --seconds, or a quieter machine"
    least = 2 if 2 * needed <= left else 1  # a slow bundle has one round of each kind
    each = max(left / ROUNDS_AIMED_AT, min(left / (2 * least), SITTINGS * one))
    rounds: dict[float, list[Comparison]] = {0.0: [], PLANT: []}
    longest = 0.0
    for number in range(MOST_ROUNDS):
        begun = clock.wall()
        for plant, done in rounds.items():
            seed = plan.seed + 2 * number + (plant > 0)
            looks = watch() if watch else None
            done += compare(sitting(plant), replace(plan, seconds=each, seed=seed), clock=clock, watch=looks)
        if progress:
            progress("latency rounds", number + 1, MOST_ROUNDS)
        longest = max(longest, clock.wall() - begun)
        if number + 1 >= least and clock.wall() + longest > end:
            break
    measured = [
        round_trials("A/A rounds", rounds[0.0], FALSE_ALARMS, planted=False),
        round_trials(f"+{100 * PLANT:g} % work, rounds", rounds[PLANT], SLIPS, planted=True),
    ]
    again = replays(rounds[0.0], plan, rng)
    return measured + again, "" if again else f"fewer than {FIRST_LOOK} sittings were held: give more --seconds"


def round_trials(name: str, rounds: list[Comparison], promise: Promise, *, planted: bool) -> Trials:
    detectable = float(np.median([one.detectable for one in rounds]))
    return Trials(name, planted, [one.verdict for one in rounds], promise, measured=True, detectable=detectable)


def accuracy_trials(
    model: Model, data: Dataset, limits: Limits, rng: np.random.Generator, progress: Progress | None
) -> list[Trials]:
    """The task's own rule on the bundle's own outputs, without and with a loss planted."""
    if model.manifest.task == "text-generation":
        found = perplexity_of(model, plain_texts(data), TOKENS, progress)
        ratios = (1.0, (limits.max_perplexity_ratio or 1.0) ** 2)
        return graded("perplexity x {:.3f}", ratios, lambda ratio: judge_windows(found, ratio, limits, rng))
    said = collect(model, data, "bundle", progress)
    if model.manifest.task == "feature-extraction":
        texts_said, gap = each_text(data, said), 1 - (limits.min_cosine_mean or 1.0)
        gaps = (gap / 2, 2 * gap)
        return graded("cosine 1 - {:g}", gaps, lambda less: judge_cosines(texts_said, less, limits, rng))
    answers = answers_of(said, data, rng)
    return flip_trials(lambda plant: judge_flips(answers, plant, limits, rng))


def graded(name: str, levels: tuple[float, float], judge: Callable[[float], Verdict]) -> list[Trials]:
    """A harmless level and one that must be found."""
    kinds = zip(levels, (FALSE_ALARMS, POWER), (False, True), strict=True)
    return [
        Trials(name.format(level), planted, [judge(level) for _ in range(FEW_TRIALS // 4)], promise)
        for level, promise, planted in kinds
    ]


def flip_trials(judge: Callable[[Plant], Verdict]) -> list[Trials]:
    """Hits and misses: equal but for harmless changes; a point lost and nothing else; a point lost among such changes.

    Of the last nothing is promised: 20 changes by a coin scatter by 0.45 points themselves, and McNemar's test finds a
    point among them in 4 trials of 10 (`benchmarks/gate_accuracy.py`).
    """
    kinds = (
        (f"{HARMLESS} of 1,000 answers changed either way", Plant(HARMLESS), MANY_TRIALS, FALSE_ALARMS),
        (f"{LOST} of 1,000 answers lost", Plant(lost=LOST), FEW_TRIALS, POWER),
        (f"{LOST} lost, and {HARMLESS} changed either way", Plant(HARMLESS, LOST), FEW_TRIALS, None),
    )
    return [
        Trials(name, plant.lost > 0, [judge(plant) for _ in range(trials)], promise)
        for name, plant, trials, promise in kinds
    ]
