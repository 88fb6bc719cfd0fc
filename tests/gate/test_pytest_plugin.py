"""The plugin in a suite of a user's: a test that gates, and every way it does not pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest_plugins = ["pytester"]
MakeBundle = Callable[..., Path]

APPLICATION = """
import pytest

from planish import runtime


def mood(path, text):
    with runtime.load(path) as model:
        return model.classify([text])[0].label


def test_it_answers():
    assert mood("new", "a good film") == "positive"


def test_it_is_as_good(planish_gate):
    planish_gate("new", data="reviews.jsonl", latency=False)
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, make_bundle: MakeBundle, reviews: Path) -> pytest.Pytester:
    """A folder with a good candidate, a bad one, a baseline, data, and the application's tests."""
    make_bundle("new", seed=1, noise=0.01).rename(pytester.path / "new")
    make_bundle("bad", seed=1, noise=3.0).rename(pytester.path / "bad")
    make_bundle("old").rename(pytester.path / "old")
    reviews.rename(pytester.path / "reviews.jsonl")
    pytester.makepyfile(APPLICATION)
    return pytester


def run(suite: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return suite.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist", *arguments)


def test_an_application_is_gated(suite: pytest.Pytester) -> None:
    run(suite, "--planish-baseline", "old").assert_outcomes(passed=2)


def test_a_regress_fails_with_its_reasons_and_the_report(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        test_bad="def test_bad(planish_gate):\n    planish_gate('bad', data='reviews.jsonl', latency=False)"
    )
    found = run(suite, "--planish-baseline", "old", "test_bad.py", "--junitxml", "results.xml")
    found.assert_outcomes(failed=1)
    words = ["planish gate: regress", "*accuracy lost * points*", "*planish gate*", "| check | verdict*"]
    found.stdout.fnmatch_lines(words)
    assert "Traceback" not in found.stdout.str()
    (failure,) = ElementTree.parse(suite.path / "results.xml").iter("failure")
    assert "accuracy lost" in str(failure.get("message"))


def test_without_a_baseline_it_is_skipped(suite: pytest.Pytester) -> None:
    found = run(suite, "-rs")
    found.assert_outcomes(passed=1, skipped=1)
    found.stdout.fnmatch_lines(["*no baseline: give planish_gate one*"])


@pytest.mark.parametrize(("option", "outcome"), [("fail", "failed"), ("skip", "skipped")])
def test_an_open_question_is_not_green(suite: pytest.Pytester, option: str, outcome: str) -> None:
    """Three texts prove little."""
    suite.makepyfile(
        test_few="def test_few(planish_gate):\n"
        "    planish_gate('new', 'old', texts=['a film', 'the sea', 'a ship'], latency=False)"
    )
    found = run(suite, "--planish-inconclusive", option, "test_few.py", "-rs")
    found.assert_outcomes(**{outcome: 1})
    found.stdout.fnmatch_lines(["*planish gate: inconclusive*"])


def test_a_marker_gives_defaults_and_the_call_has_the_last_word(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        test_marked="import pytest\n"
        "pytestmark = pytest.mark.planish_gate(data='reviews.jsonl', latency=False, max_bytes=10, baseline='old')\n"
        "def test_ten_bytes(planish_gate):\n"
        "    planish_gate('new')\n"
        "def test_more(planish_gate):\n"
        "    report = planish_gate('new', max_bytes=10**6)\n"
        "    assert report.verdict == 'pass'\n"
    )
    found = run(suite, "--strict-markers", "test_marked.py")
    found.assert_outcomes(passed=1, failed=1)
    found.stdout.fnmatch_lines(["size * bytes; at most 10"])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("planish_gate('none', 'old')", "planish gate: expected *none*"),
        ("planish_gate('new', 'old', max_los=1.0)", "planish_gate takes data, *; got max_los"),
        ("planish_gate('new', 'old', max_loss_points=-1.0)", "planish gate: expected max_loss_points from 0 to 100*"),
    ],
)
def test_bad_input_is_one_line(suite: pytest.Pytester, call: str, words: str) -> None:
    suite.makepyfile(test_call=f"def test_call(planish_gate):\n    {call}")
    found = run(suite, "test_call.py")
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines([words])
