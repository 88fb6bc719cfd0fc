"""gate(): the candidate against the baseline, on accuracy, agreement, latency and bytes.

What is judged:

- text-classification, token-classification and question-answering **with labels**: the loss of accuracy, entity span
  F1 or answer F1, in points, over all and on the worst slice (`planish.gate.slices`); agreement with the baseline is
  then reported only, unless a limit is given;
- so feature-extraction with scored pairs (Spearman's correlation, `planish.gate.similarity`; no slices) and
  text-generation with references (chrF, `planish.gate.references`);
- the same **without labels**, and fill-mask: agreement; feature-extraction: mean and smallest cosine;
- text-generation without references: perplexity ratio, next-token agreement (and divergence, if limited);
- samples on which the candidate fails: any that the baseline answers is a regress; a baseline that fails on more than
  1 % of the samples is no measure, and the whole is inconclusive;
- latency, by `planish.gate.slowdown`;
- size, peak memory and energy (`planish.gate.budgets`), where they are limited.

The rules stand in `planish.gate.checks`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish.errors import InputError
from planish.gate.agreement import agreement
from planish.gate.budgets import judge_measured_budgets
from planish.gate.checks import (
    Check,
    Verdict,
    judge_budget,
    judge_floor,
    judge_loss,
    judge_ratio_loss,
    overall,
    safe_exp,
)
from planish.gate.clock import Clock, Judged, ProcessClock, environment, judged_on
from planish.gate.data import Dataset, load_data, unlabelled
from planish.gate.drift import Watch
from planish.gate.embeddings import embedding_checks
from planish.gate.gpu_state import card_of
from planish.gate.latency import SETTLED, Sides, Sitting, compare
from planish.gate.likelihood import Likelihood
from planish.gate.limits import AGREEMENT, Limits, check_seconds
from planish.gate.metrics import Measured
from planish.gate.outputs import Failure, Outputs, collect
from planish.gate.paired import estimate, exact_p, log_ratio, paired_loss
from planish.gate.parents import OpenParent, Parent
from planish.gate.pick_baseline import is_recorded
from planish.gate.references import scorers
from planish.gate.report import GateReport, Pair, Side
from planish.gate.sample_lines import said_of_samples, said_of_windows
from planish.gate.scores import scores
from planish.gate.similarity import judge_similarity
from planish.gate.slices import SliceLoss, judge_slices, slice_losses, slices_of
from planish.gate.slowdown import Comparison, Plan, judge_latency
from planish.gate.workloads import GATE_SHAPES, Shape, probes, shapes_for
from planish.runtime.device_time import device_time_counted
from planish.runtime.loader import load

if TYPE_CHECKING:
    from planish.gate.baseline_file import BaselineFile
    from planish.gate.conditions import Conditions
    from planish.runtime.manifest import Manifest
    from planish.runtime.model import Model

__all__ = ["default_texts", "gate", "same_kind"]

Progress = Callable[[str, int, int], None]

DEFAULT_TEXTS = 200
DEFAULT_TOKENS = 12_288  # 24 windows of 512
BASELINE_FAILURES = 0.01


def gate(
    candidate: str | Path,
    baseline: str | Path,
    *,
    data: str | Path | Dataset | None = None,
    texts: str | Path | Sequence[str] | None = None,
    limits: Limits | None = None,
    latency: bool = True,
    seconds: float = 60.0,
    seed: int = 0,
    shapes: Sequence[tuple[int, int]] | None = None,
    device: str = "auto",
    threads: int | None = None,
    across_devices: bool = False,
    memory: bool = False,
    energy: bool = False,
    clock: Clock | None = None,
    progress: Progress | None = None,
) -> GateReport:
    """Compare two bundles in one session, or a bundle with what a baseline file says of another.

    Args:
        baseline: a bundle; or a baseline file, or a directory of them (`planish.gate.against_file`).
        data: an evaluation file (`planish.gate.data`), with labels or without.
        texts: label-free: a .txt file, or the texts. Neither given: text that ships with planish.
        seconds: for latency, all shapes together; up to three times as long on a machine too busy for six sittings.
        shapes: ``(batch, length)`` pairs for latency; default 1x32 and 1x128 (decoders: a prompt of 1x64).
        threads: of the engine; default all cores for the answers, and one where CPU time is judged.
        across_devices: take a baseline file of another device, engine or library, too; the report then says so.
        memory, energy: measure the candidate's peak memory and joules (`planish.gate.budgets`), limited or not.
        clock: what to measure with; tests put their own.
        progress: called with stage, done, total.

    Raises:
        InputError: the baseline has another task, other labels or another vocabulary; two sources of text; ``seconds``
            that are not above 0; a baseline file is none, holds for another device, or was asked other data.
        DataError: a bad line in the data.
        BundleError: a bundle is damaged.
        HostError: the data has references, and a library that scores texts against them is not installed.
    """
    begun = time.perf_counter()
    limits = limits or Limits()
    if data is not None and texts is not None:
        raise InputError("data or texts", "both", "leave one out")
    check_seconds(seconds)
    if is_recorded(baseline):
        from planish.gate.against_file import Options, gate_against_file

        options = Options(limits, latency, seconds, seed, shapes, device, threads, across_devices, clock, progress,
                          memory, energy)  # fmt: skip
        return gate_against_file(candidate, baseline, data=data, texts=texts, options=options)
    if across_devices:
        raise InputError("a baseline file with across_devices", f"no such file: {baseline}", "leave it out")
    with load(candidate, device, threads=threads) as new, load(baseline, device, threads=threads) as old:
        same_kind(new.manifest, old.manifest)
        task = new.manifest.task
        samples = dataset_for(new, data, texts)
        builtin = data is None and texts is None
        session = Session(new, OpenParent(old), samples, limits, seed, progress)
        session.judge_generation(DEFAULT_TOKENS if builtin else None) if task == "text-generation" else session.judge()
        session.judge_bytes()
        judged = judged_on((new, old))
        shapes_timed = shapes_for((new, old), shapes, GATE_SHAPES) if latency else []
        watched = None if judged == "cpu" else card_of(device, new.device)
    session.checks += judge_measured_budgets(
        candidate, limits, memory=memory, energy=energy, shapes=shapes, device=device, threads=threads
    )
    timed_threads, watch = 1 if threads is None and judged == "cpu" else threads, Watch(watched)
    before = {**environment(watch.looks[0]), "threads": timed_threads, "judged": judged}
    if latency:
        clock = clock or ProcessClock()
        opened = {"device": device, "threads": timed_threads, "session_options": SETTLED}
        plan = plan_of(limits, judged, seconds, seed)
        sitting = sittings((candidate, baseline), shapes_timed, clock, seed, opened)
        session.judge_latency(compare(sitting, plan, clock=clock, progress=progress, watch=watch))
        session.after = watch.looks[-1]
    sides = (side_of(candidate, new.manifest, new.dialect), side_of(baseline, old.manifest, old.dialect))
    return report_of(session, sides, before, time.perf_counter() - begun)


def report_of(
    session: Session, sides: tuple[Side, Side], before: dict[str, Any], seconds: float, notes: Sequence[str] = ()
) -> GateReport:
    """What a session found; ``sides`` are candidate and baseline, ``before`` the environment it began in."""
    samples = session.samples
    return GateReport(
        verdict=overall(session.checks),
        task=session.task,
        candidate=sides[0],
        baseline=sides[1],
        checks=tuple(session.checks),
        metrics=tuple(session.metrics),
        latency=tuple(session.latency),
        failures=tuple(session.failures),
        limits=session.limits,
        data={
            "name": samples.name,
            "samples": len(samples.samples),
            "labelled": samples.labelled,
            "duplicates": samples.duplicates,
        },
        environment={"before": before, "after": environment(session.after)},
        seed=session.seed,
        seconds=seconds,
        samples=session.said,
        slices=session.slices,
        receipts=tuple(session.new.manifest.receipts),
        notes=tuple(notes),
    )


class Session:
    """An open candidate, what it is compared with, their samples, and what has been found so far."""

    def __init__(
        self, new: Model, old: Parent, samples: Dataset, limits: Limits, seed: int, progress: Progress | None
    ) -> None:
        self.new, self.old, self.samples, self.limits = new, old, samples, limits
        self.seed, self.progress = seed, progress
        self.task = new.manifest.task
        self.checks: list[Check] = []
        self.metrics: list[Pair] = []
        self.latency: list[Comparison] = []
        self.failures: list[Failure] = []
        self.after: Conditions | None = None
        self.said: tuple[dict[str, Any], ...] = ()
        self.slices: tuple[SliceLoss, ...] = ()

    def judge(self) -> None:
        """Tasks with an answer for each sample."""
        if self.task == "text-generation":
            scorers(self.limits.reference_metric)  # a missing library shows before minutes are spent
        said = collect(self.new, self.samples, "candidate", self.progress)
        before = self.old.answers(self.samples, self.progress)
        self.said = said_of_samples(self.samples, said, before, self.new.manifest.labels or (), self.task)
        self.failures += [*said.failures, *before.failures]
        self.checks.append(failure_check(self.failures, len(self.samples.samples)))
        if self.samples.labelled:
            self.judge_labels(said, before)
        self.judge_agreement(said, before)

    def judge_labels(self, said: Outputs, before: Outputs) -> None:
        """Task metrics; the first one decides, the others are reported."""
        if self.task == "feature-extraction":
            pair, check = judge_similarity(self.samples, said, before, self.limits, self.seed)
            self.metrics.append(pair)
            self.checks.append(check)
            return
        labels, metric = self.new.manifest.labels or (), self.limits.reference_metric
        sides = (scores(self.task, labels, self.samples, one, metric) for one in (said, before))
        for number, (new, old) in enumerate(zip(*sides, strict=True)):
            loss = paired_loss(new, old, seed=self.seed)
            alone = (estimate(side, seed=self.seed) for side in (new, old))
            self.metrics.append(Pair(new.name, new.value, old.value, loss, "points lost", new.n, *alone))
            if number == 0:
                limits, p_worse = self.limits, exact_p(new, old)
                check = judge_loss(new.name, loss, limits.max_loss_points, new.n, limits.rule, p_worse=p_worse)
                self.checks.append(check)
                self.judge_slices(new, old)

    def judge_slices(self, new: Measured, old: Measured) -> None:
        """The metric that decides, on parts of the data; the worst of them is judged."""
        slices = slices_of(self.samples, self.new.manifest.labels or ())
        self.slices = slice_losses(new, old, slices, seed=self.seed)
        worst = judge_slices(new.name, self.slices, self.limits.slice_margin)
        self.checks += [worst] if worst else []

    def judge_agreement(self, said: Outputs, before: Outputs) -> None:
        """Against the parent, without labels; with labels it is judged only if the limit was asked for."""
        limits = self.limits
        if self.task == "feature-extraction":
            self.checks += embedding_checks(self.samples, said, before, limits, self.seed)
            return
        found = agreement(self.task, said, before)
        first, n = estimate(found[0], seed=self.seed), found[0].n
        floor = limits.min_agreement
        if floor is None and not self.samples.labelled:
            floor = AGREEMENT[self.task]
        self.checks.append(judge_floor(found[0].name, first, floor, n, limits.rule))
        for extra in found[1:]:
            unit = "share" if extra.higher_is_better else "logits"
            self.checks.append(judge_budget(extra.name, extra.value, None, unit, n=extra.n))

    def judge_generation(self, max_tokens: int | None) -> None:
        """Perplexity, next-token agreement and divergence on the texts; where there are references, those instead."""
        if self.samples.labelled:
            self.judge()
            return
        texts = [sample.text for sample in self.samples.samples]
        found = self.old.likelihood(self.new, texts, max_tokens, self.progress)
        self.said = said_of_windows(found)
        self.failures += found.failures
        self.checks.append(failure_check(self.failures, found.candidate.n + len(found.failures)))
        if found.candidate.n:
            self.judge_likelihood(found)

    def judge_likelihood(self, found: Likelihood) -> None:
        limits, n = self.limits, found.candidate.n
        ratio = log_ratio(found.candidate, found.baseline, seed=self.seed)
        if limits.max_perplexity_ratio is not None:
            self.checks.append(judge_ratio_loss("perplexity", ratio, limits.max_perplexity_ratio, n, limits.rule))
        new, old = found.candidate.value, found.baseline.value
        alone = (estimate(side, seed=self.seed) for side in (found.candidate, found.baseline))
        self.metrics.append(Pair("perplexity", new, old, ratio.map(safe_exp), "ratio", n, *alone))
        floor = AGREEMENT[self.task] if limits.min_agreement is None else limits.min_agreement
        same = estimate(found.top_1, seed=self.seed)
        self.checks.append(judge_floor("next-token agreement", same, floor, n, limits.rule))
        if found.divergence is not None:
            self.checks.append(judge_budget("KL divergence", found.divergence.value, limits.max_kl, "nats", n=n))

    def judge_bytes(self) -> None:
        size = served_bytes(self.new.manifest, self.new.dialect)
        self.checks.append(judge_budget("size", float(size), self.limits.max_bytes, "bytes"))

    def judge_latency(self, found: Sequence[Comparison]) -> None:
        self.latency += found
        self.checks += [judge_latency(comparison) for comparison in found]


def plan_of(limits: Limits, judged: Judged, seconds: float, seed: int) -> Plan:
    """What is judged, and the wall clock beside it if that is limited; of two limits of the wall clock the smaller."""
    limit, wall = limits.latency_limit, limits.max_wall_ratio
    if judged == "wall" and wall is not None:
        limit, wall = wall if limit is None else min(limit, wall), None
    return Plan(limit, limits.latency_floor_seconds, judged, seconds, seed=seed, wall_limit=wall)


def sittings(
    bundles: tuple[str | Path, str | Path], shapes: Sequence[Shape], clock: Clock, seed: int, options: dict[str, Any]
) -> Sitting:
    """Opens the sides in the order asked for, and gives their probes for every shape."""

    @contextmanager
    def sit(order: tuple[int, ...]) -> Iterator[Sides]:
        with ExitStack() as stack:
            stack.enter_context(device_time_counted())
            opened = {side: stack.enter_context(load(bundles[min(side, 1)], **options)) for side in order}
            models = [opened[side] for side in sorted(opened)]
            yield {str(shape): tuple(probes(models, shape, clock, seed)) for shape in shapes}

    return sit


WHOLE_TEXTS = ("text-classification", "feature-extraction")
"""Tasks with one answer a text."""


def same_kind(candidate: Manifest, baseline: Manifest | BaselineFile) -> None:
    """Refuse a baseline that is no version of the same model.

    Of texts judged as a whole tokens do not matter, so a vocabulary may have been trimmed; else outputs are compared
    token by token.
    """
    for name, fix in (
        ("task", "give a baseline of the same task"),
        ("problem_type", "give a baseline of the same kind of labels"),
        ("labels", "give a baseline with the same labels in the same order"),
        ("vocab_size", "give a baseline with the same tokenizer"),
    ):
        new, old = getattr(candidate, name), getattr(baseline, name)
        if new != old and not (name == "vocab_size" and candidate.task in WHOLE_TEXTS):
            raise InputError(f"a baseline whose {name} is the candidate's, {new!r}", repr(old), fix)


def dataset_for(model: Model, data: str | Path | Dataset | None, texts: str | Path | Sequence[str] | None) -> Dataset:
    """The samples to judge on; the built-in text where none is given."""
    manifest = model.manifest
    if isinstance(data, Dataset):
        return data
    if data is not None:
        return load_data(data, manifest.task, manifest.labels, manifest.problem_type)
    if isinstance(texts, (str, Path)):
        return load_data(texts, manifest.task, manifest.labels, manifest.problem_type)
    if texts is not None:
        return unlabelled("texts", list(texts), manifest.task)
    return unlabelled("built-in text", default_texts(manifest.task), manifest.task)


def default_texts(task: str) -> list[str]:
    """Text that ships with planish (Moby Dick, first chapters): whole for decoders, else 200 sentences."""
    text = resources.files("planish.recipes").joinpath("text-judge.txt").read_text(encoding="utf-8")
    if task == "text-generation":
        return [text]
    sentences = [part.strip() + "." for part in text.replace("\n", " ").split(". ")]
    return [sentence for sentence in sentences if 20 <= len(sentence) <= 300][:DEFAULT_TEXTS]


def failure_check(failures: Sequence[Failure], samples: int) -> Check:
    """A candidate that fails where the baseline answers regresses; a baseline that often fails measures nothing."""
    old = {failure.line for failure in failures if failure.side == "baseline"}
    new = [failure for failure in failures if failure.side == "candidate" and failure.line not in old]
    verdict = Verdict.PASS
    reason = f"no sample of {samples} failed"
    if new:
        verdict = Verdict.REGRESS
        named = ", ".join(str(failure.line) for failure in new[:5])
        reason = f"the candidate fails on {len(new)} of {samples} samples that the baseline answers"
        reason += f" ({named}): {new[0].message}"
    elif old:
        verdict = Verdict.INCONCLUSIVE if len(old) > BASELINE_FAILURES * samples else Verdict.PASS
        reason = f"the baseline fails on {len(old)} of {samples} samples: correct the data, or give another baseline"
    return Check("failed samples", verdict, float(len(new)), 0.0, "samples", reason, n=samples)


def served_bytes(manifest: Manifest, dialect: str) -> int:
    """Bytes of every file this dialect needs: not the manifest, other dialects' graphs, or engines."""
    others = tuple(f"onnx/{name}/" for name in manifest.dialects if name != dialect)
    return sum(entry.size for name, entry in manifest.files.items() if not name.startswith(("engines/", *others)))


def side_of(path: str | Path, manifest: Manifest, name: str) -> Side:
    dialect = manifest.dialects[name]
    return Side(Path(path).resolve().name, manifest.digest, served_bytes(manifest, name), dict(dialect.precision))
