"""The rules of CONTRIBUTING.md hold: folders, packaging table, import borders, exports, sizes."""

from __future__ import annotations

import ast
import importlib
import os
import sys
from pathlib import Path

import pytest

from tests.blocked import run_without

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads pyproject.toml")

ROOT = Path(__file__).resolve().parents[2]
HALVES = ["compress", "export", "gate", "profiles", "recipes", "runtime"]
# who may import whom, besides itself and errors
MAY = {
    "compress": {"recipes"},
    "export": {"runtime", "profiles", "recipes"},
    "gate": {"runtime"},
    "profiles": set(),
    "recipes": set(),
    "runtime": {"profiles"},
}
SHARED = {"compress": {"planish.gate.data", "planish.gate.metrics", "planish.gate.spans"}}
"""Modules of another half that one may import all the same: one reader of labelled data, one set of metrics."""
DEVICE_BANNED = {"torch", "transformers", "onnx", "pydantic", "huggingface_hub"}


def imports_of(file: Path) -> set[str]:
    """Every module named in an import statement of a file, with relative ones made absolute."""
    found = set()
    half = file.relative_to(ROOT).parts[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = f"planish.{half}" if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            found.add(module)
            if module == "planish":
                found |= {f"planish.{alias.name}" for alias in node.names}
    return found


def sources(half: str) -> list[Path]:
    return sorted((ROOT / half).glob("*.py"))


def test_packaging_table_names_every_folder_and_no_other() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert sorted(setup["packages"]) == sorted(["planish", *(f"planish.{half}" for half in HALVES)])
    assert setup["package-dir"] == {"planish": "planish", **{f"planish.{half}": half for half in HALVES}}
    for half in HALVES:
        assert (ROOT / half / "__init__.py").is_file()
        assert os.readlink(ROOT / "planish" / half) == f"../{half}"
        assert not [path for path in (ROOT / half).rglob("*.py") if path.parent != ROOT / half], f"{half} is not flat"


@pytest.mark.parametrize("half", HALVES)
def test_import_borders(half: str) -> None:
    for file in sources(half):
        for module in imports_of(file):
            parts = module.split(".")
            if parts[0] == "planish" and len(parts) > 1 and parts[1] in HALVES:
                shared = module in SHARED.get(half, set())
                assert parts[1] in MAY[half] | {half} or shared, f"{file.name} imports {module}"
            if half in ("runtime", "gate", "profiles"):
                assert parts[0] not in DEVICE_BANNED, f"{file.name} imports {module}"


@pytest.mark.parametrize("half", ["profiles", "runtime", "gate"])
def test_device_halves_import_with_the_rest_blocked(half: str) -> None:
    code = (
        f"import planish.{half} as half\n"
        "[getattr(half, name) for name in half.__all__]\n"
        f"print([name for name in sys.modules if name in {sorted(DEVICE_BANNED)!r}])\n"
    )
    done = run_without(DEVICE_BANNED, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["planish", *(f"planish.{half}" for half in HALVES)])
def test_exports_are_there_and_sorted(name: str) -> None:
    module = importlib.import_module(name)
    assert list(module.__all__) == sorted(set(module.__all__))
    for public in module.__all__:
        assert getattr(module, public) is not None


def test_every_module_has_a_docstring_and_an_export_list() -> None:
    for half in ["planish", *HALVES]:
        for file in sources(half):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            assert ast.get_docstring(tree), f"{half}/{file.name} says nothing of itself"
            names = {
                target.id
                for node in tree.body
                if isinstance(node, ast.Assign)
                for target in node.targets
                if isinstance(target, ast.Name)
            }
            assert "__all__" in names, f"{half}/{file.name} has no __all__"


def test_no_file_above_450_lines() -> None:
    for file in [*ROOT.glob("*/*.py"), *ROOT.glob("tests/*/*.py")]:
        if ".venv" not in file.parts:
            assert len(file.read_text(encoding="utf-8").splitlines()) <= 450, file


def test_every_shipped_recipe_and_profile_loads() -> None:
    from planish import profiles
    from planish.compress import load_recipe

    recipes = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
    assert {"int8", "int4", "int4-round", "int8-weight-only"} <= set(recipes)
    for recipe in recipes:
        assert load_recipe(recipe).name == recipe
    shelf = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))
    assert shelf == sorted(profiles.names())
    for profile in shelf:
        assert profiles.load(profile).name == profile
