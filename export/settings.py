"""Single settings out of config.json and its kin, checked: a damaged file is named with the key that is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planish.errors import CheckpointError

__all__ = ["limit", "refuse", "token", "tokens", "whole"]

_COPY = "copy it from the original checkpoint again"


def refuse(expected: str, key: str, value: Any, file: str = "config.json") -> CheckpointError:
    """The error for a ``value`` of ``key`` that is not what was ``expected``."""
    got = "none" if value is None else repr(value)[:80]
    return CheckpointError(f"{expected} as {key} in {file}", got, _COPY)


def whole(settings: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A whole number of at least 1; ``default`` where there is none."""
    value = settings.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or value < 1:
        raise refuse("a whole number of at least 1", key, value)
    return value


def limit(settings: Mapping[str, Any], key: str, file: str) -> float | None:
    """A length in tokens; None where there is none (tokenizers without one say 1e30)."""
    value = settings.get(key)
    if not value:
        return None
    if type(value) not in (int, float) or not value >= 1:
        raise refuse("a number of tokens", key, value, file)
    return float(value)


def token(settings: Mapping[str, Any], key: str, file: str = "config.json") -> int | None:
    """The id of a special token; None where there is none."""
    value = settings.get(key)
    if value is not None and type(value) is not int:
        raise refuse("a token id", key, value, file)
    return value


def tokens(settings: Mapping[str, Any], key: str, file: str = "config.json") -> list[int]:
    """Ids of special tokens, given as one or as a list."""
    value = settings.get(key)
    found = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(one) is not int for one in found):
        raise refuse("token ids", key, value, file)
    return found
