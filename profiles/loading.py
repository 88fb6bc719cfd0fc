"""Finds profiles by name or path and reads their YAML strictly.

Strict: safe scalars only, a key once, no anchors, aliases, merge keys or explicit tags. A profile needs none of
them, and without them a small file cannot stand for a large one.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from planish.errors import ProfileError, nearest

from .parsing import parse
from .schema import Profile

__all__ = ["load", "loads", "names"]

MAX_BYTES = 1 << 18


class StrictLoader(yaml.SafeLoader):
    """``SafeLoader`` that refuses what a profile has no use for."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # types-PyYAML leaves it open
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.constructor.ConstructorError(None, None, "anchors and aliases are not taken", event.start_mark)
        if getattr(event, "tag", None) is not None:
            raise yaml.constructor.ConstructorError(None, None, "tags are not taken", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            word = key.value if isinstance(key, yaml.ScalarNode) else None
            if word is None or key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key.start_mark)
            if word in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{word}' stands twice", key.start_mark)
            seen.add(word)
        return super().construct_mapping(node, deep=deep)


def loads(text: str, origin: str = "the profile") -> Profile:
    """The profile in a YAML text; ``origin`` names it in messages. Raises ``ProfileError``."""
    try:
        value = yaml.load(text, Loader=StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" (line {mark.line + 1})" if mark else ""
        raise ProfileError(
            f"a readable YAML profile in {origin}", f"{error.problem}{line}", "mend that line"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: impossible dates and numbers of thousands of digits; RecursionError: thousands of brackets.
        got = f"{type(error).__name__}: {str(error)[:80]}"
        raise ProfileError(f"a readable YAML profile in {origin}", got, "start from a shipped profile") from error
    return parse(value, origin)


def names() -> list[str]:
    """The names of the shipped profiles, sorted."""
    return sorted(entry.name[:-5] for entry in shelf() if entry.name.endswith(".yaml"))


def shelf() -> list[Any]:
    """What lies next to this module."""
    return list(resources.files(__package__ or "planish.profiles").iterdir())


def load(name_or_path: str | os.PathLike[str]) -> Profile:
    """A shipped profile by name, or one of your own by path (with a folder or ``.yaml`` in it).

    Raises ``ProfileError``: no such name, unreadable file, YAML or contents that do not fit.
    """
    wanted = os.fspath(name_or_path)
    if wanted in names():
        return shipped(wanted)
    if (
        isinstance(name_or_path, str)
        and "/" not in wanted
        and os.sep not in wanted
        and not wanted.endswith((".yaml", ".yml"))
    ):
        raise ProfileError("a shipped profile or a path to a YAML file", repr(wanted), nearest(wanted, names()))
    return loads(read(Path(wanted)), wanted)


@cache
def shipped(name: str) -> Profile:
    """A shipped profile; parsed once, since it cannot change."""
    text = (resources.files(__package__ or "planish.profiles") / f"{name}.yaml").read_text(encoding="utf-8")
    return loads(text, f"profile {name}")


def read(path: Path) -> str:
    """The text of a file, which must be UTF-8 and small."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise ProfileError(
            "a profile file", f"{path}: {reason}", "check the path, or see `planish profiles list`"
        ) from error
    if len(data) > MAX_BYTES:
        raise ProfileError(f"a profile of at most {MAX_BYTES} bytes", f"{path}: more", "give a profile's YAML file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ProfileError(
            "a UTF-8 text file", f"{path}: {error.reason} at byte {error.start}", "save it as UTF-8"
        ) from error
