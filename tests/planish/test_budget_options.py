"""Sizes as people write them."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.budget_options import bytes_of
from planish.errors import InputError

POWERS = {"kB": 1000, "MB": 1000**2, "GB": 1000**3, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "B": 1, "": 1}


@given(st.integers(1, 10**6), st.integers(0, 999), st.sampled_from(sorted(POWERS)), st.booleans())
def test_any_size_is_read_exactly(whole: int, thousandths: int, unit: str, spaced: bool) -> None:
    text = f"{whole}.{thousandths:03d}{' ' if spaced else ''}{unit}"
    assert bytes_of(text) == int((whole + Fraction(thousandths, 1000)) * POWERS[unit])
    assert bytes_of(text.lower()) == bytes_of(text)


@pytest.mark.parametrize(
    "text", ["", "MB", "-1MB", "0", "0.4", "12 XB", "1e6", "12,000", "nan", "1.2.3MB", "9" * 15 + "TB"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="12MB"):
        bytes_of(text)


@given(st.text(max_size=12))
def test_any_words_are_a_size_or_refused(text: str) -> None:
    with suppress(InputError):
        assert bytes_of(text) >= 1
