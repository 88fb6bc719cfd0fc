"""The data that figures are given for: the sizes of the protocol, and nothing of test or validation among the texts."""

from __future__ import annotations

import pytest

from tests.sentiment_data import Rows, unlabelled_texts, words


def test_what_trains_holds_nothing_of_what_is_judged(movie_sentences: dict[str, Rows]) -> None:
    assert {part: len(rows) for part, rows in movie_sentences.items()} == {
        "train": 8057, "validation": 1007, "test": 1008,
    }  # fmt: skip
    further = unlabelled_texts(movie_sentences)
    assert len(further) == 8264
    assert len({words(text) for text in further}) == len(further)
    judged = {words(text) for part in ("validation", "test") for text, _ in movie_sentences[part]}
    assert not judged & {words(text) for text in further}
    positive = [sum(label for _, label in rows) / len(rows) for rows in movie_sentences.values()]
    assert positive == pytest.approx([0.5, 0.465, 0.475], abs=0.005)
