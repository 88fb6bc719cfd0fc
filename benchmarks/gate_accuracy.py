"""How often the accuracy rule finds a planted point, and how often it errs: trials beside exact arithmetic.

    python benchmarks/gate_accuracy.py [BUNDLE --data TEST.jsonl] [--trials 200] [--seed 0]

The candidate is what a bundle really said on the data, with answers changed (`planish.gate.planted_answers`): 10 of
1,000 right answers lost, or none, and *harmless* changes, each for the better or the worse by a coin. Without BUNDLE
the baseline is drawn, 86 % right: the rule looks only at samples on which the sides differ.

Beside the trials stand the same shares by enumeration (scipy), also of two other rules: McNemar's mid-p in place of the
exact p (Fagerland, Lydersen and Laake 2013, BMC Medical Research Methodology 13), and the exact p alone at 5 %. The
next table lets chance say how many answers change (each with the same probability), which is how it is in practice;
the last one says how many samples it takes then.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.stats import binom

from planish import runtime
from planish.gate.checks import Verdict
from planish.gate.clock import environment
from planish.gate.data import load_data
from planish.gate.limits import Limits
from planish.gate.outputs import collect
from planish.gate.planted_answers import SAMPLES, Answers, Plant, answers_of, judge_flips
from planish.gate.trials import Trials

LOST = 10
EACH_WAY = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02)
CHANGED = (0.0, 0.001, 0.002, 0.0025, 0.003, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.04, 0.06)
MARGIN = 5  # answers of 1,000: half a point

Rule = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


def main() -> None:
    options = parse()
    rng = np.random.default_rng(options.seed)
    answers, name = real_answers(options, rng) if options.bundle else (drawn_answers(rng), "drawn, 86 % right")
    where = {key: value for key, value in environment().items() if key != "conditions"}
    print(json.dumps({"at": time.strftime("%Y-%m-%d %H:%M"), **where}))
    print(
        f"\nbaseline: {name}; right {np.mean(answers.said == answers.truth):.4f}; {options.trials} trials of a kind\n"
    )
    trials_table(answers, options.trials, rng)
    print("\nBy enumeration, the same numbers of changes: false alarms / power, %\n")
    enumerated_table()
    print("\nEach answer changes by chance with this probability: false alarms / power, %\n")
    chance_table()
    print("\nSamples (to the next hundred) of which a lost point is found in 90 % of trials\n")
    samples_table()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--data", type=Path, help="with labels")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if (given.bundle is None) != (given.data is None):
        parser.error("give BUNDLE and --data, or neither")
    return given


def real_answers(options: argparse.Namespace, rng: np.random.Generator) -> tuple[Answers, str]:
    with runtime.load(options.bundle, "cpu") as model:
        manifest = model.manifest
        data = load_data(options.data, manifest.task, manifest.labels, manifest.problem_type)
        said = collect(model, data, "bundle")
    return answers_of(said, data, rng), f"{options.bundle.name}, {len(data.samples)} labelled samples"


def drawn_answers(rng: np.random.Generator) -> Answers:
    said = rng.integers(0, 2, SAMPLES)
    return Answers(said, said + (rng.random(SAMPLES) >= 0.86))


def trials_table(answers: Answers, count: int, rng: np.random.Generator) -> None:
    """The gate's own code on every kind of trial."""
    head = ("harmless each way (of 1,000)", "lost", "regress", "inconclusive", "pass", "regress, 95 %")
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for share in EACH_WAY:
        for lost in (0, LOST):
            plant = Plant(round(2 * share * SAMPLES), lost)
            found = Trials("", lost > 0, [judge_flips(answers, plant, Limits(), rng) for _ in range(count)])
            counts = [str(found.count(one)) for one in (Verdict.REGRESS, Verdict.INCONCLUSIVE, Verdict.PASS)]
            one = found.regress
            bounds = f"{100 * one.estimate:.1f} % ({100 * one.low:.1f} to {100 * one.high:.1f})"
            cells = [f"{100 * share:g} % ({round(share * SAMPLES)})", str(lost), *counts, bounds]
            print("| " + " | ".join(cells) + " |", flush=True)


def exact(lost: np.ndarray, gained: np.ndarray, margin: float = MARGIN) -> np.ndarray:
    """The gate's rule: above half a point, and McNemar's exact one-sided p at most 2.5 %."""
    return np.asarray((lost - gained > margin) & (binom.sf(lost - 1, lost + gained, 0.5) <= 0.025))


def mid_p(lost: np.ndarray, gained: np.ndarray, margin: float = MARGIN) -> np.ndarray:
    """The same with half of the probability of what was found."""
    p = binom.sf(lost - 1, lost + gained, 0.5) - binom.pmf(lost, lost + gained, 0.5) / 2
    return np.asarray((lost - gained > margin) & (p <= 0.025))


def exact_at_5(lost: np.ndarray, gained: np.ndarray, margin: float = MARGIN) -> np.ndarray:
    """The gate's rule with a p of 5 %."""
    return np.asarray((lost - gained > margin) & (binom.sf(lost - 1, lost + gained, 0.5) <= 0.05))


def passes(lost: np.ndarray, gained: np.ndarray, margin: float = MARGIN) -> np.ndarray:
    """At most half a point found; that two points are excluded holds too for the numbers here."""
    return np.asarray(lost - gained <= margin)


RULES: dict[str, Rule] = {"exact (the gate's)": exact, "mid-p": mid_p, "exact at 5 %": exact_at_5}


def share_of(rule: Rule, changed: int, lost: int, margin: float = MARGIN) -> float:
    """How often ``rule`` holds with ``lost`` answers lost and ``changed`` more changed by a coin."""
    worse = np.arange(changed + 1)
    return float(np.sum(binom.pmf(worse, changed, 0.5) * rule(lost + worse, changed - worse, margin)))


def enumerated_table() -> None:
    head = [*RULES, "planted point passes (the gate's)"]
    print("| harmless each way | " + " | ".join(head) + " |\n" + "|---" * (len(head) + 1) + "|")
    for share in EACH_WAY:
        changed = round(2 * share * SAMPLES)
        cells = [f"{100 * share_of(rule, changed, 0):.2f} / {100 * share_of(rule, changed, LOST):.1f}"
                 for rule in RULES.values()]  # fmt: skip
        print(f"| {100 * share:g} % | " + " | ".join(cells) + f" | {100 * share_of(passes, changed, LOST):.1f} |")


def by_chance(rule: Rule, changed: float, lost: int, samples: int = SAMPLES) -> float:
    """The same where each of the answers changes with probability ``changed``."""
    least, most = (int(binom.ppf(tail, samples, changed)) if changed else 0 for tail in (1e-9, 1 - 1e-9))
    margin = samples * MARGIN / SAMPLES
    weights = binom.pmf(np.arange(least, most + 1), samples, changed)
    return float(sum(weight * share_of(rule, least + n, lost, margin) for n, weight in enumerate(weights)))


def chance_table() -> None:
    print("| answers changed | " + " | ".join(RULES) + " |\n" + "|---" * (len(RULES) + 1) + "|")
    for changed in CHANGED:
        cells = [f"{100 * by_chance(rule, changed, 0):.2f} / {100 * by_chance(rule, changed, LOST):.1f}"
                 for rule in RULES.values()]  # fmt: skip
        print(f"| {100 * changed:g} % | " + " | ".join(cells) + " |")
    worst = {name: max(by_chance(rule, at / 2000, 0) for at in range(1, 241)) for name, rule in RULES.items()}
    told = ", ".join(f"{name} {100 * most:.2f} %" for name, most in worst.items())
    print(f"\nMost false alarms from 0.05 to 12 % changed, in steps of 0.05 %: {told}.")


def samples_table() -> None:
    print("| answers changed | exact (the gate's) | mid-p |\n|---|---|---|")
    for changed in (0.0, 0.002, 0.005, 0.01, 0.02, 0.04):
        print(f"| {100 * changed:g} % | {samples_for(exact, changed)} | {samples_for(mid_p, changed)} |", flush=True)


def samples_for(rule: Rule, changed: float) -> int:
    """The least multiple of 100 at which, and at the next, one answer lost in a hundred is found in 90 % of trials."""
    samples = 0
    while min(by_chance(rule, changed, (samples + more) // 100, samples + more) for more in (100, 200)) < 0.9:
        samples += 100
    return samples + 100


if __name__ == "__main__":
    main()
