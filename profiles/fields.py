"""Reads one YAML mapping field by field; whatever does not fit is a ``ProfileError`` naming the place and the fix."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection

from planish.errors import ProfileError, nearest

__all__ = ["Section"]


def shown(value: object) -> str:
    """A value as an error message may show it: one short line, whatever its size."""
    text = "nothing" if value is None else reprlib.repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class Section:
    """A mapping with known keys, at ``where`` (a dotted path) in the file ``origin``.

    Raises ``ProfileError`` if ``value`` is no mapping or has a key that is not ``known``.
    """

    def __init__(self, value: object, where: str, known: Collection[str], origin: str) -> None:
        self.where, self.origin = where, origin
        if not isinstance(value, dict):
            raise ProfileError(
                f"a mapping{self.place('')}", shown(value), f"write `key: value` lines; {nearest('', known)}"
            )
        for key in value:
            if key not in known:
                fix = nearest(key, known) if isinstance(key, str) else f"known: {', '.join(sorted(known))}"
                raise ProfileError(f"a known key{self.place('')}", f"the key {shown(key)}", fix)
        self.values = value

    def path(self, key: str) -> str:
        """The dotted path of ``key``."""
        return f"{self.where}.{key}".strip(".")

    def place(self, key: str) -> str:
        """Where a key stands, for a message."""
        path = self.path(key)
        return f" at `{path}` in {self.origin}" if path else f" in {self.origin}"

    def wrong(self, key: str, expected: str, fix: str) -> ProfileError:
        """The error for the value of ``key``."""
        return ProfileError(f"{expected}{self.place(key)}", shown(self.values.get(key)), fix)

    def has(self, key: str) -> bool:
        """Whether ``key`` is there with a value."""
        return self.values.get(key) is not None

    def section(self, key: str, known: Collection[str]) -> Section:
        """The mapping under ``key``."""
        return Section(self.values.get(key), self.path(key), known, self.origin)

    def sections(self, key: str, known: Collection[str]) -> list[Section]:
        """The mappings in the list under ``key``; empty if absent."""
        items = self.items(key, "a list of mappings", "write one `- key: value` block an entry")
        return [Section(item, f"{self.path(key)}[{index}]", known, self.origin) for index, item in enumerate(items)]

    def items(self, key: str, expected: str, fix: str) -> list[object]:
        """The list under ``key``; empty if absent."""
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(key, expected, fix)
        return value

    def text(self, key: str) -> str:
        """A text that is not empty. YAML reads a bare ``8.7`` or ``no`` as something else: such values need quotes."""
        value = self.values.get(key)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(key, "a text", f'write `{key}: "..."` with quotes')
        return value

    def optional_text(self, key: str) -> str | None:
        """A text, or None if absent."""
        return self.text(key) if self.has(key) else None

    def choice(self, key: str, known: Collection[str]) -> str:
        """One of ``known``."""
        value = self.text(key)
        if value not in known:
            raise self.wrong(key, "a known word", nearest(value, known))
        return value

    def texts(self, key: str, known: Collection[str] | None = None) -> tuple[str, ...]:
        """A list of different texts, each one of ``known`` if given; empty if absent."""
        values = self.items(key, "a list of texts", f"write `{key}: [a, b]`")
        for value in values:
            if not isinstance(value, str) or not value.strip():
                raise ProfileError(f"a list of texts{self.place(key)}", shown(value), "put quotes around it")
            if known is not None and value not in known:
                raise ProfileError(f"known words{self.place(key)}", shown(value), nearest(value, known))
        texts = tuple(str(value) for value in values)
        if len(set(texts)) != len(texts):
            raise self.wrong(key, "each word once", "remove the repeated one")
        return texts

    def integer(self, key: str, minimum: int = 1) -> int:
        """A whole number from ``minimum`` on."""
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.wrong(key, f"a whole number from {minimum} on", f"write `{key}: {minimum}` or more")
        return value

    def optional_integer(self, key: str, minimum: int = 1) -> int | None:
        """A whole number from ``minimum`` on, or None if absent."""
        return self.integer(key, minimum) if self.has(key) else None

    def optional_number(self, key: str) -> float | None:
        """A finite number above 0, or None if absent."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise self.wrong(key, "a number above 0", f"write `{key}: 1.5`, or leave it out")
        try:
            return float(value)
        except OverflowError:
            raise self.wrong(key, "a number a float can hold", f"write `{key}: 1.5`, or leave it out") from None

    def span(self, key: str, minimum: int) -> tuple[int, int, int] | None:
        """Three rising whole numbers ``[min, opt, max]``, or None if absent."""
        values = self.items(key, "three numbers [min, opt, max]", f"write `{key}: [1, 8, 32]`")
        if not self.has(key):
            return None
        numbers = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
        if len(values) != 3 or len(numbers) != 3 or not minimum <= numbers[0] <= numbers[1] <= numbers[2]:
            raise self.wrong(
                key, f"three rising numbers [min, opt, max] from {minimum} on", f"write `{key}: [1, 8, 32]`"
            )
        return numbers[0], numbers[1], numbers[2]
