"""Token ids outside tokenizer.json: config.json, generation_config.json, and the tokenizer's other files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from planish.compress.trim_tokenizer import Trimmed, kind_of, tokens_of
from planish.errors import CheckpointError

__all__ = ["named_ids", "read_json", "renamed", "rewritten"]

Change = Callable[[int], "int | None"]
_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")
"""Tokens a model must not say: one that is gone need not be named."""
_MUST = ("forced_decoder_ids", "force_words_ids")
_DROPPED = ("vocab.json", "merges.txt", "vocab.bpe", "encoder.json", "bpe.codes", "dict.txt")
"""What slow tokenizers read; tokenizer.json says it all."""


def named_ids(config: dict[str, Any]) -> set[int]:
    """Token ids a config needs: ``pad_token_id`` and its kind (an int or a list), and what it forces to be said."""
    found: set[int] = set()

    def note(number: int) -> int:
        found.add(number)
        return number

    renamed({key: value for key, value in config.items() if _is_id(key) or key in _MUST}, note)
    return found


def renamed(config: dict[str, Any], change: Change) -> dict[str, Any]:
    """The entries of ``config`` that hold token ids, each put through ``change``; None = that token is gone."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if value is None:
            continue
        if key == "forced_decoder_ids":
            found[key] = [[place, _map(number, change)] for place, number in value]
        elif key == "sequence_bias" and isinstance(value, list):
            moved = [[_map(ids, change), bias] for ids, bias in value]
            found[key] = [[ids, bias] for ids, bias in moved if ids is not None]
        elif _is_id(key) or key in _LISTS or key in _MUST:
            found[key] = _map_all(value, change)
    return found


def _is_id(key: str) -> bool:
    return key.endswith(("_token_id", "_token_ids"))


def _map_all(value: Any, change: Change) -> Any:
    """``value`` is an id, or a list of ids or of lists of them; of a list, what is gone is left out."""
    if isinstance(value, list):
        moved = [_map(item, change) for item in value]
        return [item for item in moved if item is not None]
    return _map(value, change)


def _map(value: Any, change: Change) -> Any:
    """An id, or a list in which all must be there."""
    if isinstance(value, list):
        moved = [_map(item, change) for item in value]
        return None if None in moved else moved
    return change(value) if isinstance(value, int) and not isinstance(value, bool) else value


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file.

    Raises:
        CheckpointError: it holds none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"JSON in {path.name}", str(error)[:120], "download or copy it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"a JSON object in {path.name}", type(content).__name__, "download or copy it again")
    return content


def rewritten(folder: Path, trimmed: Trimmed, change: Change) -> dict[str, bytes | None]:
    """The files in ``folder`` that say something of token ids, as they are after trimming; None = to be left out.

    ``change`` gives the new id of an old one.
    """
    files: dict[str, bytes | None] = {"tokenizer.json": _bytes(trimmed.json)}
    for path in sorted(folder.iterdir()):
        if path.name in _DROPPED or path.suffix == ".model":
            files[path.name] = None
        elif path.name == "vocab.txt":
            files[path.name] = _lines(trimmed)
        elif path.name == "added_tokens.json":
            moved = {token: change(number) for token, number in read_json(path).items()}
            files[path.name] = _bytes({token: number for token, number in moved.items() if number is not None})
        elif path.name == "generation_config.json":
            config = read_json(path)
            files[path.name] = _bytes({**config, **renamed(config, change)})
        elif path.name == "tokenizer_config.json":
            files[path.name] = _bytes(_tokenizer_config(read_json(path), change))
    return files


def _tokenizer_config(config: dict[str, Any], change: Change) -> dict[str, Any]:
    config = {**config, **renamed(config, change)}
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        moved = [(change(int(number)), token) for number, token in decoder.items()]
        config["added_tokens_decoder"] = {str(number): token for number, token in moved if number is not None}
    return config


def _lines(trimmed: Trimmed) -> bytes | None:
    """vocab.txt, a token a line; of BPE, whose vocab.txt is another kind of file, nothing."""
    if kind_of(trimmed.json) not in ("WordLevel", "WordPiece"):
        return None
    tokens = tokens_of(trimmed.json)
    return "".join(f"{token}\n" for token in sorted(tokens, key=tokens.__getitem__)).encode("utf-8")


def _bytes(content: Any) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode("utf-8")
