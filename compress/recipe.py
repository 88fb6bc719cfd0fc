"""Recipes: a YAML file naming an ordered list of passes, their settings, and the calibration text.

The schema is docs/formats.md, section 3. Each pass's settings are the fields of its dataclass, so the recipe reader
knows no key by itself. Unknown keys, doubled keys and YAML aliases are refused (aliases make a small file expand
without bound).
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Collection, Hashable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from planish import recipes
from planish.compress.passes import Pass, build, pass_names
from planish.compress.validation import explain
from planish.errors import RecipeError, nearest

__all__ = ["Data", "Recipe", "load_recipe", "parse_recipe"]

_MAX_BYTES = 64 * 1024


Length = Annotated[int, Field(ge=8, le=131_072)]


class Data(BaseModel):
    """Calibration text: where it comes from, and how many windows of how many tokens are drawn with which seed.

    Of several lengths, ``samples`` windows are drawn of each. ``train`` and ``validation`` are what a model is trained
    and judged on (JSONL as the gate reads it, or .txt), ``max_length`` the tokens of one example, ``holdout`` the share
    of ``train`` to judge on where ``validation`` is null. ``source: train`` calibrates on the training texts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    source: str = "builtin"
    samples: int = Field(default=128, ge=1, le=100_000)
    sequence_length: Length | Annotated[list[Length], Field(min_length=1, max_length=16)] = 512
    seed: int = Field(default=0, ge=0, lt=2**63)
    train: str | None = None
    validation: str | None = None
    max_length: Length = 128
    holdout: float = Field(default=0.1, gt=0.0, le=0.5)

    @model_validator(mode="after")
    def _train_is_there(self) -> Data:
        if self.validation is not None and self.train is None:
            raise ValueError("validation needs train")
        return self

    @property
    def lengths(self) -> list[int]:
        return self.sequence_length if isinstance(self.sequence_length, list) else [self.sequence_length]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    schema_: Literal[1] = Field(alias="schema")
    name: str = Field(min_length=1, max_length=100)
    description: str = ""
    data: Data = Data()
    passes: list[dict[str, Any]] = Field(min_length=1, max_length=100)

    @field_validator("name", "description")
    @classmethod
    def _one_line(cls, value: str) -> str:
        if not value.isprintable():
            raise ValueError("must be one line of printable characters")
        return value


class Recipe:
    """A validated recipe: ``name``, ``data``, ``passes`` (ready to run), ``text`` as written and ``digest``.

    ``folder`` is where a relative ``data.source`` is looked up. The digest is over the canonical JSON of all settings,
    defaults filled in: comments and key order do not change it.
    """

    def __init__(self, document: _Document, passes: tuple[Pass, ...], text: str, folder: Path) -> None:
        self.name = document.name
        self.description = document.description
        self.data = document.data
        self.passes = passes
        self.text = text
        self.folder = folder

    def on(self, train: str | Path | None, validation: str | Path | None = None, seed: int | None = None) -> Recipe:
        """The same recipe with other data: calibrated on the training texts too, unless it names a text of its own.

        Raises:
            RecipeError: validation data without training data.
        """
        if train is None and validation is not None and self.data.train is None:
            raise RecipeError("training data beside the validation data", "none", "name both, or neither")
        changes: dict[str, Any] = {} if seed is None else {"seed": seed}
        if train is not None:
            changes |= {"train": str(Path(train).resolve()), "validation": None}
            changes |= {"source": "train"} if self.data.source == "builtin" else {}
        if validation is not None:
            changes["validation"] = str(Path(validation).resolve())
        copied = copy.copy(self)
        copied.data = self.data.model_copy(update=changes)
        return copied

    def without(self, index: int) -> Recipe:
        """The same recipe without one of its passes."""
        copied = copy.copy(self)
        copied.passes = self.passes[:index] + self.passes[index + 1 :]
        return copied

    def keeping(self, names: Collection[str], samples: int = 2, length: int = 32) -> Recipe:
        """Only the passes of these names, on very little of the built-in text: for shapes, not for numbers."""
        copied = copy.copy(self)
        copied.passes = tuple(step for step in self.passes if step.name in names)
        copied.data = Data(samples=samples, sequence_length=length)
        return copied

    @property
    def content(self) -> dict[str, Any]:
        """All settings with defaults filled in, as plain JSON values."""
        passes = [{"pass": step.name, **step.settings()} for step in self.passes]
        return {"schema": 1, "name": self.name, "data": self.data.model_dump(), "passes": passes}

    @property
    def digest(self) -> str:
        canonical = json.dumps(self.content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return "sha256:" + hashlib.sha256(canonical.encode("utf-8")).hexdigest()

    def to_json(self) -> dict[str, str]:
        return {"name": self.name, "digest": self.digest, "text": self.text}


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a shipped recipe by name, or a YAML file by path.

    Raises:
        RecipeError: no such recipe, or its content is not one.
    """
    given = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in given or given.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
    else:
        if given not in recipes.names():
            raise RecipeError("the name of a shipped recipe or a path", repr(given), nearest(given, recipes.names()))
        path = recipes.path(given)
    try:
        size = path.stat().st_size
        text = path.read_text(encoding="utf-8") if path.is_file() and size <= _MAX_BYTES else None
    except FileNotFoundError:
        raise RecipeError(f"a recipe file at {path}", "nothing there", "check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"a readable UTF-8 file at {path}", str(error), "check the file") from None
    if text is None:
        raise RecipeError(f"a YAML file of at most {_MAX_BYTES} bytes", f"{path} ({size} bytes)", "name a recipe file")
    return parse_recipe(text, where=str(path), folder=path.resolve().parent)


def parse_recipe(text: str, *, where: str = "recipe", folder: Path | None = None) -> Recipe:
    """Validate recipe text; ``where`` names it in messages.

    Raises:
        RecipeError: not YAML, an unknown or doubled key, or an impossible value.
    """
    raw = _read_yaml(text, where)
    if not isinstance(raw, dict):
        raise RecipeError(f"a mapping in {where}", type(raw).__name__, "start with 'schema: 1'")
    try:
        document = _Document.model_validate(raw)
    except ValidationError as error:
        known = [field.alias or name for name, field in _Document.model_fields.items()]
        raise RecipeError(*explain(error, where, {(): known, ("data",): list(Data.model_fields)})) from None
    passes = tuple(_build(entry, f"{where}: passes[{index}]") for index, entry in enumerate(document.passes))
    return Recipe(document, passes, text, folder or Path.cwd())


def _build(entry: dict[str, Any], where: str) -> Pass:
    name = entry.get("pass")
    if name is None:
        raise RecipeError(f"key 'pass' in {where}", "none", f"known passes: {', '.join(pass_names())}")
    if not isinstance(name, str) or name not in pass_names():
        raise RecipeError(f"the name of a pass in {where}", repr(name), nearest(str(name), pass_names()))
    return build(name, {key: value for key, value in entry.items() if key != "pass"}, where)


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without doubled keys and without aliases."""

    def compose_node(self, parent: yaml.nodes.Node | None, index: Any) -> yaml.nodes.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.constructor.ConstructorError(None, None, "aliases are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.nodes.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            text = str(key.value)
            if text in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {text!r} appears twice", key.start_mark)
            seen.add(text)
        return super().construct_mapping(node, deep)


def _read_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        message = " ".join(str(error).split())[:300]
        raise RecipeError(f"plain YAML in {where}", message, "correct the file") from None
