"""Cut the vocabulary down to what a corpus uses: rows of the token table, of the head, and the tokenizer with them.

Tables are half of a small encoder's bytes. The corpus is tokenized before and after, and the pass ends only if every
text reads the same; its receipt says how text outside the corpus fares.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from planish import recipes
from planish.compress.bench import Bench, Context
from planish.compress.data import read_texts
from planish.compress.passes import Pass
from planish.compress.quiet import quiet
from planish.compress.slicing import cut_vocabulary
from planish.compress.trim_corpus import Ids, encode, outside, prove, reader, same_rows, used_ids
from planish.compress.trim_files import named_ids, read_json, renamed, rewritten
from planish.compress.trim_tokenizer import Json, Trimmed, tokens_of, trim
from planish.compress.write import write_side_files
from planish.errors import CheckpointError, DataError, RecipeError, nearest

if TYPE_CHECKING:
    from planish.compress.examples import Part

__all__ = ["TrimVocabulary"]


@dataclass(frozen=True, kw_only=True)
class TrimVocabulary(Pass):
    """Keep the tokens of ``corpus``, the alphabet, special tokens, and more if asked for.

    ``corpus``: "train" (the texts of data.train), "source" (those of data.source), or a path. ``keep``: tokens to keep
    anyway. ``fill``: at least so many tokens, whole words first, the most frequent first; ``multiple``: round the
    number up likewise.
    """

    name: ClassVar[str] = "trim-vocabulary"
    roles: ClassVar[frozenset[str]] = frozenset()
    kinds: ClassVar[frozenset[str]] = frozenset()
    in_place: ClassVar[bool] = True
    judged: ClassVar[bool] = True

    corpus: str = "train"
    fill: Annotated[int, Field(ge=1)] | None = None
    keep: list[str] = field(default_factory=list)
    multiple: Annotated[int, Field(ge=1, le=1024)] = 1

    def apply(self, bench: Bench, context: Context) -> Bench:
        if self.include or self.exclude:
            got = "include or exclude"
            raise RecipeError(f"pass {self.name} to take the whole table", got, "remove them")
        if bench.stored:
            got = f"{len(bench.stored)} layers quantized by an earlier pass"
            raise RecipeError(f"pass {self.name} before what quantizes", got, "change their order")
        texts = self._texts(context)
        live = context.tokenizer()
        if not getattr(live, "is_fast", False):
            got = f"{type(live).__name__}, which has none"
            raise CheckpointError("a tokenizer with a tokenizer.json", got, "convert it to a fast tokenizer")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            parent = _files(bench, context, live, folder)
            self._trim(bench, context, texts, folder, parent)
        return bench

    def _trim(self, bench: Bench, context: Context, texts: list[str], folder: Path, parent: Json) -> None:
        """Trim the tokenizer whose files lie in ``folder``, prove it, cut the table, prove it again as loaded."""
        rows = _rows(bench)
        live = _backend(context)
        encoded = {"file": encode(reader(parent), texts, _stage(context, "read the corpus"))}
        used = used_ids(parent, texts, encoded["file"])
        if not _same(live, parent):
            encoded["live"] = encode(reader(live), texts, _stage(context, "read the corpus as transformers does"))
            used |= used_ids(live, texts, encoded["live"])
        rows_before, held_out = self._examples(context), self._held_out(context)
        used |= {int(number) for row in rows_before for number in row}
        named = (_named(bench, context) | _below_padding(bench)) & set(tokens_of(parent).values())
        trimmed = trim(parent, used | named | self._kept(parent), self.fill, self.multiple)
        if trimmed.keep[-1] >= rows:
            got = f"token {trimmed.keep[-1]}"
            raise CheckpointError(f"a row for every token of the tokenizer, in {rows}", got, "check the tokenizer")
        prove(reader(trimmed.json), trimmed.keep, texts, encoded["file"], _stage(context, "prove"))
        before = bench.bytes()
        _install(bench, folder, trimmed, rows)
        if not (_same(live, parent) and _same(_backend(context), trimmed.json)):
            ids = encoded.get("live", encoded["file"])
            prove(reader(_backend(context)), trimmed.keep, texts, ids, _stage(context, "prove as loaded"))
        same_rows(trimmed.keep, rows_before, self._examples(context))
        bench.facts |= {
            "corpus": self.corpus,
            "corpus_texts": len(texts),
            "corpus_tokens": sum(len(ids) for ids in encoded["file"]),
            "identical": True,
            "tokens": {"before": rows, "used": len(used), "after": len(trimmed.keep)},
            "bytes_saved": before - bench.bytes(),
            "share_saved": round(1 - bench.bytes() / before, 6),
            "outside": {name: outside(parent, trimmed.json, trimmed.keep, found) for name, found in held_out.items()},
        }

    def _trains(self, context: Context) -> bool:
        return (context.data.source if self.corpus == "source" else self.corpus) == "train"

    def _parts(self, context: Context) -> tuple[Part, ...]:
        """Parts of the examples that are the corpus.

        Windows of tokens are held out of one stream: were the held ones read otherwise, all after them would shift.
        """
        one_stream = context.source.task == "text-generation" and context.data.validation is None
        if not self._trains(context):
            return ()
        return ("train", "validation") if one_stream else ("train",)

    def _examples(self, context: Context) -> list[Ids]:
        """Ids of the training examples, where they are the corpus: pairs of texts, and windows of tokens."""
        return [row.ids.numpy() for part in self._parts(context) for row in context.examples().rows(part)]

    def _texts(self, context: Context) -> list[str]:
        """The corpus.

        Raises:
            RecipeError: "train", and the recipe has no training data.
            DataError: no text in it.
        """
        if not self._trains(context):
            texts = read_texts(context.data.source if self.corpus == "source" else self.corpus, context.folder)
        elif context.data.train is None:
            fix = "set data.train, or corpus: source (the text of data.source), or a path"
            raise RecipeError(f"training data for corpus: train of pass {self.name}", "none", fix)
        elif context.source.task == "text-generation":
            texts = read_texts(context.data.train, context.folder)  # windows begin and end inside words
        else:
            texts = context.examples().texts("train")
        if not any(text.strip() for text in texts):
            raise DataError(f"text in the corpus {self.corpus!r}", "none", "put text into it")
        return texts

    def _held_out(self, context: Context) -> dict[str, list[str]]:
        """Texts that are not the corpus: the built-in one to judge on, and validation texts."""
        texts = {"judge": [text for text in recipes.text("judge").split("\n\n") if text.strip()]}
        if context.data.train is not None and "validation" not in self._parts(context):
            texts["validation"] = context.examples().texts("validation")
        return texts

    def _kept(self, parent: Json) -> set[int]:
        """Ids of the setting ``keep``."""
        tokens = tokens_of(parent)
        for token in self.keep:
            if token not in tokens:
                raise RecipeError(
                    f"tokens of the tokenizer under keep of pass {self.name}", repr(token), _near(token, tokens)
                )
        return {tokens[token] for token in self.keep}


def _near(token: str, tokens: dict[str, int]) -> str:
    alike = [known for known in tokens if token in known][:8]
    return nearest(token, alike) if alike else "write tokens as tokenizer.json spells them"


def _stage(context: Context, name: str) -> Callable[[int, int], None]:
    return lambda done, total: context.progress(f"trim-vocabulary: {name}", done, total)


def _files(bench: Bench, context: Context, live: Any, folder: Path) -> Json:
    """Put the tokenizer's files as they are now into ``folder``; returns its tokenizer.json.

    A tokenizer that has none yet, or one that transformers loads with more tokens than the file has, is saved anew.
    """
    if context.source.is_gguf:  # has no files; reading its tokenizer again takes long
        with quiet():
            live.save_pretrained(folder)
            bench.model.generation_config.save_pretrained(folder)  # type: ignore[union-attr,operator]
    else:
        write_side_files(context.source, bench, folder)
    path = folder / "tokenizer.json"
    found = read_json(path) if path.is_file() else None
    tokens = live.get_vocab()
    if found is None or tokens_of(found) != tokens:
        with quiet():
            live.save_pretrained(folder)
        saved = read_json(path)
        return saved if found is None else saved | {key: found.get(key) for key in ("truncation", "padding")}
    return found


def _backend(context: Context) -> Json:
    """tokenizer.json of the tokenizer as transformers has it in memory."""
    found: Json = json.loads(context.tokenizer().backend_tokenizer.to_str())
    return found


def _same(one: Json, other: Json) -> bool:
    """Whether two files tokenize alike; truncation and padding are of no account."""
    return {**one, "truncation": None, "padding": None} == {**other, "truncation": None, "padding": None}


def _rows(bench: Bench) -> int:
    return int(bench.model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]


def _named(bench: Bench, context: Context) -> set[int]:
    """Ids that configs and the tokenizer's special tokens name, as far as they are tokens at all."""
    model: Any = bench.model
    found = named_ids(model.config.to_dict()) | set(context.tokenizer().all_special_ids)
    generation = getattr(model, "generation_config", None)
    return found if generation is None else found | named_ids(generation.to_dict())


def _below_padding(bench: Bench) -> set[int]:
    """All ids up to the padding's, for models that count positions from it (RoBERTa, MPNet): it must not move."""
    for name, module in bench.model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return set(range(int(module.padding_idx) + 1))
    return set()


def _install(bench: Bench, folder: Path, trimmed: Trimmed, rows: int) -> None:
    """Cut the table, and say the new ids in the model's configs and in the files."""
    new = {old: number for number, old in enumerate(trimmed.keep)}

    def change(number: int) -> int | None:
        """The new id; what never had a row keeps its number, a row without a token is gone."""
        return new.get(number) if 0 <= number < rows else number

    model: Any = bench.model
    bench.files |= rewritten(folder, trimmed, change)
    entries = renamed(model.config.to_dict(), change)
    bench.config |= entries
    cut_vocabulary(bench, trimmed.keep)
    generation = getattr(model, "generation_config", None)
    for config, changes in ((model.config, entries), (generation, {})):
        if config is not None:
            for key, value in (changes or renamed(config.to_dict(), change)).items():
                setattr(config, key, value)
