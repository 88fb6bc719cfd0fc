"""Turn pydantic's errors into one line with the nearest known key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import ValidationError

from planish.errors import nearest

__all__ = ["explain"]


def explain(error: ValidationError, where: str, known: Mapping[tuple[str, ...], Iterable[str]]) -> tuple[str, str, str]:
    """(expected, got, fix) of the first problem; ``known`` lists the keys allowed at each place."""
    first = error.errors(include_url=False)[0]
    location = tuple(str(part) for part in first["loc"])
    place, key = location[:-1], location[-1] if location else ""
    dotted = ".".join(location)
    keys = list(known.get(place, ()))
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"a known key in {where}", repr(dotted), nearest(key, keys) if keys else "remove it"
    if first["type"] in ("missing", "missing_argument"):
        return f"key {dotted!r} in {where}", "none", f"add '{dotted}: ...'"
    message = first["msg"].removeprefix("Value error, ")
    return (
        f"a valid {dotted!r} in {where} ({message[:1].lower() + message[1:]})",
        repr(first["input"])[:80],
        "correct it",
    )
