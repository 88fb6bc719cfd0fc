"""The page of a bench: what it says and draws; the Pareto frontier and the places of labels against other code."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from planish.commands_use import bench as bench_command
from planish.commands_use import gate as gate_command
from planish.errors import DataError, HostError, InputError
from planish.gate import BenchReport, bench
from planish.gate.action_benchmark import bench_benchmark
from planish.gate.html_bench import html_bench
from planish.gate.html_marks import BINS, Scale, histogram
from planish.gate.html_plot import LINE, Point, frontier, pareto, spread
from planish.gate.statistics import wilson_interval

MakeBundle = Callable[..., Path]
FIGURES = st.floats(-1e6, 1e6)


class Text(HTMLParser):
    """All text, the tags that were opened, and what was not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words, self.tags, self.depth = [""], [""], 0
        self.feed(page)
        self.close()
        assert self.depth == 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.depth += tag != "meta"

    def handle_endtag(self, tag: str) -> None:
        self.depth -= 1

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


MADE: list[BenchReport] = []
"""One for all tests: nothing in it can be changed."""


@pytest.fixture
def report(make_bundle: MakeBundle, reviews: Path, step_clock: Any) -> BenchReport:
    if not MADE:
        paths = [make_bundle("old"), make_bundle("new", seed=1, noise=0.4), make_bundle("third", seed=2, noise=0.1)]
        shapes = [(1, 8), (2, 16)]
        MADE.append(bench(paths, data=reviews, shapes=shapes, memory=False, seconds=0.2, clock=step_clock))
    return MADE[0]


def test_the_page_says_what_the_report_says(report: BenchReport) -> None:
    page = Text(html_bench(report))
    for one in report.measurements:
        assert f"{one.bundle} {one.shape} {one.phase} {1e3 * one.p50:.3f}" in page.text
    for score in report.scores:
        assert f"{score.interval.estimate:.4g}" in page.text
    assert "Against old" in page.text
    assert "new, 1x8 inference" in page.text
    for unit in ("milliseconds, wall clock", "ratio, 95 % interval", "accuracy, 95 % interval, higher is better"):
        assert unit in page.text
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert html_bench(report).count("<figure>") == 3, "a plot a shape, and one of bytes"


def test_every_time_is_in_a_bar(report: BenchReport) -> None:
    assert all(len(one.times) == one.rounds for one in report.measurements)
    assert all(one.p50 == pytest.approx(np.median(one.times)) for one in report.measurements)
    drawn = histogram(Scale(0.0, 60.0), [0.5, 0.6, 30.5, 99.0], [30.5, 45.0])
    assert drawn.count('class="bin"') == 3
    assert "left:0.00%;width:1.67%;height:100.0%" in drawn
    assert "left:50.00%;width:1.67%;height:50.0%" in drawn
    assert f"left:{100 - 100 / BINS:.2f}%;width:1.67%;height:50.0%" in drawn, "what is beyond the edge is at the edge"
    assert re.findall(r'class="(quantile[^"]*)" style="left:([\d.]+)%', drawn) == [
        ("quantile first", "50.83"),
        ("quantile", "75.00"),
    ]


def test_scores_are_those_of_the_data(make_bundle: MakeBundle, reviews: Path, report: BenchReport) -> None:
    from planish import runtime

    rows = [json.loads(line) for line in reviews.read_text(encoding="utf-8").splitlines()]
    with runtime.load(make_bundle("again", seed=1, noise=0.4)) as model:
        hits = sum(model.classify([row["text"]])[0].label == row["label"] for row in rows)
    score = next(score for score in report.scores if (score.bundle, score.metric) == ("new", "accuracy"))
    assert 0 < hits < len(rows)
    assert score.interval == wilson_interval(hits, len(rows))
    assert (score.n, score.failures) == (len(rows), 0)
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["scores"][0]["metric"] == "accuracy"
    assert "| old | accuracy |" in report.to_markdown()


def test_without_labels_bytes_stand_over_latency(make_bundle: MakeBundle, step_clock: Any) -> None:
    paths = [make_bundle("a"), make_bundle("b")]
    report = bench(paths, shapes=[(1, 8)], memory=False, seconds=0.1, clock=step_clock)
    page = html_bench(report)
    assert page.count("<figure>") == 1
    assert "megabytes, lower is better" in page
    alone = bench(paths[0], shapes=[(1, 8)], memory=False, seconds=0.1, clock=step_clock)
    assert "<figure>" not in html_bench(alone), "one bundle has nothing to be compared with"
    assert "Against" not in html_bench(alone)


def test_a_decoders_phases_have_a_servers_names(make_bundle: MakeBundle, step_clock: Any, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(["the whale is good", "a very bad ship", "not a fine film"] * 30), encoding="utf-8")
    paths = [make_bundle(name, "text-generation", seed=seed, noise=0.1) for seed, name in enumerate(("a", "b"))]
    report = bench(paths, data=texts, memory=False, seconds=0.1, clock=step_clock)
    for told in (Text(html_bench(report)).text, report.to_markdown()):
        assert "prefill (time to first token)" in told
        assert "decode (inter-token latency)" in told
        assert "perplexity" in told
    assert "perplexity, 95 % interval, lower is better" in Text(html_bench(report)).text
    assert {score.higher_is_better for score in report.scores} == {False}


def test_data_that_cannot_score_is_refused_before_anything_is_measured(
    make_bundle: MakeBundle, reviews: Path, tmp_path: Path
) -> None:
    bundle, texts = make_bundle("one"), tmp_path / "texts.txt"
    texts.write_text("good film\n", encoding="utf-8")
    with pytest.raises(InputError, match="data with labels for text-classification"):
        bench(bundle, data=texts)
    with pytest.raises(InputError, match="bundles of one labels"):
        bench([bundle, make_bundle("other", labels=["no", "yes"])], data=reviews)
    with pytest.raises(InputError, match="bundles of one task"):
        bench([bundle, make_bundle("tags", "token-classification")], data=reviews)
    reviews.write_text('{"text": "good", "label": "unheard of"}\n', encoding="utf-8")
    with pytest.raises(DataError):
        bench(bundle, data=reviews)


def test_figures_of_a_bench(report: BenchReport) -> None:
    entries = json.loads(bench_benchmark(report))
    found = {entry["name"]: entry for entry in entries}
    assert len(found) == len(entries) == 2 * 6 + 4 + 3
    first = report.measurements[0]
    assert found["old 1x8 inference p50"]["value"] == pytest.approx(1e3 * first.p50)
    assert " to " in found["old 1x8 inference p50"]["range"]
    assert found["new size"] == {
        "name": "new size",
        "unit": "bytes",
        "value": report.bundles[1]["bytes"],
        "extra": report.bundles[1]["digest"],
    }


def test_the_command_writes_what_is_asked_for(
    make_bundle: MakeBundle, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    files = {name: tmp_path / f"bench.{name}" for name in ("html", "markdown", "benchmark-json")}
    asked = [part for name, path in files.items() for part in (f"--{name}", str(path))]
    told = ["--data", str(reviews), "--shape", "1x8", "--seconds", "0.1", "--threads", "1"]
    done = CliRunner().invoke(bench_command, [str(make_bundle("one")), *told, *asked], catch_exceptions=False)
    assert done.exit_code == 0
    markdown = files["markdown"].read_text(encoding="utf-8")
    assert "| one | accuracy | 1.0000 |" in markdown
    assert markdown.strip() in done.output
    assert summary.read_text(encoding="utf-8") == markdown + "\n"
    assert "Latency 1x8 inference" in Text(files["html"].read_text(encoding="utf-8")).text
    assert json.loads(files["benchmark-json"].read_text(encoding="utf-8"))[0]["name"] == "one 1x8 inference p50"


def test_a_disk_that_refuses_does_not_cost_the_figures(make_bundle: MakeBundle, tmp_path: Path) -> None:
    """A file may have this name, the file it is first written to may not."""
    page = tmp_path / ("x" * 250)
    bundle = str(make_bundle("one"))
    told = ["--html", str(page)]
    done = CliRunner().invoke(bench_command, [bundle, "--shape", "1x8", "--seconds", "0.1", *told])
    assert isinstance(done.exception, HostError)
    assert "| one | 1x8 | inference |" in done.output
    done = CliRunner().invoke(gate_command, [bundle, "-b", bundle, "--no-latency", *told])
    assert isinstance(done.exception, HostError)
    assert "# planish gate: pass" in done.output
    assert not page.exists()


@given(words=st.text(max_size=40))
def test_any_name_is_text_and_never_markup(words: str) -> None:
    name = f"<script>{words}"
    drawn = pareto([Point(name, 1.0, 2.0), Point("b", 2.0, 1.0)], name, name, higher=True, title=name)
    assert "script" not in Text(drawn).tags


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12), st.booleans())
def test_the_frontier_is_what_nothing_beats(places: list[tuple[int, int]], higher: bool) -> None:
    """Against the other definition: along growing x, whoever is better in y than all before."""
    points = [Point(str(number), x, y) for number, (x, y) in enumerate(places)]
    sign = 1 if higher else -1
    best, kept = -math.inf, set()
    for x in sorted({x for x, _ in places}):
        top = max(sign * y for other, y in places if other == x)
        if top > best:
            best = top
            kept.add((x, sign * top))
    assert frontier(points, higher=higher) == [place in kept for place in places]


@given(st.lists(FIGURES, min_size=1, max_size=14))
def test_labels_move_as_isotonic_regression_says(wanted: list[float]) -> None:
    places = spread(wanted, 10.0, -math.inf, math.inf)
    order = np.argsort(wanted, kind="stable")
    steps = 10.0 * np.arange(len(wanted))
    told = isotonic_regression(np.asarray(wanted)[order] - steps).x + steps
    np.testing.assert_allclose(np.asarray(places)[order], told, rtol=0, atol=1e-6)


@given(st.lists(st.tuples(FIGURES, FIGURES), min_size=1, max_size=30), st.booleans())
def test_labels_never_overlap_nor_leave_the_plot(places: list[tuple[float, float]], higher: bool) -> None:
    points = [Point(f"bundle {number}", x, y, (x - 1, x + 1)) for number, (x, y) in enumerate(places)]
    drawn = pareto(points, "ms", "share", higher=higher, title="t")
    height = float(re.findall(r"height:(\d+)px", drawn)[0])
    tops = sorted(float(top) for top in re.findall(r'class="label" style="[^"]*top:(-?[\d.]+)px', drawn))
    assert len(tops) == len(points)
    assert np.all(np.diff(tops) >= LINE - 0.11)
    assert tops[0] >= -0.11
    assert tops[-1] + LINE <= height + 0.11


def test_what_is_not_finite_is_not_drawn(report: BenchReport) -> None:
    assert pareto([Point("a", math.nan, 1.0)], "ms", "share", higher=True, title="t") == ""
    drawn = pareto([Point("a", 1.0, 1.0, (-math.inf, math.inf))], "ms", "share", higher=True, title="t")
    assert 'class="error' not in drawn
    unknown = replace(report.measurements[0].interval, low=-math.inf, high=math.inf)
    page = html_bench(replace(report, measurements=tuple(replace(m, interval=unknown) for m in report.measurements)))
    assert "nan" not in page
    assert "inf%" not in page
