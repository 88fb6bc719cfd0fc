"""Calibration text becomes the same windows every time, and a bad line is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from planish import recipes
from planish.compress.data import read_texts, token_windows
from planish.compress.recipe import Data
from planish.errors import DataError

from .conftest import _tokenizer


def test_windows_are_framed_cut_and_drawn_by_seed() -> None:
    tokenizer = _tokenizer()
    data = Data(samples=5, sequence_length=20, seed=3)
    (windows,) = token_windows(data, Path(), tokenizer, None)
    assert windows.shape == (5, 20)
    assert windows.dtype == torch.int64
    assert windows[:, 0].tolist() == [tokenizer.cls_token_id] * 5
    assert windows[:, -1].tolist() == [tokenizer.sep_token_id] * 5
    stream = tokenizer(recipes.text("calibrate"), add_special_tokens=False)["input_ids"]
    for row in windows.tolist():
        assert any(stream[at : at + 18] == row[1:-1] for at in range(0, len(stream), 18))
    assert torch.equal(windows, token_windows(data, Path(), tokenizer, None)[0])
    (other,) = token_windows(data.model_copy(update={"seed": 4}), Path(), tokenizer, None)
    assert not torch.equal(windows, other)


def test_windows_fit_the_model_and_the_text(tmp_path: Path) -> None:
    tokenizer = _tokenizer()
    (tmp_path / "short.txt").write_text("the whale and the sea " * 20, encoding="utf-8")
    data = Data(source="short.txt", samples=50, sequence_length=64)
    (windows,) = token_windows(data, tmp_path, tokenizer, 16)
    assert windows.shape[1] == 16
    assert 1 <= windows.shape[0] < 50
    (tmp_path / "short.txt").write_text("the whale", encoding="utf-8")
    with pytest.raises(DataError, match="at least one window of 64 tokens"):
        token_windows(data, tmp_path, tokenizer, None)


def test_several_lengths_give_windows_of_each(tmp_path: Path) -> None:
    data = Data(samples=5, sequence_length=[16, 64, 512, 1024])
    windows = token_windows(data, tmp_path, _tokenizer(), 128)
    assert [tuple(one.shape) for one in windows] == [(5, 16), (5, 64), (5, 128)]
    (tmp_path / "short.txt").write_text("the whale and the sea " * 6, encoding="utf-8")
    windows = token_windows(data.model_copy(update={"source": "short.txt"}), tmp_path, _tokenizer(), None)
    assert [one.shape[1] for one in windows] == [16], "lengths the text cannot fill are left out"


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "two", "label": 1}\n', encoding="utf-8")
    assert read_texts("rows.jsonl", tmp_path) == ["one", "two"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "JSON"),
        ('{"txt": "x"}', "keys ['txt']"),
        ('{"text": 3}', "string 'text'"),
        ("[1]", "list"),
        ("NaN", "float"),
    ],
)
def test_bad_jsonl_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_texts("rows.jsonl", tmp_path)
    assert words in str(caught.value)
    assert "rows.jsonl, line 2" in str(caught.value)


def test_unusable_sources(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    for name, words in (
        ("no.txt", "nothing there"),
        ("a.csv", ".txt or .jsonl"),
        ("latin.txt", "UTF-8"),
        ("empty.txt", "none"),
    ):
        with pytest.raises(DataError, match=words):
            read_texts(name, tmp_path)
