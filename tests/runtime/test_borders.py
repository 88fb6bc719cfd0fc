"""The device half stands alone: no torch, transformers, onnx, pydantic or hub; importing it loads next to nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import planish.runtime
from tests.blocked import run_without

FORBIDDEN = (
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "pydantic",
    "huggingface_hub",
    "safetensors",
    "scipy",
)

RUN = """
import planish.runtime
import json
before = sorted(sys.modules)
model = planish.runtime.load(sys.argv[1])
answer = model.classify("the whale")[0].label
print(json.dumps([before, sorted(sys.modules), answer]))
"""


def test_a_bundle_runs_without_the_workshop(tiny: Callable[..., Any]) -> None:
    path = tiny("text-classification", 2, labels=["a", "b"]).path
    done = run_without(FORBIDDEN, RUN, path)
    assert done.returncode == 0, done.stderr
    before, after, answer = json.loads(done.stdout)
    assert answer in "ab"
    assert not {"numpy", "onnxruntime", "tokenizers"} & set(before)
    assert {"numpy", "onnxruntime", "tokenizers"} <= set(after)
    assert not {name.split(".")[0] for name in after} & set(FORBIDDEN)


def test_public_names_are_there_and_are_not_modules() -> None:
    for name in planish.runtime.__all__:
        value = getattr(planish.runtime, name)
        assert callable(value), name
        assert value.__module__.startswith("planish.runtime."), name
    assert sorted(planish.runtime.__all__) == planish.runtime.__all__
    with pytest.raises(AttributeError, match="nothing"):
        _ = planish.runtime.nothing
