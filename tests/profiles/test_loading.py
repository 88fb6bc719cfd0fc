"""The loader: strict YAML in, a profile or one clear error out, whatever the text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from planish.errors import ProfileError
from planish.profiles import Profile, load, names
from planish.profiles.loading import MAX_BYTES, loads
from planish.profiles.parsing import parse

SHIPPED = names()
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(scalars, inner, max_size=4), max_leaves=12
)


def refused(error: ProfileError) -> None:
    """An error must have its three parts, and be short whatever it refuses."""
    assert error.expected
    assert error.got
    assert error.fix
    assert len(str(error)) < 2000


def outcome(text: str) -> Profile | None:
    """What ``loads`` makes of a text; anything but a profile or a ``ProfileError`` fails the test."""
    try:
        profile = loads(text)
    except ProfileError as error:
        return refused(error)
    assert parse(json.loads(json.dumps(profile.to_json()))) == profile
    return profile


@given(st.text(max_size=300))
def test_any_text_is_a_profile_or_a_profile_error(text: str) -> None:
    assert outcome(text) is None


@given(st.text(alphabet="abn01.-:{}[]&*!<>|'\"\n #%@`?,", max_size=60))
def test_any_yaml_punctuation_is_a_profile_error(text: str) -> None:
    assert outcome(text) is None


@given(trees)
def test_any_tree_is_a_profile_error(tree: object) -> None:
    assert outcome(yaml.safe_dump(tree)) is None


@given(st.sampled_from(SHIPPED), st.data())
def test_a_shipped_profile_with_one_value_changed(name: str, data: st.DataObject) -> None:
    told = load(name).to_json()
    spot, last = told, data.draw(st.sampled_from(sorted(told)))
    while isinstance(spot[last], (dict, list)) and spot[last] and data.draw(st.booleans()):
        spot = spot[last]
        last = data.draw(st.sampled_from(sorted(spot) if isinstance(spot, dict) else range(len(spot))))
    spot[last] = data.draw(trees)
    outcome(yaml.safe_dump(told))


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("schema: 1\nschema: 1\n", "the key 'schema' stands twice (line 2)"),
        ("gpu:\n  sm: '8.7'\n  sm: '8.9'\n", "the key 'sm' stands twice (line 3)"),
        ("a: &x [1]\nb: *x\n", "anchors and aliases are not taken (line 1)"),
        ("a: *x\n", "anchors and aliases are not taken (line 1)"),
        ("a: !!python/object/apply:os.system [ls]\n", "tags are not taken (line 1)"),
        ("a: !!int ''\n", "tags are not taken (line 1)"),
        ("<<: {a: 1}\n", "a key must be a plain word (line 1)"),
        ("[1]: 2\n", "a key must be a plain word (line 1)"),
        ("a: [1\n", "expected ',' or ']', but got '<stream end>' (line 2)"),
        ("a: 2001-99-99\n", "ValueError: month must be in 1..12"),
    ],
)
def test_yaml_a_profile_has_no_use_for(text: str, got: str) -> None:
    with pytest.raises(ProfileError) as caught:
        loads(text, "mine.yaml")
    assert got in caught.value.got
    assert "mine.yaml" in caught.value.expected


def test_deep_nesting_and_long_numbers_end_in_an_error() -> None:
    for text in ("[" * 20_000, "a: " + "{a: " * 5_000, "a: " + "9" * 100_000):
        assert outcome(text) is None


def test_unknown_name_points_to_the_nearest() -> None:
    with pytest.raises(ProfileError) as caught:
        load("jetson-orin-nano")
    assert caught.value.fix == "did you mean 'jetson-orin-nano-8gb'?"


def test_own_profile_by_path(tmp_path: Path) -> None:
    told = {**load("t4").to_json(), "name": "ours"}
    path = tmp_path / "ours.yaml"
    path.write_text(yaml.safe_dump(told), encoding="utf-8")
    assert load(path) == load(str(path))
    assert load(path).name == "ours"


def test_a_key_misspelt_in_a_file_names_the_file_and_the_nearest_key(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    text = yaml.safe_dump({**load("t4").to_json(), "dialect": ["qdq"]})
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ProfileError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert caught.value.fix == "did you mean 'dialects'?"


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (None, "No such file or directory"),
        (b"\xff\xfe\x00", "invalid start byte at byte 0"),
        (b"#" * (MAX_BYTES + 1), "more"),
        (b"", "nothing"),
    ],
)
def test_files_that_are_no_profile(tmp_path: Path, content: bytes | None, got: str) -> None:
    path = tmp_path / "ours.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ProfileError) as caught:
        load(path)
    assert got in caught.value.got


def test_a_directory_and_a_null_byte_are_no_profile(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="Is a directory"):
        load(tmp_path)
    with pytest.raises(ProfileError, match="null"):
        load("a\0b.yaml")
