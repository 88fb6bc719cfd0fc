"""Raw inputs, checked against the manifest before an engine sees them.

ONNX Runtime wraps a token id of -1, takes sequences of length 0, answers NaN to a mask without a one and reads an array
of the other byte order as if it were this machine's; a mask longer than its cache reads memory that is not there. Here
each is a RequestError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planish.errors import RequestError, nearest
from planish.runtime.manifest import TensorInfo

__all__ = ["Limits", "check_inputs"]

Arrays = Mapping[str, NDArray[np.generic]]

MAY_BE_EMPTY = frozenset({"past"})
"""Dynamic axes of which 0 is a size: the past of a prompt."""

KEEP = "logits_to_keep"
"""A decoder's optional input. Its graph asks only whether it is 1, so any other number would mean all positions."""


@dataclass(frozen=True)
class Limits:
    """What inputs have to fit in; None means not known.

    ``generation``: a decoder, its mask covers the past. ``padding_anywhere``: of the ``qdq`` dialect, whose mask may
    have zeros before ones.
    """

    vocab_size: int
    max_length: int
    type_vocab_size: int | None = None
    generation: bool = False
    padding_anywhere: bool = False


def check_inputs(
    inputs: Arrays, expected: Sequence[TensorInfo], optional: Sequence[TensorInfo], limits: Limits
) -> None:
    """Raises RequestError for the first thing that does not fit.

    Names (``optional`` ones may be left out), dtypes and byte order, ranks, sizes, axes of the same name, token ids,
    token types, masks, ``logits_to_keep`` and lengths.
    """
    if not isinstance(inputs, Mapping):
        got, fix = type(inputs).__name__, 'pass {"input_ids": ...}, say'
        raise RequestError("inputs as a mapping of names to numpy arrays", got, fix)
    known = {info.name: info for info in (*expected, *optional)}
    for name in inputs:
        if name not in known:
            raise RequestError("known input names", repr(name), nearest(str(name), known))
    for info in expected:
        if info.name not in inputs:
            given = ", ".join(sorted(inputs)) or "nothing"
            raise RequestError(f"the input {info.name!r}", given, f"add {info.name}, {info.dtype} {list(info.shape)}")
    axes: dict[str, tuple[int, str]] = {}
    for name, array in inputs.items():
        _check_tensor(array, known[name], axes)
    _check_values(inputs, limits)
    _check_lengths({axis: size for axis, (size, _) in axes.items()}, limits)


def _check_tensor(array: NDArray[np.generic], info: TensorInfo, axes: dict[str, tuple[int, str]]) -> None:
    name = info.name
    if not isinstance(array, np.ndarray):
        raise RequestError(
            f"a numpy array for {name}", type(array).__name__, f"np.asarray(value, dtype=np.{info.dtype})"
        )
    if array.dtype.name != info.dtype:
        raise RequestError(f"{info.dtype} for {name}", array.dtype.name, f"{name}.astype(np.{info.dtype})")
    if not array.dtype.isnative:  # its name is the same
        got = f"the other byte order, {array.dtype.str}"
        raise RequestError(
            f"{info.dtype} for {name} in this machine's byte order", got, f"{name}.astype(np.{info.dtype})"
        )
    if array.ndim != len(info.shape):
        raise RequestError(
            f"{name} of shape {list(info.shape)}", f"{list(array.shape)}", f"give it {len(info.shape)} axes"
        )
    for size, wanted in zip(array.shape, info.shape, strict=True):
        if isinstance(wanted, int):
            if size != wanted:
                raise RequestError(f"{name} of shape {list(info.shape)}", f"{list(array.shape)}", f"make it {wanted}")
            continue
        if size < 1 and wanted not in MAY_BE_EMPTY:
            raise RequestError(f"at least 1 in {wanted} of {name}", f"shape {list(array.shape)}", "leave the call out")
        seen, where = axes.setdefault(wanted, (size, name))
        if size != seen:
            got = f"{size} in {name}, {seen} in {where}"
            raise RequestError(f"one size of {wanted} in all inputs", got, "pad them to the same shape")


def _check_values(inputs: Arrays, limits: Limits) -> None:
    bounds = [("input_ids", limits.vocab_size), ("token_type_ids", limits.type_vocab_size)]
    if limits.generation:
        new = inputs["input_ids"].shape[1] if "input_ids" in inputs else None
        bounds += [("position_ids", limits.max_length), ("logits_index", new)]
    for name, size in bounds:
        ids = inputs.get(name)
        if ids is None:
            continue
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or (size is not None and high >= size):
            got = low if low < 0 else high
            limit = "at least 0" if size is None else f"in 0..{size - 1}"
            fix = "count from 0" if name in ("position_ids", "logits_index") else "use the bundle's own tokenizer"
            raise RequestError(f"{name} {limit}", str(got), fix)
    mask = inputs.get("attention_mask")
    if mask is not None:
        _check_mask(mask, limits.generation and not limits.padding_anywhere)
    keep = inputs.get(KEEP)
    if keep is not None and not bool(((keep == 0) | (keep == 1)).all()):
        fix = "1 gives the logits of each row's last token, 0 those of all"
        raise RequestError(f"0 or 1 for {KEEP}", " ".join(map(str, keep.flat)), fix)


def _check_mask(mask: NDArray[np.generic], right_padded: bool) -> None:
    ones = mask == 1
    if not bool((ones | (mask == 0)).all()):
        raise RequestError("only 0 and 1 in attention_mask", "other values", "1 for tokens, 0 for padding")
    empty = ~ones.any(axis=1)
    if bool(empty.any()):
        got = f"row {int(np.argmax(empty))} without any"
        raise RequestError("a 1 in every row of attention_mask", got, "leave empty rows out")
    if right_padded and bool((ones[:, 1:] & ~ones[:, :-1]).any()):
        raise RequestError("attention_mask padded on the right", "a 0 before a 1", "put the padding at the end")


def _check_lengths(sizes: Mapping[str, int], limits: Limits) -> None:
    for axis in ("sequence", "total"):
        if sizes.get(axis, 0) > limits.max_length:
            fix = "truncate or split the text"
            raise RequestError(f"at most {limits.max_length} tokens", f"{sizes[axis]} in {axis}", fix)
    if limits.generation and {"total", "past", "sequence"} <= sizes.keys():
        needed = sizes["past"] + sizes["sequence"]
        if sizes["total"] != needed:
            got = f"{sizes['total']} for {sizes['past']} + {sizes['sequence']}"
            raise RequestError("attention_mask over past and new tokens", got, f"make it {needed} wide")
