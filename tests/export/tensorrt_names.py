"""Which names of TensorRT's Python interface our sources use, read from the sources themselves.

The builder's stand in the protocols of ``export/tensorrt_api.py``, to which mypy holds it. The runtime's are read from
its attribute accesses: what follows ``module.``, ``engine.``, ``context.`` and so on.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

__all__ = ["ROOT", "builder_names", "optional_names", "runtime_names", "spelled"]

ROOT = Path(__file__).resolve().parents[2]
OWN = {"Enumeration"}
CLASSES = {"TargetedConfig": "IBuilderConfig"}
"""Protocols that are not called as TensorRT calls the class."""
OBJECTS = {
    "runtime/plan.py": {
        "engine": "ICudaEngine",
        "context": "IExecutionContext",
        "_runtime": "Runtime",
        "config": "IRuntimeConfig",
    },
    "runtime/kernel_cache.py": {"config": "IRuntimeConfig", "_cache": "IRuntimeCache"},
}
"""What the variables of a file are."""
OURS = {"value", "name"}
"""Attributes every pybind11 enumeration has."""


def tree(path: str | Path) -> ast.Module:
    """The syntax of a source file."""
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def protocols() -> Iterator[ast.ClassDef]:
    """The protocols of the builder."""
    for node in tree("export/tensorrt_api.py").body:
        if isinstance(node, ast.ClassDef) and node.name not in OWN:
            yield node


def members(node: ast.ClassDef) -> Iterator[str]:
    """The names a protocol declares."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef):
            yield item.name
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            yield item.target.id


def builder_names() -> set[str]:
    """Dotted names of the builder, such as ``IBuilderConfig.progress_monitor``, optional ones too."""
    found = set()
    for node in protocols():
        name = "" if node.name == "Module" else CLASSES.get(node.name, node.name) + "."
        found |= {name + member for member in members(node) if not member.startswith("__")}
    return found


def optional_names() -> set[str]:
    """Names that not every release has: those that the sources ask for by ``hasattr``, and what hangs on them."""
    found = {f"IBuilderConfig.{name}" for node in protocols() if node.name in CLASSES for name in members(node)}
    for path in OBJECTS:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hasattr":
                found |= {item.value for item in node.args if isinstance(item, ast.Constant)}
    return found


def chain(node: ast.AST) -> list[str]:
    """``self._module.TensorIOMode.INPUT`` as a list of words; empty for what does not start with a name."""
    words: list[str] = []
    while isinstance(node, ast.Attribute):
        words.append(node.attr)
        node = node.value
    return [node.id, *reversed(words)] if isinstance(node, ast.Name) else []


def aliases(source: ast.Module) -> dict[str, str]:
    """Local names for an enumeration: ``graphs = self._module.CudaGraphStrategy``."""
    found = {}
    for node in ast.walk(source):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            words = [word for word in chain(node.value) if word != "self"]
            if len(words) == 2 and words[0] in ("module", "_module"):
                found[node.targets[0].id] = words[1]
    return found


def runtime_names() -> set[str]:
    """Dotted names of the runtime, such as ``IExecutionContext.execute_async_v3``."""
    found = set()
    for path, objects in OBJECTS.items():
        source = tree(path)
        known = {**objects, **aliases(source)}
        for node in ast.walk(source):
            words = [word for word in chain(node) if word != "self"]
            if len(words) >= 2 and words[0] in ("module", "_module"):
                found.add(".".join(words[1:]))
            elif len(words) >= 2 and words[0] in known and words[1] not in OURS:
                found.add(f"{known[words[0]]}.{words[1]}")
    return {name for name in found if "__" not in name}


def spelled() -> dict[str, set[str]]:
    """Every attribute and every string in the files that speak to TensorRT, by file."""
    files = [path for path in (ROOT / "export").glob("*.py") if "planish.export.tensorrt_" in path.read_text("utf-8")]
    files += [ROOT / "export" / "tensorrt_api.py", *(ROOT / path for path in OBJECTS)]
    return {
        str(path.relative_to(ROOT)): {
            node.attr if isinstance(node, ast.Attribute) else str(node.value)
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Attribute) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
        }
        for path in files
    }
