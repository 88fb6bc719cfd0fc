"""The device a baseline file holds for: its parts, its digest, and how two of them differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import onnxruntime
import pytest

from planish import runtime
from planish.gate.clock import environment
from planish.gate.conditions import power_mode
from planish.gate.fingerprint import Fingerprint, engine_of, fingerprint_of
from tests.runtime.fake_cuda import FakeCudart

MakeBundle = Callable[..., Path]
HERE = Fingerprint("a cpu", "x86_64", None, None, None, "CPUExecutionProvider", "1.26.0", "2.0.0", 1, "MAXN")


def test_a_model_on_the_cpu(make_bundle: MakeBundle) -> None:
    with runtime.load(make_bundle("new"), "cpu") as model:
        found, again = fingerprint_of(model, "cpu", 1), fingerprint_of(model, "cpu", 1)
    seen = environment()
    assert found == again
    assert (found.cpu, found.machine) == (seen["cpu"], seen["machine"])
    assert (found.onnxruntime, found.numpy) == (onnxruntime.__version__, numpy.__version__)
    assert (found.engine, found.threads, found.power_mode) == ("CPUExecutionProvider", 1, power_mode())
    assert (found.gpu, found.compute_capability, found.driver) == (None, None, None)


def test_a_model_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCudart(sm="8.7", driver=12060, name="Fake Orin")
    monkeypatch.setattr("planish.runtime.cuda.load_cudart", lambda: cuda)
    model: Any = SimpleNamespace(device="CUDAExecutionProvider", engine_id=None)
    found = fingerprint_of(model, "cuda:0", None)
    assert (found.gpu, found.compute_capability, found.driver) == ("Fake Orin", "8.7", "12.6")
    assert (found.engine, found.threads) == ("CUDAExecutionProvider", None)
    cuda.devices = 0
    assert fingerprint_of(model, "cuda:0", None).gpu is None, "another maker's device has none of these"


def test_an_engine_is_module_and_version_wherever_it_was_built() -> None:
    names = (runtime.engine_id("tensorrt_rtx", "1.7.1.116", [sm], profile) for sm, profile in
             (("8.9", "rtx-4090"), ("12.0", "my-sm-profile")))  # fmt: skip
    models: list[Any] = [SimpleNamespace(device="tensorrt:0", engine_id=name) for name in names]
    assert [engine_of(model) for model in models] == ["tensorrt_rtx-1.7.1.116"] * 2


def test_the_digest_is_that_of_the_canonical_json() -> None:
    text = json.dumps(vars(HERE), sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    assert HERE.digest == hashlib.sha256(text.encode()).hexdigest()[:8]


@pytest.mark.parametrize("name", [field.name for field in fields(Fingerprint)])
def test_every_field_counts(name: str) -> None:
    other = replace(HERE, **{name: 7 if name == "threads" else "another"})
    assert other.digest != HERE.digest
    assert HERE.differences(other) == [(name, getattr(HERE, name), getattr(other, name))]
    assert HERE.differences(replace(HERE)) == []
