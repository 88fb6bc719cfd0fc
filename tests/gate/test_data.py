"""Evaluation files: every task's fields, and every bad line named with its number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planish.errors import DataError, PlanishError
from planish.gate.data import LABEL_FIELDS, TEXT_FIELDS, load_data, unlabelled
from planish.gate.spans import Span

LABELS = ["negative", "positive"]
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def write(path: Path, *lines: Any) -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_bytes(text.encode("utf-8") + b"\n")
    return path


def test_classification_by_name_by_index_and_by_list(tmp_path: Path) -> None:
    path = write(
        tmp_path / "d.jsonl",
        {"text": "a", "label": "positive", "language": "en"},
        "",
        {"text": "b", "label": 0},
        {"text": "c", "label": ["positive", "negative", 1]},
        {"text": "c", "label": []},
    )
    data = load_data(path, "text-classification", LABELS, "multi_label_classification")
    assert [sample.label for sample in data.samples] == [(1,), (0,), (0, 1), ()]
    assert [sample.line for sample in data.samples] == [1, 3, 4, 5]
    assert data.labelled
    assert data.duplicates == 1
    assert data.samples[0].columns == {"language": "en"}


@pytest.mark.parametrize("problem_type", [None, "single_label_classification"])
@pytest.mark.parametrize("label", [[0, 1], [], ["positive"]])
def test_a_model_of_one_label_a_text_takes_no_lists(tmp_path: Path, label: Any, problem_type: str | None) -> None:
    path = write(tmp_path / "d.jsonl", {"text": "a", "label": 0}, {"text": "b", "label": label})
    with pytest.raises(DataError, match="line 2: one label, by name or index"):
        load_data(path, "text-classification", LABELS, problem_type)


def test_a_single_label_may_be_absent(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", {"text": "a", "label": "spam"}, {"text": "b", "label": []})
    assert [sample.label for sample in load_data(path, "text-classification", ["spam"]).samples] == [(0,), ()]


def test_spans_and_tags_say_the_same(tmp_path: Path) -> None:
    path = write(
        tmp_path / "d.jsonl",
        {"text": "Ann Lee in Rome", "spans": [[11, 15, "LOC"], {"start": 0, "end": 7, "label": "PER"}]},
        {"tokens": ["Ann", "Lee", "in", "Rome"], "tags": ["B-PER", "I-PER", "O", "B-LOC"]},
    )
    first, second = load_data(path, "token-classification", TAGS).samples
    assert first.text == second.text
    assert first.spans == second.spans == (Span(0, 7, "PER"), Span(11, 15, "LOC"))


def test_answers_as_a_list_or_as_squad_has_them(tmp_path: Path) -> None:
    path = write(
        tmp_path / "d.jsonl",
        {"question": "q", "context": "c", "answers": ["x", "y"]},
        {"question": "q", "context": "c", "answers": {"text": ["x"], "answer_start": [0]}},
        {"question": "q", "context": "c", "answers": []},
    )
    data = load_data(path, "question-answering")
    assert [sample.answers for sample in data.samples] == [("x", "y"), ("x",), ()]
    assert data.duplicates == 2


def test_no_labels_at_all_is_a_label_free_file(tmp_path: Path) -> None:
    assert not load_data(write(tmp_path / "d.jsonl", {"text": "a"}), "text-classification", LABELS).labelled
    assert not load_data(write(tmp_path / "e.jsonl", {"tokens": ["a"]}), "token-classification", TAGS).labelled
    assert not load_data(write(tmp_path / "t.txt", "one", "two"), "text-generation").labelled
    assert unlabelled("x", ["a"], "question-answering").samples[0].context == "a"


def test_only_newlines_end_a_line(tmp_path: Path) -> None:
    """U+2028, U+0085 and form feeds stand inside texts; Windows' line ends and byte order mark are no part of them."""
    path = tmp_path / "t.txt"
    path.write_bytes(b"\xef\xbb\xbfone\x0cstill\xe2\x80\xa8one\r\ntwo")
    assert [sample.text for sample in load_data(path, "fill-mask").samples] == ["one\x0cstill\u2028one", "two"]


BAD = [
    ("text-classification", '{"text": "a", "label": "positiv"}', "did you mean 'positive'"),
    ("text-classification", '{"text": "a", "label": 2}', "from 0 to 1"),
    ("text-classification", '{"text": "a", "label": true}', "got True"),
    ("text-classification", '{"text": "a", "label": null}', "got None"),
    ("text-classification", '{"text": "a"}', "on every line or on none"),
    ("text-classification", '{"txt": "a", "label": 1}', "did you mean 'txt'"),
    ("text-classification", '{"text": "  ", "label": 1}', "not empty"),
    ("text-classification", '{"text": 7, "label": 1}', "got 7"),
    ("text-classification", '{"text": "\\ud800", "label": 1}', "lone surrogate"),
    ("text-classification", '{"text": "a", "text": "b"}', "'text' twice"),
    ("text-classification", '{"text": "a", "label": NaN}', "NaN"),
    ("text-classification", '{"text": "a", "label": 1', "delimiter"),
    ("text-classification", '["a", 1]', "a JSON object"),
    ("text-classification", "[" * 100_000, "a JSON object"),
    ("text-classification", '{"text": "a", "label": ' + "9" * 5000 + "}", "a JSON object"),
    ("token-classification", '{"text": "abc", "spans": [[0, 4, "PER"]]}', "inside the text of 3"),
    ("token-classification", '{"text": "abc", "spans": [[2, 2, "PER"]]}', "inside the text"),
    ("token-classification", '{"text": "abc", "spans": [[0, 1, "PERS"]]}', "did you mean 'PER'"),
    ("token-classification", '{"text": "abc", "spans": [[0, true, "PER"]]}', "a span"),
    ("token-classification", '{"text": "abc", "spans": 3}', "to be a list"),
    ("token-classification", '{"tokens": ["a", "b"], "tags": ["O"]}', "one tag for each of the 2"),
    ("token-classification", '{"tokens": ["a", ""], "tags": ["O", "O"]}', "none empty"),
    ("token-classification", '{"tokens": ["a"], "tags": ["B-ORG"]}', "'ORG'"),
    ("question-answering", '{"question": "q", "answers": []}', '"context"'),
    ("question-answering", '{"question": "q", "context": "c", "answers": [1]}', "list of texts"),
]
GOOD = {
    "text-classification": '{"text": "a", "label": 1}',
    "token-classification": '{"text": "Ann", "spans": [[0, 3, "PER"]]}',
    "question-answering": '{"question": "q", "context": "c", "answers": []}',
}


@pytest.mark.parametrize(("task", "line", "words"), BAD)
def test_a_bad_line_is_named(tmp_path: Path, task: str, line: str, words: str) -> None:
    path = write(tmp_path / "d.jsonl", GOOD[task], line, GOOD[task])
    labels = TAGS if task == "token-classification" else LABELS
    with pytest.raises(DataError) as caught:
        load_data(path, task, labels)
    message = str(caught.value)
    assert f"{path} line 2" in message
    assert words in message
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))


def test_invalid_utf8_is_named_by_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(DataError, match=r"line 2: UTF-8, got byte 0xff at column 11"):
        load_data(path, "fill-mask")


def test_missing_empty_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        load_data(tmp_path / "none.jsonl", "fill-mask")
    with pytest.raises(DataError, match="an empty file"):
        load_data(write(tmp_path / "e.jsonl", "", "  "), "fill-mask")
    with pytest.raises(DataError, match="directory"):
        load_data(tmp_path, "fill-mask")
    with pytest.raises(DataError, match="question and context"):
        load_data(write(tmp_path / "t.txt", "x"), "question-answering")


def test_labels_for_a_bundle_without_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a bundle without labels"):
        load_data(write(tmp_path / "d.jsonl", GOOD["text-classification"]), "text-classification", None)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
fields = {"text", "tokens", "x"}.union(*TEXT_FIELDS.values(), *LABEL_FIELDS.values())
names = st.sampled_from(sorted(fields))
lines = st.dictionaries(names, json_values, max_size=4).map(lambda value: json.dumps(value).encode())


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    content=st.lists(lines | st.binary(max_size=30), min_size=1, max_size=3),
    task=st.sampled_from([*GOOD, "fill-mask", "text-generation", "feature-extraction"]),
)
def test_any_bytes_give_samples_or_a_data_error(tmp_path: Path, content: list[bytes], task: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\n".join(content))
    try:
        data = load_data(path, task, TAGS if task == "token-classification" else LABELS)
    except PlanishError as error:
        assert isinstance(error, DataError)  # noqa: PT017 - both outcomes are right, other errors are not
    else:
        for sample in data.samples:
            assert (sample.text or sample.question).encode("utf-8").strip()
            assert all(0 <= span.start < span.end <= len(sample.text) for span in sample.spans)
