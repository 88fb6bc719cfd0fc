"""Slices: how they are cut, that a loss on one group alone is found, and that many slices raise no false alarms."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planish.errors import InputError
from planish.gate import Limits, Verdict, gate, outputs
from planish.gate.data import Dataset, Sample
from planish.gate.metrics import Measured, mean_of, span_f1
from planish.gate.slices import LEAST, judge_slices, slice_losses, slices_of
from planish.gate.spans import Span
from planish.runtime import verify

MakeBundle = Callable[..., Path]
LABELS = ("negative", "positive")


def data_of(count: int = 300, **column: Callable[[int], Any]) -> Dataset:
    samples = [
        Sample(n + 1, " ".join(["word"] * (n % 30 + 1)), label=(n % 2,), columns={k: f(n) for k, f in column.items()})
        for n in range(count)
    ]
    return Dataset("data", tuple(samples), labelled=True)


def hits(values: Any) -> Measured:
    return mean_of("accuracy", np.asarray(values, dtype=float), binary=True)


def test_by_length_label_and_columns_with_few_values() -> None:
    data = data_of(language=lambda n: ["en", "de"][n % 5 == 0], id=lambda n: n, rare=lambda n: n < LEAST - 1)
    found = {name: int(mask.sum()) for name, mask in slices_of(data, LABELS).items()}
    assert found == {
        "length 1 to 10 words": 100,
        "length 11 to 20 words": 100,
        "length 21 to 30 words": 100,
        "label negative": 150,
        "label positive": 150,
        "language de": 60,
        "language en": 240,
        "rare False": 300 - LEAST + 1,
    }


def test_lengths_that_do_not_differ_and_columns_of_other_kinds_cut_nothing() -> None:
    samples = [Sample(n, "one word", label=(0,), columns={"note": [n % 2], "score": n / 7, "none": None})
               for n in range(100)]  # fmt: skip
    assert slices_of(Dataset("data", tuple(samples), labelled=True), LABELS) == {}
    assert judge_slices("accuracy", (), 1.0) is None


def test_entities_and_questions_have_kinds() -> None:
    spans = [Sample(n, "a b", spans=(Span(0, 1, "PER" if n % 2 else "LOC"),)) for n in range(80)]
    assert set(slices_of(Dataset("d", tuple(spans), labelled=True), ())) == {"label PER", "label LOC"}
    asked = [Sample(n, question="who", context="me", answers=("me",) if n % 2 else ()) for n in range(80)]
    assert set(slices_of(Dataset("d", tuple(asked), labelled=True), ())) == {"label answer", "label no answer"}


def test_a_loss_on_one_group_alone_is_found_and_named(
    make_bundle: MakeBundle, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 300 reviews the candidate gets 12 wrong, all of one language: 4 points over all, 20 on it."""
    rows = [json.loads(line) for line in reviews.read_text(encoding="utf-8").splitlines()]
    reviews.write_text(
        "".join(json.dumps({**row, "language": "de" if n < 60 else "en"}) + "\n" for n, row in enumerate(rows))
    )
    asked = outputs.ask_labels

    new, old = make_bundle("new", seed=1, noise=1e-4), make_bundle("old")
    digest = verify(new).digest

    def worse_in_german(model: Any, sample: Sample, nothing: bool) -> outputs.Output:
        said = asked(model, sample, nothing)
        wrong = model.manifest.digest == digest and sample.line <= 12
        return outputs.Output(labels=(1 - said.labels[0],), values=said.values) if wrong else said

    monkeypatch.setitem(outputs.ASKS, "text-classification", worse_in_german)
    report = gate(new, old, data=reviews, latency=False, limits=Limits(max_loss_points=5.0, max_slice_loss_points=10.0))
    assert report.verdict is Verdict.REGRESS, report.to_markdown()
    (reason,) = report.reasons
    assert "slice 'language de' lost 20.00 points" in reason
    assert report.slices[0].name == "language de"
    assert report.to_json()["slices"][0]["loss"]["estimate"] == pytest.approx(20)
    assert "| language de |" in report.to_markdown()
    allowed = gate(new, old, data=reviews, latency=False, limits=Limits(max_loss_points=6.0))
    assert allowed.verdict is not Verdict.REGRESS, "24 points may be lost on a slice then"


def test_what_may_be_chance_passes_and_says_so() -> None:
    data = data_of()
    old = np.ones(300)
    new = old.copy()
    new[[0, 2]] = 0
    losses = slice_losses(hits(new), hits(old), slices_of(data, LABELS))
    check = judge_slices("accuracy", losses, 0.5)
    assert check is not None
    assert check.verdict is Verdict.PASS
    assert "may be chance" in check.reason


def test_other_metrics_are_judged_by_their_bootstrap() -> None:
    data = data_of(group=lambda n: n % 3)
    truth = [[Span(0, 1, "X")] for _ in range(300)]
    missed = [[] if n % 3 == 0 and n % 2 else spans for n, spans in enumerate(truth)]
    losses = slice_losses(span_f1(missed, truth), span_f1(truth, truth), slices_of(data, ()))
    assert losses[0].name == "group 0"
    assert losses[0].proved
    assert not any(one.proved for one in losses if one.name in ("group 1", "group 2"))


def test_equal_models_raise_no_false_alarm_and_a_hurt_group_is_found() -> None:
    """1,000 trials of 600 samples, 5 % of whose answers differ, over 14 slices; then 8 points lost on 300 of 1,200."""
    rng = np.random.default_rng(0)
    data = data_of(600, a=lambda n: n % 4, b=lambda n: n // 7 % 5)
    slices = slices_of(data, LABELS)
    assert len(slices) == 14
    alarms = 0
    for _ in range(1000):
        old = rng.random(600) < 0.9
        new = np.where(rng.random(600) < 0.05, ~old, old)
        back = np.where(rng.random(600) < 0.5, True, False)
        one, other = np.where(back, new, old), np.where(back, old, new)
        check = judge_slices("accuracy", slice_losses(hits(one), hits(other), slices), 2.0)
        alarms += check is not None and check.verdict is Verdict.REGRESS
    assert alarms <= 15, "1 % and chance"
    data = data_of(1200, group=lambda n: n % 4)
    slices, found = slices_of(data, LABELS), 0
    for _ in range(200):
        old = rng.random(1200) < 0.9
        new = old & ~((np.arange(1200) % 4 == 0) & (rng.random(1200) < 0.09))
        found += any(one.proved and one.name == "group 0" for one in slice_losses(hits(new), hits(old), slices))
    assert found >= 190


def test_a_margin_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="max_slice_loss_points from 0 to 100"):
        Limits(max_slice_loss_points=-1.0)
    assert Limits(max_loss_points=0.25).slice_margin == 1.0
