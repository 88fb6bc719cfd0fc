"""Altered texts: made of training texts, framed and no longer than they are, the same for the same seed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.compress.augment import Augment
from planish.compress.encode_examples import Example
from planish.errors import RecipeError

CLS, SEP = 1, 2
SPECIAL = frozenset({0, CLS, SEP})
texts = st.lists(st.lists(st.integers(3, 40), max_size=9), min_size=1, max_size=12)


def rows_of(texts: list[list[int]]) -> list[Example]:
    made = [torch.tensor([CLS, *text, SEP]) for text in texts]
    return [Example("a text", ids, torch.zeros_like(ids), torch.tensor(1)) for ids in made]


@given(texts, st.floats(0, 1), st.floats(0.01, 1), st.integers(0, 5))
def test_framed_without_labels_and_of_known_tokens(
    texts: list[list[int]], splice: float, share: float, epoch: int
) -> None:
    rows, known = rows_of(texts), {token for text in texts for token in text}
    made = Augment(splice=splice, replace=share).altered(rows, SPECIAL, 7, epoch)
    longest = max(len(row.ids) for row in rows)
    assert len(made) == len(rows)
    for row in made:
        assert row.ids[0] == CLS
        assert row.ids[-1] == SEP
        assert set(row.ids.tolist()) <= known | {CLS, SEP}
        assert 2 <= len(row.ids) <= longest
        assert row.label is None
        assert row.types is not None
        assert len(row.types) == len(row.ids)
    again = Augment(splice=splice, replace=share).altered(rows, SPECIAL, 7, epoch)
    assert all(torch.equal(one.ids, other.ids) for one, other in zip(made, again, strict=True))


def test_spliced_is_the_start_of_one_and_the_end_of_another() -> None:
    rows = rows_of([list(range(10 * n + 3, 10 * n + 10)) for n in range(4)])
    for row in Augment(splice=1.0, replace=0.0).altered(rows, SPECIAL, 0, 0):
        steps = [b - a for a, b in zip(row.ids[1:-1].tolist(), row.ids[2:-1].tolist(), strict=False)]
        assert sum(step != 1 for step in steps) <= 1, "one seam at most"


def test_replaced_tokens_are_as_many_and_as_frequent_as_asked() -> None:
    rows = rows_of([[3] * 300 + [4] * 100] * 50)
    made = Augment(splice=0.0, replace=0.4).altered(rows, SPECIAL, 0, 0)
    gone = torch.stack([(row.ids[1:301] != 3).float().mean() for row in made])
    assert 0.03 < float(gone.mean()) < 0.07, "a fifth of the tokens on average, of which a quarter becomes a 4"
    assert float(gone.max()) < 0.16
    assert float(gone.min()) < 0.02, "each text has its own share"


def test_epochs_and_seeds_differ() -> None:
    rows = rows_of([list(range(3, 30)), list(range(40, 60))] * 8)
    first = [row.ids.tolist() for row in Augment().altered(rows, SPECIAL, 0, 0)]
    assert first != [row.ids.tolist() for row in Augment().altered(rows, SPECIAL, 0, 1)]
    assert first != [row.ids.tolist() for row in Augment().altered(rows, SPECIAL, 1, 0)]


def test_nothing_to_alter_is_refused() -> None:
    with pytest.raises(RecipeError, match="splice or replace above 0"):
        Augment(splice=0.0, replace=0.0)
