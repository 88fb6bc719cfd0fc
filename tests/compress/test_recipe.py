"""Recipes: the shipped ones load, wrong ones say what is wrong in one line, and the digest follows the content."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from planish import recipes
from planish.compress import load_recipe
from planish.compress.recipe import parse_recipe
from planish.errors import RecipeError

GOOD = """
schema: 1
name: mine
passes:
  - pass: weight-only
    bits: 4
"""


def test_shipped_recipes() -> None:
    assert recipes.names() == [
        "encoder-small",
        "encoder-tiny",
        "fp8",
        "gpt-small",
        "int4",
        "int4-round",
        "int4-symmetric",
        "int8",
        "int8-dynamic",
        "int8-weight-only",
    ]
    for name in recipes.names():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.description
        assert recipe.digest == load_recipe(recipes.path(name)).digest
    assert [step.name for step in load_recipe("int8").passes] == ["int8-linear", "int8-embedding"]
    int4 = load_recipe("int4").content["passes"][0]
    assert (int4["bits"], int4["group_size"], int4["symmetric"], int4["method"]) == (4, 32, False, "gptq")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("bits: 4", "bits: 4\n    group_sise: 32"), "did you mean 'group_size'"),
        (("bits: 4", "bits: 5"), "bits"),
        (("bits: 4", "bits: '4'"), "bits"),
        (("bits: 4", "group_size: 8"), "group_size"),
        (("bits: 4", "damping: .nan"), "damping"),
        (("bits: 4", "damping: 2024-01-01"), "damping"),
        (("bits: 4", "include: body"), "include"),
        (("weight-only", "weight-onyl"), "did you mean 'weight-only'"),
        (("pass: weight-only", "method: gptq"), "known passes"),
        (("schema: 1", "schema: 2"), "schema"),
        (("schema: 1", "schema: 1\nschema: 1"), "appears twice"),
        (("bits: 4", "bits: 4\n    bits: 8"), "appears twice"),
        (("name: mine", "name: mine\ndata: {sample: 3}"), "did you mean 'samples'"),
        (("name: mine", "name: mine\ndata: {samples: 0}"), "samples"),
        (("name: mine", "name: mine\nuser: x"), "known:"),
        (("name: mine", 'name: "a\\nb"'), "one line"),
        (("name: mine", "name: &a mine\ndescription: *a"), "aliases"),
        (("name: mine", ""), "add 'name"),
        (("name: mine", "name: [mine"), "plain YAML"),
        (("passes:\n  - pass: weight-only\n    bits: 4", "passes: []"), "passes"),
        (("passes:\n  - pass: weight-only\n    bits: 4", "passes: [3]"), "passes"),
    ],
)
def test_wrong_recipes(change: tuple[str, str], words: str) -> None:
    text = GOOD.replace(*change)
    assert text != GOOD
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, where="mine.yaml")
    message = str(caught.value)
    assert words in message
    assert "mine.yaml" in message
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_unknown_names_and_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'int8'"):
        load_recipe("int9")
    with pytest.raises(RecipeError, match="nothing there"):
        load_recipe(tmp_path / "no.yaml")
    with pytest.raises(RecipeError, match="at most"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff")
    with pytest.raises(RecipeError, match="UTF-8"):
        load_recipe(tmp_path / "latin.yaml")
    (tmp_path / "big.yaml").write_text("#" * 100_000, encoding="utf-8")
    with pytest.raises(RecipeError, match="at most"):
        load_recipe(tmp_path / "big.yaml")


def test_digest_follows_content_not_spelling() -> None:
    base = parse_recipe(GOOD).digest
    assert parse_recipe("# a comment\n" + GOOD.replace("bits: 4", "group_size: 32\n    bits: 4")).digest == base
    assert parse_recipe(GOOD.replace("bits: 4", "bits: 8")).digest != base
    assert parse_recipe(GOOD.replace("name: mine", "name: mine\ndata: {seed: 1}")).digest != base


KEYS = st.sampled_from(["schema", "name", "passes", "pass", "bits", "data", "x"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


@given(VALUES)
def test_any_yaml_is_a_recipe_or_a_recipe_error(value: object) -> None:
    message = ""
    try:
        parse_recipe(yaml.safe_dump(value))
    except RecipeError as error:
        message = str(error)
    assert "\n" not in message


@given(st.text(max_size=40))
def test_any_text_is_a_recipe_or_a_recipe_error(text: str) -> None:
    with pytest.raises(RecipeError):
        parse_recipe(text)
