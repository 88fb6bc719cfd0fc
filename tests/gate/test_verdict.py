"""The whole gate on toy bundles: it passes the same model, and it can fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planish.gate import gate

MakeBundle = Callable[..., Path]
TASKS = ["text-classification", "token-classification", "feature-extraction", "question-answering", "fill-mask", "text-generation"]


@pytest.mark.parametrize("task", TASKS)
def test_the_same_model_passes(make_bundle: MakeBundle, step_clock: Any, task: str) -> None:
    report = gate(make_bundle("new", task), make_bundle("old", task), clock=step_clock)
    assert report.verdict == "pass", report.to_markdown()
    assert report.exit_code == 0
    assert len(report.latency) == 2  # two shapes, or two phases
