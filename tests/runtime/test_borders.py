"""The device half stands alone: no torch, transformers, onnx, pydantic or hub; importing it loads next to nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import planish.runtime

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
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in FORBIDDEN:
            raise ImportError(name + " is not for the device")
sys.meta_path.insert(0, Block())
import planish.runtime
import json
before = sorted(sys.modules)
model = planish.runtime.load(sys.argv[1])
answer = model.classify("the whale")[0].label
print(json.dumps([before, sorted(sys.modules), answer]))
""".replace("FORBIDDEN", repr(FORBIDDEN))


def test_a_bundle_runs_without_the_workshop(tiny: Callable[..., Any]) -> None:
    path = tiny("text-classification", 2, labels=["a", "b"]).path
    done = subprocess.run([sys.executable, "-c", RUN, str(path)], capture_output=True, text=True, check=False)
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
