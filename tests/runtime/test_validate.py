"""Raw inputs: what ONNX Runtime lets through, and what it would say cryptically, is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.errors import RequestError
from planish.runtime import Model, load
from planish.runtime.manifest import TensorInfo
from planish.runtime.validate import Limits, check_inputs

TEXT = tuple(
    TensorInfo(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask", "token_type_ids")
)
DECODER = (
    TensorInfo("input_ids", "int64", ("batch", "sequence")),
    TensorInfo("attention_mask", "int64", ("batch", "total")),
    TensorInfo("past_key_values.0.key", "float32", ("batch", 2, "past", 4)),
)
LIMITS = Limits(vocab_size=10, max_length=6, type_vocab_size=2)


def good(**changes: Any) -> dict[str, Any]:
    one = np.ones((2, 3), np.int64)
    return {"input_ids": one, "attention_mask": one, "token_type_ids": one, **changes}


def ids(*rows: list[int]) -> np.ndarray:
    return np.array(rows, np.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_id": ids([1])}, "did you mean 'input_ids'"),
        ({"input_ids": [[1]]}, "a numpy array for input_ids"),
        ({"input_ids": np.ones((2, 3))}, "int64 for input_ids, got float64"),
        ({"input_ids": np.ones((2, 3), np.int32)}, "got int32"),
        ({"input_ids": np.ones((2, 3), np.dtype(np.int64).newbyteorder())}, "byte order"),
        ({"attention_mask": np.zeros((2, 3), np.dtype(np.int64).newbyteorder())}, "byte order"),
        ({"input_ids": np.ones(3, np.int64)}, "2 axes"),
        ({"input_ids": np.ones((2, 4), np.int64)}, "one size of sequence"),
        ({"attention_mask": np.ones((1, 3), np.int64)}, "one size of batch"),
        ({"input_ids": ids([1, 2, -1], [1, 1, 1])}, r"in 0..9, got -1"),
        ({"input_ids": ids([1, 2, 10], [1, 1, 1])}, r"in 0..9, got 10"),
        ({"token_type_ids": ids([0, 0, 2], [0, 0, 0])}, r"token_type_ids in 0..1, got 2"),
        ({"attention_mask": ids([1, 1, 2], [1, 1, 1])}, "only 0 and 1"),
        ({"attention_mask": ids([1, 1, 1], [0, 0, 0])}, "row 1 without any"),
    ],
)
def test_refused(change: dict[str, Any], message: str) -> None:
    check_inputs(good(), TEXT, (), LIMITS)
    with pytest.raises(RequestError, match=message):
        check_inputs(good(**change), TEXT, (), LIMITS)


@pytest.mark.parametrize(
    ("shape", "message"), [((0, 3), "1 in batch"), ((2, 0), "1 in sequence"), ((1, 7), "at most 6 tokens, got 7")]
)
def test_sizes(shape: tuple[int, int], message: str) -> None:
    array = np.ones(shape, np.int64)
    with pytest.raises(RequestError, match=message):
        check_inputs(dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), array), TEXT, (), LIMITS)


def test_missing_and_optional_inputs() -> None:
    inputs = good()
    del inputs["token_type_ids"]
    with pytest.raises(RequestError, match="the input 'token_type_ids'"):
        check_inputs(inputs, TEXT, (), LIMITS)
    keep = (TensorInfo("logits_to_keep", "int64", ()),)
    check_inputs(good(logits_to_keep=np.array(1, np.int64)), TEXT, keep, LIMITS)
    check_inputs(good(logits_to_keep=np.array(0, np.int64)), TEXT, keep, LIMITS)
    for number in (-1, 5):
        with pytest.raises(RequestError, match=f"0 or 1 for logits_to_keep, got {number}"):
            check_inputs(good(logits_to_keep=np.array(number, np.int64)), TEXT, keep, LIMITS)
    with pytest.raises(RequestError, match="known input names"):
        check_inputs(good(logits_to_keep=np.array(1, np.int64)), TEXT, (), LIMITS)


def decoder(total: int, past: int, mask: np.ndarray | None = None) -> dict[str, Any]:
    return {
        "input_ids": np.ones((2, 3), np.int64),
        "attention_mask": np.ones((2, total), np.int64) if mask is None else mask,
        "past_key_values.0.key": np.zeros((2, 2, past, 4), np.float32),
    }


def test_decoder_masks() -> None:
    limits = Limits(vocab_size=10, max_length=6, generation=True)
    check_inputs(decoder(3, 0), DECODER, (), limits)
    check_inputs(decoder(5, 2), DECODER, (), limits)
    check_inputs(decoder(3, 0, ids([1, 1, 0], [1, 1, 1])), DECODER, (), limits)
    with pytest.raises(RequestError, match="make it 5 wide"):
        check_inputs(decoder(6, 2), DECODER, (), limits)
    with pytest.raises(RequestError, match="padded on the right"):
        check_inputs(decoder(3, 0, ids([0, 1, 1], [1, 1, 1])), DECODER, (), limits)
    with pytest.raises(RequestError, match="got 7 in total"):
        check_inputs(decoder(7, 4), DECODER, (), limits)
    with pytest.raises(RequestError, match="make it 2"):
        check_inputs(
            {**decoder(3, 0), "past_key_values.0.key": np.zeros((2, 3, 0, 4), np.float32)}, DECODER, (), limits
        )


@pytest.fixture(scope="module")
def model(tiny: Callable[..., Any]) -> Model:
    return load(tiny("feature-extraction", 4, pooling={"mode": "mean", "normalize": False}).path)


def test_the_engine_itself_accepts_what_we_refuse(model: Model) -> None:
    """Why the checks exist: remove one and this test's right half fails, not ONNX Runtime."""
    for row, mask in (([-1, 2], [1, 1]), ([1, 2], [0, 0])):
        inputs = {"input_ids": ids(row), "attention_mask": ids(mask)}
        model.session.run(None, inputs)
        with pytest.raises(RequestError):
            model.run(inputs)


def test_swapped_bytes_are_refused_where_the_engine_misreads_them(model: Model) -> None:
    """To numpy the ids are the same, to ONNX Runtime they are 1 << 56 and more."""
    inputs = {"input_ids": ids([1, 2, 3]), "attention_mask": ids([1, 1, 1])}
    swapped = inputs["input_ids"].astype(np.dtype(np.int64).newbyteorder())
    with pytest.raises(RequestError, match=r"byte order.*astype\(np.int64\)"):
        model.run({**inputs, "input_ids": swapped})
    with pytest.raises(Exception, match="out of data bounds"):
        model.session.run(None, {**inputs, "input_ids": swapped})
    again = model.run({**inputs, "input_ids": swapped.astype(np.int64)})
    np.testing.assert_array_equal(again["last_hidden_state"], model.run(inputs)["last_hidden_state"])


@pytest.mark.parametrize("inputs", [None, [np.ones((1, 1), np.int64)], np.ones((1, 1), np.int64), "input_ids", 3])
def test_inputs_are_a_mapping(model: Model, inputs: Any) -> None:
    with pytest.raises(RequestError, match="a mapping of names"):
        model.run(inputs)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_integers_give_numbers_or_a_request_error(model: Model, data: st.DataObject) -> None:
    def draw(low: int, high: int) -> np.ndarray:
        shape = data.draw(st.tuples(st.integers(0, 3), st.integers(0, 50)))
        values = data.draw(st.lists(st.integers(low, high), min_size=1, max_size=8))
        return np.resize(np.array(values, np.int64), shape)

    try:
        outputs = model.run({"input_ids": draw(-2, 601), "attention_mask": draw(0, 1)})
    except RequestError:
        return
    assert np.isfinite(outputs["last_hidden_state"]).all()
