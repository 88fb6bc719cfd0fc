"""Text to token ids: the model's own tokenizer.json, with padding and truncation of our own.

A tokenizer.json is a program from outside: it may ask for padding to two thousand million tokens, hold a regular
expression that panics, or a chain of replacements that grows the text without bound. So its padding and truncation
are switched off, its replacements are bounded, and a panic (which is no Exception) becomes a typed error. Nothing is
set on the tokenizer after loading, so threads may share it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from planish.errors import BundleError, HostError, RequestError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

__all__ = ["MAX_TOKENIZER_BYTES", "TextEncoder", "load_tokenizer", "special_tokens", "uses_types"]

MAX_TOKENIZER_BYTES = 128 << 20
"""The largest tokenizers in use (256 k tokens with merges) take about 35 MB."""

MAX_GROWTH = 64
"""Product of the lengths of all replacement texts of a normalizer; real ones stay at 1 or 3."""

TextOrPair = str | tuple[str, str]


class TextEncoder:
    """Encodes texts and pairs of texts, and names the model's special tokens. Safe to share between threads.

    ``typed`` says whether the model was trained with the tokenizer's token types; else they are all 0.
    """

    def __init__(self, tokenizer: Tokenizer, special: Mapping[str, str], typed: bool = True) -> None:
        self.tokenizer = tokenizer
        self.special = dict(special)
        self.typed = typed

    def encode(self, texts: Sequence[TextOrPair]) -> list[Encoding]:
        """One encoding a text, whole: not truncated, not padded. Raises RequestError for what is not text."""
        for index, text in enumerate(texts):
            _check_text(text, index)
        try:
            if len(texts) == 1:
                one = texts[0]
                encodings = [self.tokenizer.encode(one) if isinstance(one, str) else self.tokenizer.encode(*one)]
            else:
                encodings = self.tokenizer.encode_batch(list(texts))
        except BaseException as error:
            _raise_unless_ours(error)
            raise RequestError("text this tokenizer can take", _first_line(error), "try other text") from None
        for index, encoding in enumerate(encodings):
            if not len(encoding):
                raise RequestError("text of at least one token", f"text {index} has none", "leave it out")
        return encodings

    def token_id(self, role: str) -> int | None:
        """The id of a special token by its role (``mask_token``), None when the tokenizer has none."""
        token = self.special.get(role)
        found = None if token is None else self.tokenizer.token_to_id(token)
        return None if found is None else int(found)


def load_tokenizer(data: bytes) -> Tokenizer:
    """A tokenizer from the bytes of tokenizer.json. Raises BundleError for other bytes, HostError with no library."""
    if len(data) > MAX_TOKENIZER_BYTES:
        raise BundleError(f"tokenizer.json of at most {MAX_TOKENIZER_BYTES} bytes", f"{len(data)}", "export again")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise HostError("the tokenizers library", str(error), "pip install tokenizers") from error
    try:
        tokenizer = Tokenizer.from_buffer(data)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        state = tokenizer.normalizer.__getstate__() if tokenizer.normalizer is not None else b"null"
    except BaseException as error:
        _raise_unless_ours(error)
        raise BundleError("a tokenizer.json", _first_line(error), "export the bundle again") from None
    _check_growth(state)
    return tokenizer


def special_tokens(*files: bytes | None) -> dict[str, str]:
    """Special tokens by role from tokenizer_config.json and special_tokens_map.json (either may be missing).

    >>> special_tokens(b'{"mask_token": {"content": "[MASK]"}, "model_max_length": 512}', None)
    {'mask_token': '[MASK]'}
    """
    found: dict[str, str] = {}
    for data in files:
        for key, value in _object(data).items():
            content = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(content, str):
                found.setdefault(key, content)
    return found


def uses_types(config: bytes | None) -> bool:
    """Whether tokenizer_config.json lets token types reach the model; it does unless its input names leave them out.

    >>> uses_types(None), uses_types(b'{"model_input_names": ["input_ids", "attention_mask"]}')
    (True, False)
    """
    names = _object(config).get("model_input_names")
    return not isinstance(names, list) or "token_type_ids" in names


def _object(data: bytes | None) -> dict[str, Any]:
    if data is None:
        return {}
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError("JSON in the tokenizer's files", str(error), "export the bundle again") from error
    return value if isinstance(value, dict) else {}


def _check_text(text: object, index: int) -> None:
    parts = text if isinstance(text, tuple) and len(text) == 2 else (text,)
    for part in parts:
        if not isinstance(part, str):
            raise RequestError("text (str) or a pair of texts", f"{type(part).__name__} at {index}", "pass strings")
        try:
            part.encode("utf-8")
        except UnicodeEncodeError:
            got = f"half a surrogate pair in text {index}"
            raise RequestError("text that UTF-8 can hold", got, "decode it with errors='replace'") from None


def _check_growth(state: bytes | str) -> None:
    """Refuses normalizers that multiply the text: ten replacements of one letter by ten make 10**10 letters."""
    growth = 1
    for part in _walk(json.loads(state)):
        if part.get("type") in ("Replace", "Prepend"):
            growth *= max(1, len(str(part.get("content", part.get("prepend", "")))))
    if growth > MAX_GROWTH:
        got = f"replacements that may grow it {growth}-fold"
        raise BundleError("a normalizer that keeps the text's size", got, "do not use this bundle")


def _walk(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from _walk(item)
    elif isinstance(value, list):
        for item in value:
            yield from _walk(item)


def _raise_unless_ours(error: BaseException) -> None:
    """Re-raises what a tokenizer cannot have caused; a Rust panic arrives as a BaseException of its own."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
