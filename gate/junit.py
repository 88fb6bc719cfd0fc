"""A gate's report as JUnit XML, for the test views of CI systems.

One test case a check. A check that regressed is a failure, one that could not be decided an error: neither is green.
What every check found, also those that pass or have no limit, is in the suite's output. The document keeps to what the
two schemas in use have in common, that of Ant's JUnit task, which asks for more, and that of Jenkins' xunit plugin
(`tests/gate/junit.xsd`).
"""

from __future__ import annotations

import platform
import re
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from planish.gate.checks import Check, Verdict

if TYPE_CHECKING:
    from planish.gate.report import GateReport

__all__ = ["junit"]

_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, section 2.2


def junit(report: GateReport, finished: datetime | None = None) -> str:
    """The report as one XML document, with its declaration; ``finished`` is when the gate ended, by default now."""
    failed = sum(check.required and check.verdict is Verdict.REGRESS for check in report.checks)
    undecided = sum(check.required and check.verdict is Verdict.INCONCLUSIVE for check in report.checks)
    counts = {"tests": str(len(report.checks)), "failures": str(failed), "errors": str(undecided)}
    name, seconds = f"planish gate {report.candidate.name}", f"{report.seconds:.3f}"
    begun = (finished or datetime.now(timezone.utc)) - timedelta(seconds=report.seconds)
    place = {
        "id": "0",
        "package": f"planish.gate.{_text(report.task)}",
        "hostname": _text(platform.node()).strip() or "localhost",
        "timestamp": begun.strftime("%Y-%m-%dT%H:%M:%S"),  # the schema has no time zone; UTC
    }
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(root, "testsuite", {"name": _text(name), **place, **counts, "skipped": "0"})
    suite.set("time", seconds)
    facts = {
        "verdict": str(report.verdict),
        "candidate": report.candidate.digest,
        "baseline": report.baseline.digest,
        "baseline_name": report.baseline.name,
        "data": str(report.data.get("name")),
        "seed": str(report.seed),
        **({"notes": "; ".join(report.notes)} if report.notes else {}),
    }
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in facts.items():
        ElementTree.SubElement(properties, "property", {"name": key, "value": _text(value)})
    for check in report.checks:
        _add(suite, check, report.task)
    told = [
        f"{check.name}: {check.verdict if check.required else 'reported'}: {check.reason}" for check in report.checks
    ]
    ElementTree.SubElement(suite, "system-out").text = _text("\n".join(told))
    ElementTree.SubElement(suite, "system-err").text = ""
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _add(suite: ElementTree.Element, check: Check, task: str) -> None:
    place = {"classname": f"planish.gate.{task}", "name": _text(check.name), "time": "0"}
    case = ElementTree.SubElement(suite, "testcase", place)
    words = {Verdict.REGRESS: "failure", Verdict.INCONCLUSIVE: "error"}
    kind = words.get(check.verdict) if check.required else None
    if kind is not None:
        found = ElementTree.SubElement(case, kind, {"type": str(check.verdict), "message": _text(check.reason)})
        found.text = _text(check.reason)


def _text(words: str) -> str:
    """``words`` without the characters no XML document may hold; an exception's message may have any."""
    return _FORBIDDEN.sub("\ufffd", words)
