"""Task metrics against scikit-learn, and what a failed sample costs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score
from sklearn.preprocessing import MultiLabelBinarizer

from planish.gate.metrics import (
    accuracy,
    answer_scores,
    answer_token_f1,
    exact_match,
    macro_f1,
    normalize_answer,
    perplexity,
    span_f1,
)
from planish.gate.spans import Span, spans_from_tags

labels = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)
label_sets = st.frozensets(st.integers(0, 3), max_size=3).map(lambda found: tuple(sorted(found)))
spans = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 3), st.sampled_from("AB")), max_size=4)


@given(labels)
def test_accuracy_and_macro_f1_are_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    said, true = [p for p, _ in pairs], [t for _, t in pairs]
    predicted, truth = [(p,) for p in said], [(t,) for t in true]
    assert accuracy(predicted, truth).value == pytest.approx(accuracy_score(true, said))
    assert macro_f1(predicted, truth, 5).value == pytest.approx(f1_score(true, said, average="macro"))


@given(st.lists(st.tuples(label_sets, label_sets), min_size=1, max_size=20))
def test_several_labels_count_as_scikit_learns_subset_accuracy(pairs: list[tuple[tuple[int, ...], ...]]) -> None:
    binarizer = MultiLabelBinarizer(classes=range(4)).fit([])
    said, true = binarizer.transform([p for p, _ in pairs]), binarizer.transform([t for _, t in pairs])
    assert accuracy([p for p, _ in pairs], [t for _, t in pairs]).value == pytest.approx(accuracy_score(true, said))


@given(st.lists(st.tuples(label_sets, label_sets), min_size=1, max_size=20))
def test_macro_f1_of_several_labels_is_scikit_learns_over_the_labels_there_are(
    pairs: list[tuple[tuple[int, ...], ...]],
) -> None:
    binarizer = MultiLabelBinarizer(classes=range(4)).fit([])
    said, true = (binarizer.transform([pair[side] for pair in pairs]) for side in (0, 1))
    there = [label for label in range(4) if said[:, label].any() or true[:, label].any()]
    ours = macro_f1([p for p, _ in pairs], [t for _, t in pairs], 4).value
    theirs = f1_score(true, said, average="macro", labels=there) if there else 0.0
    assert ours == pytest.approx(theirs)


@given(labels, st.integers(0, 2**32 - 1))
def test_a_resample_is_the_metric_of_the_samples_drawn(pairs: list[tuple[int, int]], seed: int) -> None:
    """What intervals and slices rest on: sums of rows give what the metric gives for those samples."""
    predicted, truth = [(p,) for p, _ in pairs], [(t,) for _, t in pairs]
    picked = np.random.default_rng(seed).integers(0, len(pairs), len(pairs))
    for metric in (accuracy, lambda p, t: macro_f1(p, t, 5)):
        whole = metric(predicted, truth)
        again = metric([predicted[i] for i in picked], [truth[i] for i in picked])
        assert float(whole.aggregate(whole.rows[picked].sum(axis=0))) == pytest.approx(again.value)


@given(st.lists(st.tuples(spans, spans), min_size=1, max_size=10))
def test_span_f1_is_scikit_learns_micro_f1_over_spans(pairs: list[tuple[list[tuple[int, int, str]], ...]]) -> None:
    sides = [[[Span(s, s + n, label) for s, n, label in side] for side in pair] for pair in pairs]
    keyed = [[{(number, span) for span in side} for side in pair] for number, pair in enumerate(sides)]
    classes = sorted({key for pair in keyed for side in pair for key in side})
    ours = span_f1([p for p, _ in sides], [t for _, t in sides]).value
    if not classes:
        assert ours == 1.0
        return
    # One class that never occurs: scikit-learn takes a single column for a binary problem.
    binarizer = MultiLabelBinarizer(classes=[*classes, "nothing"]).fit([])
    said, true = (binarizer.transform([pair[side] for pair in keyed]) for side in (0, 1))
    assert ours == pytest.approx(f1_score(true, said, average="micro", zero_division=0.0))


def test_a_failed_sample_counts_as_wrong() -> None:
    assert accuracy([(1,), None], [(1,), (1,)]).value == 0.5
    assert macro_f1([(1,), None], [(1,), (1,)], 2).value == pytest.approx(2 / 3)
    assert span_f1([None], [[Span(0, 1, "A")]]).value == 0.0
    assert exact_match(["a b", None], [["a b"], ["a b"]]).value == 0.5
    assert answer_token_f1([None], [[]]).value == 0.0


@pytest.mark.parametrize(
    ("said", "true", "exact", "f1"),
    [
        ("The cat.", ["a cat"], 1.0, 1.0),
        ("", [], 1.0, 1.0),
        ("something", [], 0.0, 0.0),
        ("", ["cat"], 0.0, 0.0),
        ("in New York City", ["New York"], 0.0, 2 * 2 / (4 + 2)),
        ("x x x", ["x y", "x x"], 0.0, 2 * 2 / (3 + 2)),
    ],
)
def test_answers_score_as_squad_scores_them(said: str, true: list[str], exact: float, f1: float) -> None:
    assert answer_scores(said, true) == pytest.approx((exact, f1))


def test_articles_go_before_spaces_and_only_as_words() -> None:
    assert normalize_answer("An  ape, the theatre") == "ape theatre"


def test_perplexity_weighs_by_tokens() -> None:
    measured = perplexity([2.0, 9.0], [2, 3])
    assert measured.value == pytest.approx(np.exp(11 / 5))
    assert not measured.higher_is_better


def test_tags_become_character_spans() -> None:
    tokens = ["Ann", "Lee", "and", "Bo", "in", "Rome"]
    found = spans_from_tags(tokens, ["B-PER", "I-PER", "O", "I-PER", "O", "S-LOC"])
    assert found == (Span(0, 7, "PER"), Span(12, 14, "PER"), Span(18, 22, "LOC"))


def test_a_begin_tag_splits_neighbours_of_one_label() -> None:
    assert spans_from_tags(["a", "b"], ["B-X", "B-X"]) == (Span(0, 1, "X"), Span(2, 3, "X"))
    assert spans_from_tags(["a", "b"], ["B-X", "I-Y"]) == (Span(0, 1, "X"), Span(2, 3, "Y"))
    assert spans_from_tags(["a", "b", "c"], ["B-X", "E-X", "I-X"]) == (Span(0, 3, "X"), Span(4, 5, "X"))
    assert spans_from_tags(["a", "b"], ["X", "X"]) == (Span(0, 3, "X"),)
