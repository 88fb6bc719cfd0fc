"""Arrays of a JSON file: ``float32:`` or another type's name, then base64 of the little-endian numbers; lossless."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["pack", "unpack_floats", "unpack_integers"]

FLOATS, INTEGERS = ("float32", "float64"), ("int32", "int64")


def pack(values: NDArray[Any]) -> str:
    """A one-dimensional array in the narrower of the two types of its kind, if that loses nothing.

    >>> pack(np.array([1.0, 0.5])), pack(np.array([7]))
    ('float32:AACAPwAAAD8=', 'int32:BwAAAA==')
    """
    kinds = FLOATS if np.issubdtype(values.dtype, np.floating) else INTEGERS
    with np.errstate(over="ignore"):  # too large a number becomes an infinity, and takes the wider type
        kind = next((name for name in kinds if np.array_equal(values.astype(name), values)), kinds[-1])
    little = values.astype(np.dtype(kind).newbyteorder("<"))
    return f"{kind}:{base64.b64encode(little.tobytes()).decode('ascii')}"


def unpack_floats(text: str) -> NDArray[np.float64]:
    """The numbers, all finite. Raises ValueError."""
    values = unpack(text, FLOATS).astype(np.float64)
    if not np.all(np.isfinite(values)):
        raise ValueError("numbers that are not finite")
    return values


def unpack_integers(text: str) -> NDArray[np.int64]:
    """The numbers. Raises ValueError."""
    return unpack(text, INTEGERS).astype(np.int64)


def unpack(text: str, kinds: tuple[str, ...]) -> NDArray[Any]:
    kind, colon, body = text.partition(":")
    if not colon or kind not in kinds:
        raise ValueError(f"no array of {' or '.join(kinds)}: {text[:20]!r}")
    try:
        data = base64.b64decode(body, validate=True)
    except ValueError as error:  # binascii.Error is one
        raise ValueError(f"base64 that is none: {error}") from None
    return np.frombuffer(data, dtype=np.dtype(kind).newbyteorder("<"))
