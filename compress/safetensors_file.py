"""Check a safetensors file before torch maps it.

The format (https://github.com/huggingface/safetensors#format): 8 bytes little-endian header length, a JSON header of
``name -> {dtype, shape, data_offsets}``, then the data, which the offsets must cover without gap or overlap. A
truncated file would otherwise fail deep inside a loader, or on first touch of the mapped memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from planish.errors import CheckpointError

__all__ = ["TensorInfo", "byte_count", "read_header"]

TensorInfo = tuple[str, tuple[int, ...]]
"""dtype and shape, as the header spells them."""

_MAX_HEADER = 100_000_000
_SIZES = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Names, dtypes and shapes of the tensors in ``path``, after checking that every byte of them is there.

    Raises:
        CheckpointError: the file is cut, too long, or its header is not one.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise _broken(path, f"a file of {size} bytes that cannot hold its header")
        raw = file.read(length)
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_doubles)
        header.pop("__metadata__", None)
        spans = sorted(_span(name, entry) for name, entry in header.items())
        result = {name: (str(entry["dtype"]), tuple(entry["shape"])) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _broken(path, f"a header that is not one ({str(error)[:120]})") from None
    end = 0
    for begin, stop in spans:
        if begin != end:
            raise _broken(path, "tensors that overlap or leave gaps")
        end = stop
    if 8 + length + end != size:
        raise _broken(path, f"{size} bytes where its header promises {8 + length + end}")
    return result


def byte_count(info: TensorInfo) -> int:
    """Bytes of a tensor with this dtype and shape.

    >>> byte_count(("BF16", (3, 5)))
    30
    """
    dtype, shape = info
    return (math.prod(shape) * _SIZES[dtype] + 7) // 8


def _span(name: str, entry: dict[str, Any]) -> tuple[int, int]:
    begin, end = entry["data_offsets"]
    shape = entry["shape"]
    if not all(type(n) is int and n >= 0 for n in (begin, end, *shape)) or entry["dtype"] not in _SIZES:
        raise ValueError(f"tensor {name!r}")
    if end - begin != byte_count((entry["dtype"], tuple(shape))):
        raise ValueError(f"tensor {name!r} has a wrong length")
    return begin, end


def _no_doubles(pairs: list[tuple[Hashable, Any]]) -> dict[Hashable, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name appears twice")
    return result


def _broken(path: Path, got: str) -> CheckpointError:
    return CheckpointError(f"a whole safetensors file at {path}", got, "download or copy it again")
