"""What a caller may ask of a decoder, checked once: prompts as text or ids, lengths, seeds, stop strings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from planish.errors import RequestError, nearest
from planish.runtime.sample import IntArray, Sampling
from planish.runtime.text import TextEncoder

__all__ = [
    "Options",
    "Prompts",
    "Request",
    "check_count",
    "check_ids",
    "check_lengths",
    "check_options",
    "check_seeds",
    "check_stops",
    "read_prompts",
]

Prompts = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | NDArray[Any]
"""One prompt or several, as text or as token ids."""

MAX_STOPS, MAX_STOP_LENGTH = 64, 4096


class Options(TypedDict, total=False):
    """The keywords of ``generate``, for type checkers."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float | None
    repetition_penalty: float
    seed: int | Sequence[int] | None
    stop: str | Sequence[str]
    logprobs: bool


@dataclass(frozen=True)
class Request:
    """A generation request after validation; ``seeds`` has one entry a prompt, ``single`` tells what to answer with."""

    prompts: tuple[IntArray, ...]
    single: bool
    max_new_tokens: int
    sampling: Sampling
    seeds: tuple[int | None, ...]
    stops: tuple[str, ...]
    logprobs: bool
    streaming: bool


def read_prompts(prompts: Prompts, encoder: TextEncoder, vocab_size: int) -> tuple[tuple[IntArray, ...], bool]:
    """``(ids of each prompt, whether one bare prompt was given)``. Raises RequestError for anything else."""
    if isinstance(prompts, str):
        return (_encode(encoder, [prompts])[0],), True
    if not _is_list(prompts) or isinstance(prompts, (bytes, bytearray)):
        raise _not_prompts(type(prompts).__name__)
    if len(prompts) == 0:
        raise RequestError("at least one prompt of at least one token", "an empty list", "leave the call out")
    if all(isinstance(prompt, str) for prompt in prompts):
        return tuple(_encode(encoder, [str(prompt) for prompt in prompts])), False
    if all(isinstance(prompt, Integral) for prompt in prompts):
        return (check_ids(prompts, vocab_size, 0),), True
    return tuple(check_ids(prompt, vocab_size, index) for index, prompt in enumerate(prompts)), False


def _is_list(value: Any) -> bool:
    """A sequence with a length: an array of no axes is an ndarray too, and has none."""
    return isinstance(value, Sequence) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _encode(encoder: TextEncoder, texts: list[str]) -> list[IntArray]:
    return [np.array(encoding.ids, np.int64) for encoding in encoder.encode(texts)]


def _not_prompts(got: str) -> RequestError:
    return RequestError("text, a list of texts, token ids, or lists of token ids", got, "pass one of these, unmixed")


def check_ids(ids: Any, vocab_size: int, index: int) -> IntArray:
    """Token ids as an int64 array ``[tokens]``; raises RequestError if they are not ids of this vocabulary."""
    if isinstance(ids, str) or not _is_list(ids):
        raise _not_prompts(f"{type(ids).__name__} among other prompts")
    if len(ids) == 0:
        raise RequestError("at least one token in every prompt", f"prompt {index} has none", "leave it out")
    if isinstance(ids, np.ndarray):
        good = ids.ndim == 1 and np.issubdtype(ids.dtype, np.integer)
    else:
        good = all(isinstance(i, Integral) and not isinstance(i, bool) for i in ids)
    if not good:
        raise RequestError("token ids as whole numbers", f"other values in prompt {index}", "pass a flat list of ids")
    for bad in (int(min(ids)), int(max(ids))):
        if not 0 <= bad < vocab_size:
            raise RequestError(f"token ids in 0..{vocab_size - 1}", f"{bad} in prompt {index}", "use its own tokenizer")
    return np.array(ids, np.int64)


def check_options(names: Iterable[str]) -> None:
    """Raises RequestError for the first name that is no keyword of ``generate``, with the nearest one."""
    known = (*Options.__annotations__, "stream")
    for name in names:
        if name not in known:
            raise RequestError("options of generate()", repr(name), nearest(name, known))


def check_count(name: str, value: Any, low: int = 1) -> int:
    """``value`` as an int of at least ``low``; raises RequestError."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
        raise RequestError(f"{name} as a whole number >= {low}", repr(value), f"pass {name}={max(low, 128)}, say")
    return int(value)


def check_lengths(prompts: Sequence[IntArray], max_new_tokens: int, max_length: int) -> None:
    """Raises RequestError if a prompt, or a prompt and its answer, are longer than the model can take."""
    for index, prompt in enumerate(prompts):
        room = max_length - prompt.size
        if room < 1:
            expected = f"a prompt of at most {max_length - 1} tokens (the limit, prompt and answer, is {max_length})"
            raise RequestError(expected, f"{prompt.size} tokens in prompt {index}", "shorten the prompt")
        if room < max_new_tokens:
            got = f"{prompt.size} + {max_new_tokens} in prompt {index}"
            fix = f"pass max_new_tokens={room} or less, or shorten the prompt"
            raise RequestError(f"prompt and new tokens of at most {max_length}", got, fix)


def check_seeds(seed: Any, count: int) -> tuple[int | None, ...]:
    """One seed a prompt: the same for all (an int), each its own (a sequence), or fresh ones (None)."""
    if seed is None:
        return (None,) * count
    seeds = (seed,) * count if isinstance(seed, Integral) else seed
    if isinstance(seeds, str) or not _is_list(seeds) or len(seeds) != count:
        raise RequestError(f"one seed, or one for each of {count} prompts", repr(seed), "pass seed=0, say")
    for one in seeds:
        if isinstance(one, bool) or not isinstance(one, Integral) or one < 0:
            raise RequestError("a seed as a whole number >= 0", repr(one), "pass seed=0, say")
    return tuple(int(one) for one in seeds)


def check_stops(stop: Any) -> tuple[str, ...]:
    """Stop strings as a tuple; raises RequestError for empty ones, too many, or too long ones."""
    stops = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, Sequence) or not all(isinstance(s, str) for s in stops):
        raise RequestError("stop strings (str)", type(stop).__name__, 'pass stop=["\\n"], say')
    if any(not s for s in stops):
        raise RequestError("stop strings of at least one character", "an empty one", "leave it out")
    if len(stops) > MAX_STOPS or any(len(s) > MAX_STOP_LENGTH for s in stops):
        got = f"{len(stops)} of up to {max(map(len, stops))}"
        raise RequestError(f"at most {MAX_STOPS} stop strings of {MAX_STOP_LENGTH} characters", got, "pass fewer")
    return tuple(stops)
