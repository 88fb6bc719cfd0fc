"""What the gate may import: the device has numpy and the runtime, nothing else."""

from __future__ import annotations

import importlib
import subprocess
import sys

from planish import gate

BLOCKED = ("torch", "transformers", "onnx", "pydantic", "huggingface_hub", "scipy", "sklearn", "pandas",
           "sacrebleu", "rouge_score")  # fmt: skip

SCRIPT = f"""
import importlib, pkgutil, sys
for name in {BLOCKED!r}:
    sys.modules[name] = None  # importing it raises ImportError
import planish.gate
for module in pkgutil.iter_modules(planish.gate.__path__):
    importlib.import_module(f"planish.gate.{{module.name}}")
print(" ".join(sorted(name for name in sys.modules if name.startswith("planish.gate."))))
"""


def test_every_module_imports_without_the_heavy_libraries() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "planish.gate.verdict" in done.stdout


def test_importing_the_package_loads_none_of_it() -> None:
    code = "import sys, planish.gate; print([m for m in sys.modules if m.startswith(('planish.gate.', 'numpy'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_there_and_no_module_hides_one() -> None:
    for name in gate.__all__:
        assert getattr(gate, name) is not None
    for home in set(gate._HOMES.values()):
        importlib.import_module(f"planish.gate.{home}")
    assert all(callable(getattr(gate, name)) for name in gate.__all__)
    assert set(gate.__all__) == set(gate._HOMES)
