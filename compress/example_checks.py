"""What must hold of examples before a model is trained and judged on them."""

from __future__ import annotations

from collections.abc import Sequence

from planish.compress.encode_examples import Encoder, Example
from planish.compress.recipe import Data
from planish.errors import DataError

__all__ = ["check_parts"]


def check_parts(parts: dict[str, list[Example]], data: Data, encoder: Encoder) -> None:
    """Refuse what cannot train a model, or would judge it on what it was trained on.

    Raises:
        DataError: fewer than two training examples or none to judge on; labels that are all the same, or all behind
            ``data.max_length``; validation examples all of which are training examples.
    """
    name = f"data.source {data.source!r}" if data.train is None else data.train
    train, validation = parts["train"], parts["validation"]
    if len(train) < 2 or not validation:
        got = f"{len(train)} and {len(validation)}"
        raise DataError(f"at least 2 examples to train and 1 to judge on in {name}", got, "give more texts")
    _check_labels(train, encoder, name)
    seen = {_content(example) for example in train}
    if data.validation is not None and all(_content(example) in seen for example in validation):
        fix = "give texts of their own, or leave data.validation out to hold out a share of data.train"
        raise DataError(f"validation texts in {data.validation} that are not trained on", "only training texts", fix)


def _content(example: Example) -> bytes:
    return example.ids.numpy().tobytes()


def _check_labels(train: Sequence[Example], encoder: Encoder, name: str) -> None:
    labelled = [example for example in train if example.label is not None]
    if not labelled:
        return
    if encoder.task == "text-classification":
        _check_classes(labelled, encoder, name)
    elif encoder.task == "token-classification":
        outside = encoder.labels.index("O") if "O" in encoder.labels else -100
        if not any(bool(((e.label != outside) & (e.label != -100)).any()) for e in labelled if e.label is not None):
            there = any(example.sample is not None and example.sample.spans for example in labelled)
            _refuse_empty(f"an entity in {name}", there, encoder)
    elif encoder.task == "question-answering" and not any(
        e.label is not None and bool(e.label.any()) for e in labelled
    ):
        there = any(e.sample is not None and any(a.strip() for a in e.sample.answers) for e in labelled)
        _refuse_empty(f"an answer in {name}", there, encoder)


def _refuse_empty(expected: str, there: bool, encoder: Encoder) -> None:
    if there:
        got = f"all of them behind the first {encoder.length} tokens"
        raise DataError(expected, got, "raise data.max_length, or give shorter texts")
    raise DataError(expected, "none", "give examples of it too, or remove the labels to train without")


def _check_classes(labelled: Sequence[Example], encoder: Encoder, name: str) -> None:
    labels = {example.sample.label for example in labelled if example.sample is not None}
    if len(labels) == 1:
        said = ", ".join(encoder.labels[index] for index in labels.pop())
        got = f"only label {said!r}" if said else "no label on any text"
        raise DataError(
            f"training texts of at least two labels in {name}",
            got,
            "add texts of the other labels, or remove the labels to train on the parent's answers",
        )
