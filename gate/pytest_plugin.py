"""A pytest plugin: an application's tests gate the bundle it ships.

::

    def test_our_model_is_as_good_as_last_month(planish_gate):
        planish_gate("models/sentiment.bundle", data="tests/sentiment.jsonl")

    $ pytest --planish-baseline models/last-month.bundle

The fixture `planish_gate` takes the candidate and what `planish.gate.gate` takes; ``limits`` may be given one by one
(``max_loss_points=0.5``). The baseline is the one named in the test or on the command line; without either the test is
skipped. Defaults for a test come from a marker: ``@pytest.mark.planish_gate(latency=False, max_loss_points=1.0)``.

A regress fails the test with the reasons. So does an open question, unless ``--planish-inconclusive=skip``: a gate that
could not decide is not green. The report is shown with the failure, and pytest's own JUnit XML holds the reasons.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from planish.errors import PlanishError

if TYPE_CHECKING:
    from planish.gate.report import GateReport

__all__ = ["planish_gate", "pytest_addoption", "pytest_configure"]

SETTINGS = (
    *("data", "texts", "latency", "seconds", "seed", "shapes", "device", "threads", "across_devices"),
    *("memory", "energy", "clock"),
)
"""Arguments of `planish.gate.gate` that the fixture hands on; all others are limits."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """pytest's hook: the command line."""
    group = parser.getgroup("planish", "gate bundles against a baseline (planish)")
    group.addoption("--planish-baseline", metavar="BUNDLE", help="What planish_gate compares with.")
    group.addoption("--planish-seconds", type=float, metavar="S", help="Time each latency comparison may take.")
    group.addoption(
        "--planish-inconclusive",
        choices=("fail", "skip"),
        default="fail",
        help="What becomes of a test whose gate could not decide (default: fail).",
    )


def pytest_configure(config: pytest.Config) -> None:
    """pytest's hook: the marker."""
    config.addinivalue_line("markers", "planish_gate(**settings): defaults of the fixture planish_gate in this test")


@pytest.fixture
def planish_gate(request: pytest.FixtureRequest) -> Callable[..., GateReport]:
    """``planish_gate(candidate, baseline=None, **settings)``: gate, and fail the test unless it passes."""
    marker = request.node.get_closest_marker("planish_gate")
    defaults: dict[str, Any] = dict(marker.kwargs) if marker else {}
    if request.config.getoption("--planish-seconds") is not None:
        defaults["seconds"] = request.config.getoption("--planish-seconds")

    def judge(candidate: str | Path, baseline: str | Path | None = None, **settings: Any) -> GateReport:
        __tracebackhide__ = True
        against = baseline or {**defaults, **settings}.get("baseline") or _baseline_of(request.config)
        report = _gate(candidate, against, {**defaults, **settings})
        request.node.add_report_section("call", "planish gate", report.to_markdown())
        if report.exit_code:
            words = f"planish gate: {report.verdict}\n" + "\n".join(report.reasons)
            undecided = report.exit_code == 3
            if undecided and request.config.getoption("--planish-inconclusive") == "skip":
                pytest.skip(words)
            pytest.fail(words, pytrace=False)
        return report

    return judge


def _baseline_of(config: pytest.Config) -> Path:
    """The baseline of the command line, relative to where pytest was started."""
    named = config.getoption("--planish-baseline")
    if not named:
        pytest.skip("no baseline: give planish_gate one, or pytest --planish-baseline BUNDLE")
    return Path(config.invocation_params.dir, named)


def _gate(candidate: str | Path, baseline: str | Path, settings: dict[str, Any]) -> GateReport:
    __tracebackhide__ = True
    from planish.gate import Limits, gate

    known = {field.name for field in fields(Limits)}
    limits = {name: value for name, value in settings.items() if name in known}
    handed = {name: value for name, value in settings.items() if name in SETTINGS}
    strange = sorted(set(settings) - set(limits) - set(handed) - {"baseline"})
    if strange:
        pytest.fail(f"planish_gate takes {', '.join([*SETTINGS, *sorted(known)])}; got {strange[0]}", pytrace=False)
    try:
        return gate(candidate, baseline, limits=Limits(**limits), **handed)
    except PlanishError as error:
        pytest.fail(f"planish gate: {error}", pytrace=False)
