"""The self-test calls a healthy gate healthy and every broken one broken: each rule is broken in turn.

Latency runs on simulated time through the gate's own comparison, accuracy on drawn answers; the whole runs on toy
bundles, where the work done moves the clock.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from planish import gate
from planish.__main__ import main
from planish.errors import InconclusiveError, InputError
from planish.gate import agreement, checks, latency, paired, planted, replays, self_test, slowdown
from planish.gate.checks import Verdict
from planish.gate.clock import Timing
from planish.gate.data import Dataset, Sample
from planish.gate.latency import Sides, Sitting
from planish.gate.limits import Limits
from planish.gate.outputs import Output, Outputs
from planish.gate.planted import INFERENCES, decoding, working
from planish.gate.planted_answers import Answers, Plant, answers_of, judge_flips
from planish.gate.self_test import SelftestReport, flip_trials, latency_trials
from planish.gate.slowdown import Pairs, Plan
from planish.gate.statistics import McNemar, binomial_tail, clopper_pearson
from planish.gate.trials import Promise, Trials
from tests.gate.work_clock import WorkClock

MakeBundle = Callable[..., Path]


class Machine(WorkClock):
    """Time that work moves, with noise and, on a busy machine, much of it."""

    def __init__(self, seed: int, noise: float) -> None:
        super().__init__()
        self.rng, self.noise = np.random.default_rng(seed), noise

    def work(self) -> None:
        self.now += 1e-3 * math.exp(self.rng.normal(0, self.noise))

    def sitting(self, plant: float) -> Sitting:
        """As `planted_sitting`, on simulated work; sessions differ by 1 % for as long as they live."""

        @contextmanager
        def sit(order: tuple[int, ...]) -> Iterator[Sides]:
            luck = np.exp(self.rng.normal(0, 0.01, 2))

            def probe(side: int, extra: float) -> latency.Probe:
                timed = working(self.work, extra)
                slower = lambda timing: Timing(timing.cpu * luck[side], timing.wall * luck[side])  # noqa: E731
                return lambda clock: {name: slower(timing) for name, timing in timed(clock).items()}

            yield {"toy": (probe(0, plant * INFERENCES), probe(1, 0.0))}

        return sit


def latency_finding(seed: int = 0, noise: float = 0.05, seconds: float = 120.0) -> SelftestReport:
    machine = Machine(seed, noise)
    plan = Plan(1.05, 0.0, "cpu", seconds, seed=seed, among=2)
    found, question = latency_trials(machine.sitting, plan, machine, np.random.default_rng(seed))
    return report_of(found, question)


def accuracy_finding(seed: int = 0) -> SelftestReport:
    rng = np.random.default_rng(seed)
    said = rng.integers(0, 3, 700)
    answers = Answers(said, said + (rng.random(700) < 0.14))
    return report_of(flip_trials(lambda plant: judge_flips(answers, plant, Limits(), rng)))


def report_of(trials: Sequence[Trials], question: str = "") -> SelftestReport:
    return SelftestReport("toy", "text-classification", tuple(trials), {"before": {}, "after": {}}, 0, 1.0, question)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bootstraps of medians are told, not judged; fewer trials are certain enough, as every test here shows."""
    monkeypatch.setattr(slowdown, "ratio_of_medians", lambda *_, **__: slowdown.UNKNOWN)
    monkeypatch.setattr(self_test, "MANY_TRIALS", 60)
    monkeypatch.setattr(self_test, "FEW_TRIALS", 60)
    monkeypatch.setattr(self_test, "MOST_ROUNDS", 6)
    monkeypatch.setattr(replays, "TRIALS", 60)


def test_a_healthy_gate_works() -> None:
    for seed in range(3):
        report = latency_finding(seed)
        assert (report.finding, report.reasons) == ("works", [])
    first, planted_rounds, *replayed = report.trials
    assert first.count(Verdict.PASS) == len(first.verdicts) == 6
    assert planted_rounds.count(Verdict.REGRESS) == len(planted_rounds.verdicts)
    assert len(replayed) == 3
    for seed in range(3):
        assert accuracy_finding(seed).finding == "works"


def always(verdict: Verdict) -> Callable[..., Verdict]:
    return lambda *_, **__: verdict


def sides_swapped(pairs: Pairs, judged: slowdown.Judged) -> Any:
    return CLEAN(pairs, judged)[::-1]


def pairing_lost(pairs: Pairs, judged: slowdown.Judged) -> Any:
    candidate, baseline = CLEAN(pairs, judged)
    return candidate, np.random.default_rng(0).permutation(baseline)


def point_alone(interval: Any, is_slower: bool, allowed: float, suspect: float) -> Verdict:
    return VERDICT_OF(interval, True, allowed, suspect)


def held_the_wrong_way(shape: str, sides: tuple[latency.Probe, ...], *rest: Any) -> None:
    HOLD(shape, sides[::-1], *rest)


def twice_the_limit(limit: float, *rest: float) -> tuple[float, float]:
    return BOUNDS(limit + 0.05, *rest)


CLEAN, VERDICT_OF, HOLD, BOUNDS = Pairs.clean, slowdown.verdict_of, latency.hold, slowdown.bounds
LATENCY_MUTATIONS: list[tuple[Any, str, Any]] = [
    (Pairs, "clean", sides_swapped),
    (latency, "hold", held_the_wrong_way),
    (slowdown, "verdict_of", always(Verdict.PASS)),
    (slowdown, "verdict_of", always(Verdict.REGRESS)),
    (slowdown, "verdict_of", always(Verdict.INCONCLUSIVE)),
    (slowdown, "verdict_of", point_alone),
    (slowdown, "bounds", twice_the_limit),
    (slowdown, "ALPHA", 0.0),
    (Pairs, "clean", pairing_lost),
]


@pytest.mark.parametrize(("home", "name", "broken"), LATENCY_MUTATIONS)
def test_a_broken_latency_rule_is_called_broken(
    monkeypatch: pytest.MonkeyPatch, home: Any, name: str, broken: Any
) -> None:
    monkeypatch.setattr(home, name, broken)
    report = latency_finding()
    assert (report.finding, report.exit_code) == ("broken", 1)
    assert report.reasons


def test_a_rule_without_significance_never_errs_in_rounds_on_a_quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why sittings are replayed without a limit: the rounds alone would have called it healthy."""
    monkeypatch.setattr(slowdown, "verdict_of", point_alone)
    assert [one.name for one in latency_finding().trials if one.broken] == ["no difference, limit 1.0, replayed"]


def counted(change: Callable[[int, int], tuple[int, int, int, int]]) -> Callable[..., McNemar]:
    """McNemar's test with other counts: lost, gained, and of how many of how many p is told."""

    def test(candidate: Any, baseline: Any) -> McNemar:
        found = MCNEMAR(candidate, baseline)
        lost, gained, successes, trials = change(found.lost, found.gained)
        return McNemar(found.n, lost, gained, binomial_tail(successes, trials), 1.0)

    return test


def unpaired(candidate: Any, baseline: Any) -> McNemar:
    return MCNEMAR(np.random.default_rng(int(np.sum(candidate))).permutation(candidate), baseline)


def point_alone_loss(loss: Any, margin: float, rule: Any, p_worse: float | None = None) -> Verdict:
    return LOSS_VERDICT(loss, margin, rule, 0.0)


def ten_times_the_margin(loss: Any, margin: float, rule: Any, p_worse: float | None = None) -> Verdict:
    return LOSS_VERDICT(loss, 10 * margin, rule, p_worse)


MCNEMAR, LOSS_VERDICT = paired.mcnemar, checks.loss_verdict
ACCURACY_MUTATIONS: list[tuple[Any, str, Any]] = [
    (paired, "mcnemar", counted(lambda lost, gained: (gained, lost, gained, lost + gained))),  # the sides swapped
    (paired, "mcnemar", counted(lambda lost, gained: (lost, gained, gained, lost + gained))),  # the wrong tail
    (paired, "mcnemar", unpaired),
    (checks, "loss_verdict", always(Verdict.PASS)),
    (checks, "loss_verdict", always(Verdict.REGRESS)),
    (checks, "loss_verdict", always(Verdict.INCONCLUSIVE)),
    (checks, "loss_verdict", point_alone_loss),
    (checks, "loss_verdict", ten_times_the_margin),
]


@pytest.mark.parametrize(("home", "name", "broken"), ACCURACY_MUTATIONS)
def test_a_broken_accuracy_rule_is_called_broken(
    monkeypatch: pytest.MonkeyPatch, home: Any, name: str, broken: Any
) -> None:
    if broken is point_alone_loss:  # 13 % false alarms for 2: the others err all the time
        monkeypatch.setattr(self_test, "MANY_TRIALS", 400)
    monkeypatch.setattr(home, name, broken)
    assert accuracy_finding().finding == "broken"


def test_a_machine_too_noisy_is_no_proof() -> None:
    report = latency_finding(noise=1.5, seconds=20.0)
    assert (report.finding, report.exit_code) == ("undecided", 3)
    assert "quieter machine" in report.reasons[0]


def test_a_slow_bundle_gets_one_round_of_each_kind() -> None:
    report = latency_finding(seconds=2.0)
    assert report.finding == "works"
    assert [len(one.verdicts) for one in report.trials] == [1, 1, 60, 60, 60]


def test_one_round_that_slips_is_no_proof_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "hold", held_the_wrong_way)
    report = latency_finding(seconds=2.0)
    assert (report.finding, report.exit_code) == ("undecided", 3)
    assert "1 pass" in report.reasons[0]


def test_without_replays_nothing_is_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_test, "replays", lambda *_: [])
    report = latency_finding()
    assert (report.finding, report.reasons) == ("undecided", ["fewer than 9 sittings were held: give more --seconds"])


def test_too_little_time_says_how_much_is_needed() -> None:
    report = latency_finding(seconds=0.5)
    assert (report.exit_code, report.trials) == (3, ())
    assert "more --seconds" in report.reasons[0]


@pytest.mark.parametrize("plant", [Plant(20), Plant(6), Plant(10, lost=10), Plant(20, lost=10), Plant(lost=10)])
def test_flips_are_judged_as_often_as_the_arithmetic_says(plant: Plant) -> None:
    """Enumerated: a coin for each harmless change, McNemar's exact test, and a loss above half a point."""
    worse = np.arange(plant.changed + 1)
    lost, gained = plant.lost + worse, plant.changed - worse
    alarm = (scipy.stats.binom.sf(lost - 1, lost + gained, 0.5) <= 0.025) & (lost - gained > 5)
    expected = float(np.sum(scipy.stats.binom.pmf(worse, plant.changed, 0.5) * alarm))
    rng = np.random.default_rng(3)
    said = rng.integers(0, 5, 400)
    answers = Answers(said, said + (rng.random(400) < 0.2))
    found = sum(judge_flips(answers, plant, Limits(), rng) is Verdict.REGRESS for _ in range(300))
    assert abs(found / 300 - expected) <= 4 * math.sqrt(expected * (1 - expected) / 300) + 1e-12


def outputs(labels: Sequence[int]) -> Outputs:
    return Outputs(tuple(Output(labels=(label,)) for label in labels), ())


def test_answers_are_those_of_the_bundle_and_its_labels() -> None:
    samples = tuple(Sample(line, "x", label=(line % 2,)) for line in range(40))
    found = answers_of(outputs([0] * 40), Dataset("d", samples, labelled=True), np.random.default_rng(0))
    assert np.array_equal(found.said == found.truth, [line % 2 == 0 for line in range(40)])
    free = answers_of(outputs([0, 1] * 20), Dataset("d", samples, labelled=False), np.random.default_rng(0))
    assert len(set(free.said.tolist())) == 2
    assert np.sum(free.said != free.truth) == 4  # a tenth of the truth is declared otherwise


def test_too_few_answers_prove_nothing() -> None:
    samples = tuple(Sample(line, "x") for line in range(19))
    with pytest.raises(InconclusiveError, match="20 samples"):
        answers_of(outputs([0] * 19), Dataset("d", samples, labelled=False), np.random.default_rng(0))
    never_right = Answers(np.zeros(50, np.int64), np.ones(50, np.int64))
    with pytest.raises(InconclusiveError, match="0 right and 1000 wrong"):
        judge_flips(never_right, Plant(lost=10), Limits(), np.random.default_rng(0))


@pytest.mark.parametrize(("count", "n"), [(0, 1), (1, 1), (0, 8), (3, 8), (187, 200), (26, 1000)])
def test_exact_intervals_and_tails_are_scipys(count: int, n: int) -> None:
    found = clopper_pearson(count, n)
    exact = scipy.stats.binomtest(count, n).proportion_ci(0.95, "exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-9)
    most, least = (Promise(Verdict.PASS, kind, 0.1) for kind in ("at most", "at least"))  # type: ignore[arg-type]
    assert most.p(count, n) == pytest.approx(scipy.stats.binomtest(count, n, 0.1, "greater").pvalue, rel=1e-8)
    assert least.p(count, n) == pytest.approx(scipy.stats.binomtest(count, n, 0.1, "less").pvalue, rel=1e-8)
    assert binomial_tail(count, n, 0.0) == float(count == 0)
    assert binomial_tail(count, n, 1.0) == 1.0


@pytest.mark.parametrize(("errors", "rounds", "broken"), [(2, 2, True), (2, 8, False), (3, 8, True)])
def test_a_few_errors_of_a_few_rounds_break_a_promise(errors: int, rounds: int, broken: bool) -> None:
    verdicts = [Verdict.PASS] * errors + [Verdict.REGRESS] * (rounds - errors)
    assert Trials("x", True, verdicts, self_test.SLIPS).broken == broken


def test_a_healthy_gate_is_hardly_ever_called_broken() -> None:
    """Each promise is kept with equality at the worst: together less than 1 %."""
    at_worst = [(12, 0.025), (12, 0.025), (200, 0.005), (200, 0.025), (1000, 0.025)]
    chance = 0.0
    for trials, share in at_worst:
        counts = np.arange(trials + 1)
        broken = np.array([binomial_tail(int(count), trials, share) < 0.001 for count in counts])
        chance += float(np.sum(scipy.stats.binom.pmf(counts, trials, share)[broken]))
    assert chance < 0.005


def test_sides_of_a_replay_are_swapped_and_heat_hits_both() -> None:
    pool = [(Timing(1.0 + i, 2.0), Timing(1.5 + i, 4.0)) for i in range(30)]
    pairs = replays.redrawn(pool, 30, 2.0, 1.0, np.random.default_rng(0))
    ratios = sorted(new.cpu / old.cpu / 2.0 for new, old in zip(pairs.candidate, pairs.baseline, strict=True))
    straight = [(1.0 + i) / (1.5 + i) for i in range(30)]
    assert all(min(abs(r - s) for s in [*straight, *(1 / s for s in straight)]) < 1e-9 for r in ratios)
    assert 5 < sum(ratio < 1 for ratio in ratios) < 25
    assert max(one.cpu for one in pairs.baseline) > 60  # some were slowed


@pytest.fixture
def work_moves_the_clock(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Every inference of a real session takes a simulated millisecond."""
    machine, run_of = Machine(0, 0.02), planted.encoder_run

    def encoder_run(*arguments: Any) -> Callable[[], object]:
        run = run_of(*arguments)
        return lambda: (machine.work(), run())[1]  # type: ignore[func-returns-value]

    monkeypatch.setattr(planted, "encoder_run", encoder_run)
    monkeypatch.setattr(self_test, "MOST_ROUNDS", 2)
    return machine


def test_the_whole_on_a_bundle(make_bundle: MakeBundle, work_moves_the_clock: Machine, reviews: Path) -> None:
    report = gate.selftest(make_bundle("toy"), data=reviews, clock=work_moves_the_clock)
    assert (report.finding, report.exit_code, report.reasons) == ("works", 0, [])
    assert [one.count(Verdict.REGRESS) for one in report.trials[:2]] == [0, 2]
    assert report.trials[0].detectable is not None
    assert 1 < report.trials[0].detectable < 1.1
    told = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert told["trials"][1]["regress_share"]["low"] == pytest.approx(clopper_pearson(2, 2).low)
    page = report.to_markdown()
    assert "the gate works here" in page
    assert "power 100.0 % (15.8 to 100.0)" in page
    assert "load" in page


def test_a_planted_side_really_works_more(make_bundle: MakeBundle, work_moves_the_clock: Machine) -> None:
    machine = work_moves_the_clock
    ids = np.ones((1, 8), dtype=np.int64)
    with planted.planted_sitting(make_bundle("toy"), ids, 0.1, machine, {"device": "cpu"})((0, 1)) as sides:
        ((new, old),) = sides.values()
        ratio = np.mean([new(machine)["inference"].cpu / old(machine)["inference"].cpu for _ in range(20)])
    assert ratio == pytest.approx(1.1, abs=0.02)


def test_a_planted_decoder_takes_more_steps(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from planish import runtime
    from planish.runtime.cache import DecoderRun

    machine, step, steps = Machine(0, 0.0), DecoderRun.step, []
    monkeypatch.setattr(DecoderRun, "step", lambda run, tokens: (machine.work(), steps.append(1), step(run, tokens))[2])
    with runtime.load(make_bundle("toy", "text-generation"), "cpu") as model:
        timing = decoding(model, np.ones((1, 4), dtype=np.int64), extra=1)(machine)["decode"]
    assert len(steps) == INFERENCES + 1
    assert timing.cpu == pytest.approx(1.1e-3)


def test_half_an_extra_inference_is_one_every_other_block() -> None:
    machine, runs = Machine(0, 0.0), []
    probe = working(lambda: runs.append(1), 0.5)
    counts = []
    for _ in range(4):
        before = len(runs)
        probe(machine)
        counts.append(len(runs) - before - 1)  # one untimed
    assert counts == [10, 11, 10, 11]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """24 lines, each of words of its own order, that every task but one reads."""
    rng = np.random.default_rng(7)
    lines = [" ".join(rng.permutation(["good", "bad", "film", "whale", "sea", "ship"])) for _ in range(24)]
    path = tmp_path / "texts.jsonl"
    rows = [{"text": line, "question": "good ?", "context": line} for line in lines]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.mark.parametrize("task", ["token-classification", "feature-extraction", "question-answering", "fill-mask"])
def test_every_task_has_a_loss_to_plant(make_bundle: MakeBundle, texts: Path, task: str) -> None:
    report = gate.selftest(make_bundle("toy", task), data=texts, latency=False)
    assert report.finding == "works"
    assert any(one.planted and one.count(Verdict.REGRESS) for one in report.trials)


def test_a_decoder_has_its_perplexity_planted(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle("toy", "text-generation")
    assert gate.selftest(bundle, latency=False).finding == "works"
    monkeypatch.setattr(checks, "loss_verdict", always(Verdict.PASS))
    assert gate.selftest(bundle, latency=False).finding == "broken"


def test_embeddings_compared_with_themselves_are_called_broken(
    make_bundle: MakeBundle, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle("toy", "feature-extraction")
    monkeypatch.setattr(agreement, "cosines", lambda candidate, baseline: np.ones(len(candidate.items)))
    assert gate.selftest(bundle, data=texts, latency=False).finding == "broken"


def test_the_command(make_bundle: MakeBundle, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = str(make_bundle("toy"))
    assert main(["gate", "selftest", bundle, "--no-latency", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["exit_code"], told["selftest"]["finding"]) == (0, "works")
    assert main(["gate", "selftest", bundle, "--seconds", "0.001"]) == 3
    assert "more --seconds" in capsys.readouterr().out
    assert main(["gate", "selftest"]) == 2
    assert "BUNDLE for planish gate selftest" in capsys.readouterr().err
    assert main(["gate", "selftest", bundle, "--seconds", "-1"]) == 2
    assert main(["gate", "selftest", bundle, "--baseline", bundle]) == 2
    with pytest.raises(InputError, match="seconds"):
        gate.selftest(bundle, seconds=math.nan)


def test_a_broken_gate_is_exit_1(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "loss_verdict", always(Verdict.PASS))
    assert main(["gate", "selftest", str(make_bundle("toy")), "--no-latency"]) == 1
    assert "BROKEN" in capsys.readouterr().out


def test_a_bundle_called_selftest_is_spelled_with_its_folder(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle("selftest")
    monkeypatch.chdir(bundle.parent)
    assert main(["gate", "./selftest", "--baseline", "selftest", "--no-latency"]) in (0, 3)
    assert "is the command" not in capsys.readouterr().err
    assert main(["gate", "selftest", "selftest", "--no-latency"]) == 0
    assert "selftest is the command; the bundle of that name here is ./selftest" in capsys.readouterr().err
