"""The linter: what would keep TensorRT from building a graph, or make the engine wrong or slow, and a precision audit.

It reads ONNX with onnx_ir alone (no torch, no transformers, no engine), so it runs where the engine is built. Each rule
has a name, a severity (``error``: it will not build, or builds something wrong; ``warning``: it builds, and is slower
or less exact than it could be), a reason with its source, and a fix. docs/lint.md lists them all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planish import profiles, runtime
from planish.errors import BundleError, PlanishError
from planish.export.audit import Audit, audit, sizes_at
from planish.export.lint_graph import load_graph, malformed
from planish.export.lint_rule import Build, Finding, Rule, Subject
from planish.export.lint_rules_device import RULES as DEVICE
from planish.export.lint_rules_operators import RULES as OPERATORS
from planish.export.lint_rules_precision import RULES as PRECISION
from planish.export.lint_rules_quantizers import RULES as QUANTIZERS
from planish.export.lint_rules_weights import RULES as WEIGHTS
from planish.profiles.schema import Profile

__all__ = ["RULES", "Build", "Finding", "LintReport", "Rule", "lint_bundle", "lint_model", "table"]

RULES: Mapping[str, Rule] = {**OPERATORS, **QUANTIZERS, **WEIGHTS, **PRECISION, **DEVICE}
"""Every rule by its name."""
SHOWN = 3  # findings of one rule that are printed; --json has all


@dataclass(frozen=True)
class LintReport:
    """What was found in one graph. ``ok`` is True when no rule of severity ``error`` is broken."""

    path: Path
    profile: str | None
    findings: tuple[Finding, ...]
    audit: Audit
    not_checked: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        return not any(finding.severity == "error" for finding in self.findings)

    @property
    def broken(self) -> list[str]:
        """Names of the rules that are broken, each once, in the order of the registry."""
        found = {finding.rule for finding in self.findings}
        return [name for name in RULES if name in found]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        return {
            "path": str(self.path),
            "profile": self.profile,
            "ok": self.ok,
            "findings": [finding.to_json() for finding in self.findings],
            "not_checked": list(self.not_checked),
            "audit": self.audit.to_json(),
        }

    def lines(self) -> list[str]:
        """All of it for a person."""
        counts = Counter(finding.severity for finding in self.findings)
        head = f"{self.path}: {counted(counts['error'], 'error')}, {counted(counts['warning'], 'warning')}"
        lines = [head + (f" on {self.profile}" if self.profile else "")]
        for name in self.broken:
            lines += folded(name, [finding for finding in self.findings if finding.rule == name])
        if self.not_checked:
            lines.append(
                f"not checked: {', '.join(self.not_checked)} (they need a profile, or are asked before a build)"
            )
        return lines + self.audit.lines()


def counted(number: int, word: str) -> str:
    """
    >>> counted(1, "error"), counted(2, "error")
    ('1 error', '2 errors')
    """
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def folded(name: str, findings: list[Finding]) -> list[str]:
    """One rule's findings in a few lines."""
    first = findings[0]
    lines = [f"{first.severity} {name}: {first.reason}", f"  fix: {first.fix}"]
    lines += [f"  at {finding.node}: {finding.reason.split(': ')[0]}" for finding in findings[:SHOWN]]
    return lines + ([f"  and {len(findings) - SHOWN} more"] if len(findings) > SHOWN else [])


def lint_model(
    path: Path, profile: Profile | None = None, *, build: Build | None = None, max_length: int | None = None
) -> LintReport:
    """Judge the ONNX file at ``path``.

    With a ``profile`` the rules of its device apply, and the audit looks at its opt shapes (else at batch 8, 128
    tokens, 256 in the cache); with ``build`` those of the build to come. ``max_length`` is the longest input the model
    takes, in tokens. Raises ``InputError`` if the file is no readable ONNX model. Of external data only scales, zero
    points and what masks are made of are read.
    """
    facts = load_graph(Path(path))
    try:
        return judged(Subject(facts, profile, build), max_length)
    except PlanishError:
        raise
    except Exception as error:
        wrong = malformed(facts)  # a node without its inputs, an attribute of another type: the file's fault
        if wrong is None:
            raise
        raise wrong from error


def judged(subject: Subject, max_length: int | None) -> LintReport:
    """All rules that apply, and the audit."""
    facts = subject.facts
    facts.sizes = sizes_at(facts, subject.profile, max_length)[-1]
    skipped = tuple(name for name, rule in RULES.items() if not applies(rule, subject))
    findings = tuple(
        found for name, rule in RULES.items() if name not in skipped for found in rule.findings(name, subject)
    )
    told = audit(facts.path, subject, max_length)
    return LintReport(facts.path, subject.profile.name if subject.profile else None, findings, told, skipped)


def lint_bundle(bundle: Path, profile: Profile | None = None) -> LintReport:
    """Judge the qdq graph of a bundle, by default for the profile it was exported for.

    Raises ``BundleError`` if the bundle is damaged or has no such graph.
    """
    manifest = runtime.verify(bundle)
    if "qdq" not in manifest.dialects:
        have = ", ".join(manifest.dialects)
        raise BundleError(f"a qdq graph in {bundle}", have, "export with a profile that has TensorRT, e.g. rtx-4090")
    if profile is None and manifest.profile in profiles.names():
        named = profiles.load(manifest.profile)
        profile = named if named.gpu is not None else None
    return lint_model(bundle / manifest.dialects["qdq"].path, profile, max_length=manifest.max_length)


def applies(rule: Rule, subject: Subject) -> bool:
    """What the rule looks at is there."""
    if rule.needs == "build":
        return subject.build is not None
    return rule.needs == "graph" or subject.profile is not None or subject.build is not None


def table() -> list[str]:
    """All rules as the lines of a Markdown table (docs/lint.md)."""
    head = ["| rule | severity | what it asks | why, and how it is known | fix |", "|---|---|---|---|---|"]
    return head + [
        f"| `{name}` | {rule.severity} | {rule.what} | {rule.why} | {rule.fix} |" for name, rule in RULES.items()
    ]
