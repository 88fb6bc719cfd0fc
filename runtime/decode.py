"""JSON objects into frozen dataclasses: the type hints are the schema.

Understood hints: ``str``, ``int``, ``float``, ``bool``, ``Any``, ``X | None``, ``Literal[...]``, ``tuple[X, ...]``,
``Mapping[str, X]``, unions of simple types, and dataclasses. Unknown keys are refused with the nearest known one; a
bool is not an int.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from planish.errors import BundleError, nearest

__all__ = ["decode", "encode"]

T = TypeVar("T")


def decode(kind: type[T], value: Any, where: str) -> T:
    """``value`` (parsed JSON) as an instance of the dataclass ``kind``.

    Raises BundleError naming the place (``where``, then the path of keys) of the first thing that does not fit.
    """
    return typing.cast("T", _decode(kind, value, where))


def encode(value: Any) -> Any:
    """The JSON form of a decoded value: dataclasses and mappings become dicts, tuples become lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    return value


def _decode(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _decode_object(kind, value, where)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType or origin is typing.Union:
        return _decode_union(args, value, where)
    if origin is typing.Literal:
        if value not in args or isinstance(value, bool) != any(isinstance(arg, bool) for arg in args):
            raise _wrong(where, " or ".join(repr(arg) for arg in args), value)
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise _wrong(where, "a list", value)
        return tuple(_decode(args[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping) or any(not isinstance(key, str) for key in value):
            raise _wrong(where, "an object", value)
        return {key: _decode(args[1], item, f"{where}.{key}") for key, item in value.items()}
    return _decode_plain(kind, value, where)


def _decode_plain(kind: Any, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not _fits_a_float(value):
            raise _wrong(where, "a finite number", value)
        return value
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _wrong(where, _WORDS.get(kind, str(kind)), value)
    return value


def _fits_a_float(value: float) -> bool:
    """JSON spells integers of any size, and Python reads them."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _decode_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    rest = [kind for kind in kinds if kind is not types.NoneType]
    for kind in rest[:-1]:
        if isinstance(kind, type) and isinstance(value, kind) and not isinstance(value, bool):
            return value
    return _decode(rest[-1], value, where)


def _decode_object(kind: Any, value: Any, where: str) -> Any:
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise _wrong(where, "an object", value)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in value:
        if key not in fields:
            raise BundleError(f"only known keys in {where}", f"{key!r}", nearest(str(key), fields))
    hints = typing.get_type_hints(kind)
    given = {}
    for name, field in fields.items():
        if name in value:
            given[name] = _decode(hints[name], value[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise BundleError(
                f"the key {name!r} in {where}", f"only {', '.join(sorted(map(str, value)))}", "export again"
            )
    return kind(**given)


_WORDS = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}


def _wrong(where: str, expected: str, value: Any) -> BundleError:
    shown = repr(value)
    return BundleError(
        f"{expected} at {where}", shown if len(shown) <= 60 else shown[:57] + "...", "export the bundle again"
    )
