"""What a model says on each sample of a data set: the one place where the gate calls the runtime's tasks.

A sample on which the model fails (an exception, or numbers that are not finite) becomes a `Failure` that names it; it
stays in the list as None and counts as wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from planish.errors import InputError
from planish.gate.data import Dataset, Sample
from planish.gate.spans import Span
from planish.runtime.pieces import truncated

if TYPE_CHECKING:
    from planish.runtime.model import Model

__all__ = ["Failure", "Output", "Outputs", "collect", "encoder_inputs", "first_line", "label_list"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Progress = Callable[[str, int, int], None]

MOST_NEW_TOKENS = 256
"""A continuation is never longer: a decoder that does not stop costs time and says nothing new."""


@dataclass(frozen=True)
class Output:
    """What a model said on one sample; a task fills what it has.

    Attributes:
        labels: indices of the labels said.
        tokens: ``[positions]`` the best class at each position (tagging: label; fill-mask: token at each mask).
        answer: the answer to a question, or what a decoder wrote after a prompt.
        values: logits ``[labels]`` or ``[positions * classes]``, or the embedding ``[hidden]``; of a pair of texts both
            embeddings, ``[2 * hidden]``.
    """

    labels: tuple[int, ...] = ()
    spans: tuple[Span, ...] = ()
    answer: str = ""
    answer_span: tuple[int, int] = (0, 0)
    tokens: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    values: Floats = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class Failure:
    """A sample on which a model failed: which side, which line of the data, and what it said."""

    side: str
    line: int
    message: str

    def to_json(self) -> dict[str, Any]:
        return {"side": self.side, "line": self.line, "message": self.message}


@dataclass(frozen=True)
class Outputs:
    """One entry a sample, None where the model failed."""

    items: tuple[Output | None, ...]
    failures: tuple[Failure, ...]


def collect(model: Model, data: Dataset, side: str, progress: Progress | None = None) -> Outputs:
    """Ask the model about every sample, one at a time, so that a failure costs that sample alone.

    Args:
        side: "candidate" or "baseline"; failures and progress carry it.

    Raises:
        InputError: for a task without per-sample answers: text-generation without references.
    """
    task = model.manifest.task
    ask = ask_continuation if task == "text-generation" and data.labelled else ASKS.get(task)
    if ask is None:
        fix = "use the perplexity of text-generation, or give prompts with references"
        raise InputError(f"a task of {', '.join(ASKS)}", task, fix)
    setting = setting_for(model, data)
    items: list[Output | None] = []
    failures: list[Failure] = []
    for number, sample in enumerate(data.samples, 1):
        try:
            items.append(finite(ask(model, sample, setting)))
        except Exception as error:  # whatever the model does wrong is a finding about it, named in the report
            items.append(None)
            failures.append(Failure(side, sample.line, first_line(error)))
        if progress:
            progress(f"answers of the {side}", number, len(data.samples))
    return Outputs(tuple(items), tuple(failures))


def setting_for(model: Model, data: Dataset) -> int:
    """What the whole data set says of how to ask: of questions whether some have no answer, of prompts how many tokens
    to write at most, which is what the longest reference has, up to `MOST_NEW_TOKENS`.
    """
    if model.manifest.task == "text-generation":
        sizes = (len(model.tokenizer.encode(text).ids) for sample in data.samples for text in sample.references)
        return max(1, min(MOST_NEW_TOKENS, max(sizes, default=1)))
    return model.manifest.task == "question-answering" and data.labelled and any(not s.answers for s in data.samples)


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def finite(output: Output) -> Output:
    if not np.all(np.isfinite(output.values)):
        raise ValueError("outputs that are not finite")
    return output


def encoder_inputs(model: Model, text: str) -> dict[str, Ints]:
    """The graph's inputs for one text, cut to the model's limit; each ``[1, tokens]``."""
    piece = truncated(model.tokenizer.encode(text), model.manifest.max_length)
    ids = np.array([piece.ids], dtype=np.int64)
    values = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    values["token_type_ids"] = np.array([piece.type_ids], dtype=np.int64)
    dialect = model.manifest.dialects[model.dialect]
    return {info.name: values[info.name] for info in dialect.inputs if info.name in values}


def logits_of(model: Model, text: str) -> Floats:
    """``[classes]`` or ``[positions, classes]`` of one text."""
    return np.asarray(model.run(encoder_inputs(model, text))["logits"][0], dtype=np.float64)


def ask_labels(model: Model, sample: Sample, _: int) -> Output:
    logits = logits_of(model, sample.text)
    if model.manifest.problem_type == "multi_label_classification" or len(logits) == 1:
        return Output(labels=tuple(int(i) for i in np.flatnonzero(logits > 0)), values=logits)
    if not np.all(np.isfinite(logits)):
        raise ValueError("logits that are not finite")
    return Output(labels=(int(logits.argmax()),), values=logits)


def ask_embedding(model: Model, sample: Sample, _: int) -> Output:
    found = [np.asarray(model.embed([text])[0], dtype=np.float64) for text in (sample.text, sample.pair) if text]
    return Output(values=np.concatenate(found))


def ask_tags(model: Model, sample: Sample, _: int) -> Output:
    logits = logits_of(model, sample.text)
    spans = tuple(sorted(Span(e.start, e.end, e.label) for e in model.tag([sample.text])[0]))
    return Output(spans=spans, tokens=logits.argmax(axis=-1), values=logits.reshape(-1))


def ask_answer(model: Model, sample: Sample, nothing: int) -> Output:
    best = model.answer([sample.question], [sample.context], no_answer=bool(nothing))[0]
    return Output(answer=best.text, answer_span=(best.start, best.end), values=np.array([best.score]))


def ask_continuation(model: Model, sample: Sample, longest: int) -> Output:
    """Greedy; fewer than ``longest`` tokens where the prompt leaves no room for more."""
    info = model.manifest.generation
    room = (info.max_length if info else model.manifest.max_length) - model.count_tokens(sample.text)[0]
    return Output(answer=model.generate(sample.text, max_new_tokens=max(1, min(longest, room))).text)


def ask_masks(model: Model, sample: Sample, _: int) -> Output:
    """The best token for each mask; a text without one gets one of its first words masked, by its line number."""
    filled = model.fill([masked(sample.text, mask_token(model), sample.line)], top_k=1)[0]
    tokens = np.array([best.token_id for best in filled], dtype=np.int64)
    return Output(tokens=tokens, values=np.array([best.score for best in filled]))


def mask_token(model: Model) -> str:
    """The tokenizer's mask token, found among its special tokens."""
    special = [token.content for token in model.tokenizer.get_added_tokens_decoder().values() if token.special]
    return next((str(token) for token in special if "mask" in token.lower()), "[MASK]")


FIRST_WORDS = 12  # the mask lies near the start, where no model's limit cuts it off


def masked(text: str, mask: str, number: int) -> str:
    """``text`` with one word replaced by ``mask``, unless it has a mask already.

    >>> masked("a whale swims", "[MASK]", 4)
    'a [MASK] swims'
    """
    words = list(re.finditer(r"\w+", text))[:FIRST_WORDS]
    if mask in text or not words:
        return text
    word = words[number % len(words)]
    return text[: word.start()] + mask + text[word.end() :]


ASKS: dict[str, Callable[[Any, Sample, int], Output]] = {
    "text-classification": ask_labels,
    "feature-extraction": ask_embedding,
    "token-classification": ask_tags,
    "question-answering": ask_answer,
    "fill-mask": ask_masks,
}


def label_list(outputs: Outputs) -> Sequence[tuple[int, ...] | None]:
    """The labels said, None where the model failed."""
    return [None if item is None else item.labels for item in outputs.items]
