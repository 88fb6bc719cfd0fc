"""Trim the vocabulary of a ``tokenizer.json``: JSON in, JSON out, ids compacted in their order.

Kept are the tokens given, all special and added tokens, what post-processor and padding name, the alphabet (so that any
text still has tokens) and what the algorithm needs to cut the given tokens out of text as before: see ``trim_bpe``,
``trim_unigram`` and ``trim_wordpiece``. Nothing else of the file changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from planish.compress import trim_bpe, trim_unigram, trim_wordpiece
from planish.compress.trim_bpe import Merges
from planish.errors import CheckpointError, RecipeError

__all__ = ["Trimmed", "kind_of", "tokens_of", "trim", "unknown_id"]

_KINDS = ("BPE", "Unigram", "WordLevel", "WordPiece")
_UNUSED = re.compile(r"\[unused\d+\]|<unused\d+>")
_STARTS = ("\u0120", "\u2581")  # the space before a word, as byte-level BPE and SentencePiece write it
_REPORT = "report this bug, with the tokenizer's name"
Json = dict[str, Any]


@dataclass(frozen=True)
class Trimmed:
    """The rewritten tokenizer.json, and the former id of each token: sorted, one a new id."""

    json: Json
    keep: list[int]


def trim(tokenizer_json: Json, used_ids: Iterable[int], fill: int | None = None, multiple: int = 1) -> Trimmed:
    """Cut the vocabulary of a tokenizer down to ``used_ids`` and what has to stay with them.

    Args:
        used_ids: what the corpus is tokenized into, and other ids to keep.
        fill: keep at least so many tokens. Whole words are added first, then pieces, numbers and marks; of each the
            lowest ids, which in most vocabularies are the most frequent.
        multiple: of how many tokens the size is to be a multiple (if there are enough), filled up likewise.

    Raises:
        RecipeError: the tokenizer is none of BPE, Unigram, WordLevel, WordPiece.
        CheckpointError: ids the tokenizer does not have, or added tokens in between the others.
    """
    kind, model = kind_of(tokenizer_json), tokenizer_json["model"]
    tokens = tokens_of(tokenizer_json)
    merges = Merges(model) if kind == "BPE" else None
    known = set(tokens.values())
    wanted = set(used_ids) | _required(tokenizer_json, tokens) | _alphabet(kind, model)
    if not wanted <= known:
        got = f"id {min(wanted - known)}"
        raise CheckpointError(f"ids of the tokenizer's {len(known)} tokens", got, "check the tokenizer's files")
    closure = merges.closure if merges else set
    kept = closure(wanted)
    target = max(fill or 0, len(kept))
    _fill_up(kept, _fillers(kind, model, tokens), closure, target + -target % multiple)
    keep = sorted(kept)
    new = {old: number for number, old in enumerate(keep)}
    rewritten = {**tokenizer_json, "model": _model(kind, model, merges, new)}
    rewritten["added_tokens"] = [
        {**entry, "id": new[tokens[entry["content"]]]} for entry in tokenizer_json.get("added_tokens") or []
    ]
    _check_added(rewritten)
    if tokenizer_json.get("post_processor"):
        rewritten["post_processor"] = _post_processor(tokenizer_json["post_processor"], new.__getitem__)
    if tokenizer_json.get("padding"):
        rewritten["padding"] = {**tokenizer_json["padding"], "pad_id": new[_pad_id(tokenizer_json, tokens)]}
    return Trimmed(rewritten, keep)


def kind_of(tokenizer_json: Json) -> str:
    """``BPE``, ``Unigram``, ``WordLevel`` or ``WordPiece``; files older than the key "type" are known by their others.

    Raises:
        RecipeError: another kind of model.
    """
    model = tokenizer_json.get("model")
    kind = model.get("type") if isinstance(model, dict) else type(model).__name__
    if isinstance(model, dict) and kind is None:
        kind = _guess(model)
    if kind not in _KINDS:
        fix = "take the pass trim-vocabulary out of the recipe"
        raise RecipeError(f"a tokenizer of one of {', '.join(_KINDS)}", f"a model {str(kind)[:40]!r}", fix)
    return str(kind)


def _guess(model: Json) -> str | None:
    if "merges" in model:
        return "BPE"
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    return "WordPiece" if "max_input_chars_per_word" in model else "WordLevel" if "vocab" in model else None


def tokens_of(tokenizer_json: Json) -> dict[str, int]:
    """Token -> id, added tokens included. A token of both lists has the id of the model's."""
    vocabulary = tokenizer_json["model"]["vocab"]
    if isinstance(vocabulary, list):
        vocabulary = {entry[0]: number for number, entry in enumerate(vocabulary)}
    added = {entry["content"]: entry["id"] for entry in tokenizer_json.get("added_tokens") or []}
    return {**added, **vocabulary}


def unknown_id(tokenizer_json: Json) -> int | None:
    """The id that stands for what has no token; None where there is none."""
    model = tokenizer_json["model"]
    if kind_of(tokenizer_json) == "Unigram":
        number = model.get("unk_id")
        return None if number is None else int(number)
    return tokens_of(tokenizer_json).get(model.get("unk_token") or "")


def _required(tokenizer_json: Json, tokens: dict[str, int]) -> set[int]:
    """Ids the file itself names: added, unknown, padding, and what the post-processor puts around a text."""
    found = {tokens[entry["content"]] for entry in tokenizer_json.get("added_tokens") or []}
    unknown = unknown_id(tokenizer_json)
    if unknown is not None:
        found.add(unknown)
    if tokenizer_json.get("padding"):
        found.add(_pad_id(tokenizer_json, tokens))

    def note(number: int) -> int:
        found.add(number)
        return number

    _post_processor(tokenizer_json.get("post_processor") or {}, note)
    return found


def _pad_id(tokenizer_json: Json, tokens: dict[str, int]) -> int:
    """The id padding writes; where it is no token's, that of the token it names."""
    padding = tokenizer_json["padding"]
    number = int(padding["pad_id"])
    return number if number in tokens.values() else tokens.get(padding["pad_token"], number)


def _alphabet(kind: str, model: Json) -> set[int]:
    if kind == "BPE":
        return trim_bpe.characters(model)
    if kind == "Unigram":
        return trim_unigram.characters(model) | {trim_unigram.lowest(model)}
    return trim_wordpiece.characters(model) if kind == "WordPiece" else set()


def _fillers(kind: str, model: Json, tokens: dict[str, int]) -> list[int]:
    """Whole words first: one that falls into pieces means something else to the model, a piece less so."""
    prefix = trim_wordpiece.prefix_of(model) if kind == "WordPiece" else ""

    def later(token: str) -> bool:
        if kind in ("BPE", "Unigram"):
            return not (token[:1] in _STARTS and token[1:].isalpha())
        return not token.isalpha() or (prefix != "" and token.startswith(prefix))

    ranked = sorted((later(token), number) for token, number in tokens.items() if not _UNUSED.fullmatch(token))
    return [number for _, number in ranked]


def _fill_up(kept: set[int], order: list[int], closure: Callable[[Iterable[int]], set[int]], target: int) -> None:
    """Add tokens in ``order``, each with what it needs, where that fits into ``target`` tokens."""
    for number in order:
        if len(kept) >= target:
            return
        if number not in kept:
            missing = closure((number,)) - kept
            if len(kept) + len(missing) <= target:
                kept |= missing


def _model(kind: str, model: Json, merges: Merges | None, new: dict[int, int]) -> Json:
    """The model with the kept tokens only, in the order of their ids (transformers counts entries)."""
    if kind == "Unigram":
        vocabulary = [entry for number, entry in enumerate(model["vocab"]) if number in new]
        unknown = model.get("unk_id")
        return {**model, "vocab": vocabulary, "unk_id": None if unknown is None else new[unknown]}
    pairs = sorted((number, token) for token, number in model["vocab"].items() if number in new)
    trimmed = {**model, "vocab": {token: new[number] for number, token in pairs}}
    return trimmed if merges is None else {**trimmed, "merges": merges.among(set(new))}


def _check_added(tokenizer_json: Json) -> None:
    """Tokens outside the model's vocabulary are counted on from its size when the file is read, whatever it says."""
    vocabulary = tokenizer_json["model"]["vocab"]
    model = {entry[0] for entry in vocabulary} if isinstance(vocabulary, list) else set(vocabulary)
    outside = [entry["id"] for entry in tokenizer_json["added_tokens"] if entry["content"] not in model]
    if outside != list(range(len(model), len(model) + len(outside))):
        got = f"ids {outside[:4]} beside {len(model)} tokens"
        raise CheckpointError("added tokens that follow the others, in order", got, _REPORT)


def _post_processor(node: Json, change: Callable[[int], int]) -> Json:
    """``node`` with every token id put through ``change``."""
    kind = node.get("type")
    if kind == "Sequence":
        return {**node, "processors": [_post_processor(part, change) for part in node["processors"]]}
    if kind == "TemplateProcessing":
        special = {
            name: {**entry, "ids": [change(number) for number in entry["ids"]]}
            for name, entry in node["special_tokens"].items()
        }
        return {**node, "special_tokens": special}
    if kind in ("BertProcessing", "RobertaProcessing"):
        ends = {key: [node[key][0], change(node[key][1])] for key in ("sep", "cls")}
        return {**node, **ends}
    return node
