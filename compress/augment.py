"""Texts nobody wrote, for the teacher to judge: spliced of two training texts, some of their tokens exchanged.

On the texts it was trained on a teacher says little but their labels; a student is to learn how it answers elsewhere.
Asked about many altered texts, each seen once, a small student follows its teacher further than on the same texts over
and over (Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", 2022, who mix
images; exchanging tokens: Jiao et al., "TinyBERT", 2020). Altered texts have no labels, so only the teacher counts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from planish.compress.encode_examples import Example
from planish.errors import RecipeError

__all__ = ["TASKS", "Augment"]

TASKS = ("text-classification", "token-classification", "feature-extraction")
"""Where any text has an answer; a question and its context must fit, and masks and next words are drawn from texts."""


@dataclass(frozen=True, kw_only=True)
class Augment:
    """``splice``: share of texts whose end is that of another text. ``replace``: at most this share of a text's tokens
    become others, drawn as often as the training texts use them; how much is drawn for each text.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    splice: Annotated[float, Field(ge=0.0, le=1.0)] = 0.7
    replace: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2

    def __post_init__(self) -> None:
        if not self.splice and not self.replace:
            raise RecipeError("splice or replace above 0 in augment of pass distill", "both 0", "leave augment out")

    def altered(self, rows: Sequence[Example], special: frozenset[int], seed: int, epoch: int) -> list[Example]:
        """One altered text for each of ``rows``, never longer than the longest; the same for the same seed and epoch.

        What stands before and after the text itself (ids in ``special``: [CLS], [SEP]) stays where it is. A text of
        nothing else stays as it is.
        """
        dice = random.Random(f"{seed}/{epoch}/augment")
        frames = [_frame(row.ids, special) for row in rows]
        texts = [row.ids[begin:end] for row, (begin, end) in zip(rows, frames, strict=True)]
        pool = torch.cat(texts)
        if not len(pool):
            return [replace(row, label=None) for row in rows]
        longest = max(len(row.ids) for row in rows)
        made = []
        for row, text, (begin, end) in zip(rows, texts, frames, strict=True):
            tokens = text
            if len(text) and dice.random() < self.splice:
                other = texts[dice.randrange(len(texts))]
                both = torch.cat([text[: dice.randint(0, len(text))], other[dice.randint(0, len(other)) :]])
                tokens = both if len(both) else text
            tokens = self._replaced(tokens[: longest - (len(row.ids) - len(text))], pool, dice)
            ids = torch.cat([row.ids[:begin], tokens, row.ids[end:]])
            types = None if row.types is None else torch.zeros_like(ids)
            made.append(replace(row, ids=ids, types=types, label=None))
        return made

    def _replaced(self, tokens: Tensor, pool: Tensor, dice: random.Random) -> Tensor:
        share = self.replace * dice.random()
        drawn = [dice.randrange(len(pool)) if dice.random() < share else -1 for _ in range(len(tokens))]
        chosen = torch.tensor(drawn, dtype=torch.int64)
        return torch.where(chosen < 0, tokens, pool[chosen])


def _frame(ids: Tensor, special: frozenset[int]) -> tuple[int, int]:
    """Where the text itself begins and ends, between special tokens."""
    own = [at for at, number in enumerate(ids.tolist()) if number not in special]
    return (own[0], own[-1] + 1) if own else (len(ids), len(ids))
