"""The HTML page: whole, well formed, loads nothing, says what the report says, whatever words are in it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.gate import GateReport, Limits, Verdict, gate
from planish.gate.checks import Check
from planish.gate.html_marks import Scale, axis, scale_of, shown, track
from planish.gate.html_report import html_report
from planish.gate.outputs import Failure
from planish.gate.report import Side

MakeBundle = Callable[..., Path]
VOID = {"meta"}


class Page(HTMLParser):
    """Tags that balance, all text, and every attribute."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


MADE: list[GateReport] = []
"""One for all tests: nothing in it can be changed."""


@pytest.fixture
def report(make_bundle: MakeBundle, reviews: Path, step_clock: Any) -> GateReport:
    if not MADE:
        new, old = make_bundle("new", seed=1, noise=0.4), make_bundle("old")
        MADE.append(gate(new, old, data=reviews, clock=step_clock))
    return MADE[0]


def test_the_page_says_what_the_report_says(report: GateReport) -> None:
    page = Page(html_report(report))
    assert page.text.count(str(report.verdict)) >= 2
    for reason in report.reasons:
        assert " ".join(reason.split()) in page.text
    for check in report.checks:
        assert check.name in page.text
    for one in report.slices:
        assert one.name in page.text
    assert report.candidate.digest in page.text
    assert "ms median of" in page.text
    assert "points lost, 95 % interval" in page.text
    assert "milliseconds of CPU time, one dot a sitting; bar: 95 % interval of the median" in page.text
    assert "ratio, one dot a sitting; bar: 95 % interval" in page.text
    for pair in report.metrics:
        assert f"{pair.name}, 95 % interval of each side alone" in page.text
        for value, interval in ((pair.candidate, pair.candidate_interval), (pair.baseline, pair.baseline_interval)):
            assert interval is not None
            assert f"{shown(value)} {shown(interval.low)} to {shown(interval.high)}" in page.text


def test_the_page_loads_nothing(report: GateReport) -> None:
    page = Page(html_report(report))
    assert not {"script", "link", "img", "iframe", "object", "video"} & set(page.tags)
    assert not [value for name, value in page.attributes if name in ("src", "href", "srcset", "onload")]
    policy = [value for _, value in page.attributes if "default-src" in value]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert "url(" not in html_report(report)
    assert "@import" not in html_report(report)


def test_what_passes_took_is_drawn(report: GateReport) -> None:
    middle = {"bytes": 1e6, "quality": {"accuracy": 0.8, "agreement": 0.95}}
    receipts = (
        {"pass": "prune", "before": {"bytes": 2e6, "quality": {"accuracy": 0.9}}, "after": middle},
        {"pass": "distill", "before": middle, "after": {"bytes": 1e6, "quality": {"accuracy": 0.85}}},
    )
    page = Page(html_report(replace(report, receipts=receipts)))
    assert "parent 2 MB before all passes prune 1 MB −50 % distill 1 MB 0 % " in page.text
    assert ("style", "width:50.00%") in page.attributes
    told = "parent 0.9 before all passes prune 0.8 −0.1 by this pass, agreement 0.95 distill 0.85 +0.05 by this pass"
    assert told in page.text
    blamed = [value for name, value in page.attributes if name == "class" and value in ("track regress", "track pass")]
    assert blamed[-2:] == ["track regress", "track pass"], "the pass that lost, the pass that won back"
    assert "What each pass" not in Page(html_report(replace(report, receipts=({"pass": "old"},)))).text


def test_a_lower_perplexity_is_the_better_one(report: GateReport) -> None:
    states = [{"bytes": 1e6, "quality": {"perplexity": value}} for value in (20.0, 25.0)]
    page = Page(html_report(replace(report, receipts=({"pass": "int4", "before": states[0], "after": states[1]},))))
    assert "perplexity, lower is better" in page.text
    assert ("class", "track regress") in page.attributes
    same = Page(html_report(replace(report, receipts=({"pass": "x", "before": {"bytes": 1}, "after": {"bytes": 1}},))))
    assert "What each pass cost" not in same.text, "no quality was measured"


@given(words=st.text(max_size=60))
def test_any_words_are_text_and_never_markup(words: str) -> None:
    failure = Failure("candidate", 1, f"<script>{words}</script>")
    side = Side(f"<b>{words}", words, 1)
    check = Check(words, Verdict.REGRESS, 1.0, 0.5, words, words)
    data = {"name": words}
    page = Page(
        html_report(
            GateReport(Verdict.REGRESS, words, side, side, (check,), (), (), (failure,), Limits(), data, {}, 0, 1.0)
        )
    )
    assert "script" not in page.tags
    assert "b" not in page.tags


def test_marks_lie_where_their_values_are() -> None:
    drawn = track(Scale(0.0, 4.0), interval=(1.0, 3.0), estimate=2.0, limit=4.0, values=[0.0], says='a "b"')
    assert 'class="span" style="left:25.00%;width:50.00%"' in drawn
    assert 'class="dot" style="left:50.00%"' in drawn
    assert 'class="limit" style="left:100.00%"' in drawn
    assert 'class="one" style="left:0.00%' in drawn
    assert 'aria-label="a &quot;b&quot;"' in drawn


@given(st.lists(st.floats(-1e12, 1e12), max_size=6))
def test_every_scale_holds_its_values_and_has_ticks(values: list[float]) -> None:
    scale = scale_of(values)
    assert scale.low < scale.high
    assert all(scale.low <= value <= scale.high for value in values)
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 7
    assert all(shown(tick) in axis(scale, "ms") for tick in ticks)


def test_what_is_not_finite_is_left_out() -> None:
    assert (
        track(Scale(0, 1), interval=(math.nan, 1.0), estimate=math.inf, values=[math.nan], limit=math.inf).count("<i")
        == 0
    )
    assert shown(math.nan) == "unknown"
