"""The gate: is the candidate as accurate, as close to its parent and as fast as the baseline?

Numpy and the runtime suffice; it runs on the device that is judged. `gate` compares two bundles and says pass, regress
or inconclusive; `record_baseline` keeps what one says in a file, to compare with later; `selftest` tries the gate
itself; `bench` measures without judging, and `loadgen` has MLPerf's LoadGen ask one as a service is asked. Names are
loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planish.gate.benchmark import BenchReport, bench
    from planish.gate.checks import Check, Verdict
    from planish.gate.data import Dataset, load_data
    from planish.gate.limits import Limits
    from planish.gate.load_report import LoadReport
    from planish.gate.load_run import loadgen
    from planish.gate.record import record_baseline
    from planish.gate.report import GateReport
    from planish.gate.self_test import SelftestReport, selftest
    from planish.gate.verdict import gate

__all__ = [
    "BenchReport",
    "Check",
    "Dataset",
    "GateReport",
    "Limits",
    "LoadReport",
    "SelftestReport",
    "Verdict",
    "bench",
    "gate",
    "load_data",
    "loadgen",
    "record_baseline",
    "selftest",
]

_HOMES = {
    "BenchReport": "benchmark",
    "Check": "checks",
    "Dataset": "data",
    "GateReport": "report",
    "Limits": "limits",
    "LoadReport": "load_report",
    "SelftestReport": "self_test",
    "Verdict": "checks",
    "bench": "benchmark",
    "gate": "verdict",
    "load_data": "data",
    "loadgen": "load_run",
    "record_baseline": "record",
    "selftest": "self_test",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # No module here may be called like a public name: importing it would hide the function.
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
