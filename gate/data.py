"""Evaluation files: JSONL with one object a line, or plain text with one text a line (then without labels).

Fields by task (others are kept as ``columns``, to slice by)::

    text-classification    {"text": str, "label": name or index}            for a multi-label model a list of them
    token-classification   {"text": str, "spans": [[start, end, label], ..]}    character offsets, end exclusive
                           {"tokens": [str], "tags": ["B-PER", "I-PER", "O"]}   joined by one space
    question-answering     {"question": str, "context": str, "answers": [str] or {"text": [str], ..}}   []: no answer
    feature-extraction     {"sentence1": str, "sentence2": str, "score": number}   how alike they are, on any scale
                           {"text": str, "text_pair": str, "score": number}        the same; {"text": str} has no score
    text-generation        {"prompt": str, "reference": str or [str]}   how it should go on; {"text": str} without
    fill-mask              {"text": str}

Either every line is labelled or none is. Blank lines are skipped. Anything else is a `DataError` that names file and
line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from planish.errors import DataError, nearest
from planish.gate.spans import Span, spans_from_tags

__all__ = ["Dataset", "Sample", "load_data", "load_texts", "plain_texts", "unlabelled"]

TEXT_FIELDS = {
    "question-answering": ("question", "context"),
    "feature-extraction": ("sentence1", "sentence2", "text_pair"),
    "text-generation": ("prompt",),
}
LABEL_FIELDS = {
    "text-classification": ("label",),
    "token-classification": ("spans", "tags"),
    "question-answering": ("answers",),
    "feature-extraction": ("score",),
    "text-generation": ("reference",),
}


@dataclass(frozen=True)
class Sample:
    """One line. ``line`` counts from 1; fields a task does not have are empty.

    Attributes:
        pair, score: feature-extraction: the text that ``text`` is compared with, and how alike they are.
        references: text-generation: texts that continue the prompt, which is ``text``, as it should be.
    """

    line: int
    text: str = ""
    question: str = ""
    context: str = ""
    label: tuple[int, ...] = ()
    spans: tuple[Span, ...] = ()
    answers: tuple[str, ...] = ()
    pair: str = ""
    score: float | None = None
    references: tuple[str, ...] = ()
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """The samples of a file; ``duplicates`` counts inputs that occurred before (they make intervals too narrow)."""

    name: str
    samples: tuple[Sample, ...]
    labelled: bool
    duplicates: int = 0


class Line:
    """One parsed line and the way to refuse it."""

    def __init__(self, path: Path, number: int, fields: dict[str, Any]) -> None:
        self.path, self.number, self.fields = path, number, fields

    def refuse(self, expected: str, got: str, fix: str = "correct the line") -> NoReturn:
        raise DataError(f"{self.path} line {self.number}: {expected}", got, fix)

    def string(self, name: str) -> str:
        if name not in self.fields:
            self.refuse(
                f'a field "{name}"',
                fields_seen(self.fields),
                nearest(name, self.fields) if self.fields else "add the field",
            )
        value = self.fields[name]
        if not isinstance(value, str) or not value.strip():
            self.refuse(f'"{name}" to be a text that is not empty', shown(value))
        if not is_unicode(value):
            self.refuse(
                f'"{name}" to be valid Unicode',
                "a lone surrogate",
                "write the text as UTF-8, without \\ud800-like escapes",
            )
        return value

    def strings(self, name: str) -> list[str]:
        value = self.fields[name]
        if not isinstance(value, list) or not all(isinstance(item, str) and is_unicode(item) for item in value):
            self.refuse(f'"{name}" to be a list of texts', shown(value))
        return value


def load_data(
    path: str | Path, task: str, labels: Sequence[str] | None = None, problem_type: str | None = None
) -> Dataset:
    """Read and check an evaluation file.

    Args:
        labels: the model's label names; a label that is none of them is an error that names the nearest.
        problem_type: the manifest's; only ``multi_label_classification``, or a model with a single label, which may be
            absent, takes lists of labels.

    Raises:
        DataError: naming file, line and what is wrong.
    """
    path = Path(path)
    if path.suffix == ".txt":
        return load_texts(path, task)
    samples: list[Sample] = []
    first_labelled: bool | None = None
    for line in parsed_lines(path):
        sample, labelled = sample_of(line, task, labels, problem_type)
        if first_labelled is None:
            first_labelled = labelled
        elif labelled != first_labelled:
            wanted = " or ".join(f'"{name}"' for name in LABEL_FIELDS[task])
            line.refuse(
                f"{wanted} on every line or on none",
                f"a line with{'' if labelled else 'out'}, after lines with{'' if first_labelled else 'out'}",
                "label every line, or remove all labels",
            )
        samples.append(sample)
    check_scores(path, samples)
    return dataset_of(path, samples, labelled=bool(first_labelled))


def load_texts(path: str | Path, task: str) -> Dataset:
    """A plain text file: one text a line, without labels."""
    path = Path(path)
    if task == "question-answering":
        raise DataError(
            "a .jsonl file with question and context", str(path), 'write lines like {"question": "..", "context": ".."}'
        )
    samples = [Sample(number, text=line) for number, line in decoded_lines(path)]
    return dataset_of(path, samples, labelled=False)


def unlabelled(name: str, texts: Sequence[str], task: str) -> Dataset:
    """A data set of bare texts; for question-answering each text is a context, asked what it is about.

    Raises:
        DataError: no text at all.
    """
    if not texts:
        raise DataError("at least one text", f"none in {name}", "give texts, or a file with one text a line")
    if task == "question-answering":
        samples = tuple(Sample(n, question="What is this about?", context=text) for n, text in enumerate(texts, 1))
    else:
        samples = tuple(Sample(n, text=text) for n, text in enumerate(texts, 1))
    return Dataset(name, samples, labelled=False)


def plain_texts(data: Dataset) -> list[str]:
    """The texts alone, for what learns without labels: both of a pair; a prompt and its first reference as one text."""
    texts = []
    for sample in data.samples:
        whole = sample.text
        if sample.references:
            space = "" if whole[-1].isspace() or sample.references[0][0].isspace() else " "
            whole += space + sample.references[0]
        texts += [whole, sample.pair] if sample.pair else [whole]
    return texts


def dataset_of(path: Path, samples: Sequence[Sample], *, labelled: bool) -> Dataset:
    if not samples:
        raise DataError(f"at least one line in {path}", "an empty file", "give a file with one sample a line")
    inputs = {(sample.text, sample.pair, sample.question, sample.context) for sample in samples}
    return Dataset(str(path), tuple(samples), labelled, duplicates=len(samples) - len(inputs))


def decoded_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers. Only ``\\n`` and ``\\r\\n`` end a line, as JSONL wants."""
    try:
        with path.open("rb") as stream:
            for number, raw in enumerate(stream, 1):
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")  # a byte order mark, as some editors write
                try:
                    line = raw.decode("utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    got = f"byte 0x{raw[error.start]:02x} at column {error.start + 1}"
                    raise DataError(f"{path} line {number}: UTF-8", got, "save the file as UTF-8") from None
                if line.strip():
                    yield number, line
    except OSError as error:
        raise DataError(f"a readable file {path}", error.strerror or type(error).__name__, "check the path") from None


def parsed_lines(path: Path) -> Iterator[Line]:
    for number, text in decoded_lines(path):
        try:
            value = json.loads(text, object_pairs_hook=unique_keys, parse_constant=no_constant)
        except RecursionError:
            raise DataError(
                f"{path} line {number}: a JSON object", "JSON nested too deeply", "correct the line"
            ) from None
        except (
            ValueError
        ) as error:  # JSONDecodeError is one; so are our own refusals and integers of thousands of digits
            raise DataError(f"{path} line {number}: a JSON object", str(error), "correct the line") from None
        if not isinstance(value, dict):
            raise DataError(f"{path} line {number}: a JSON object", shown(value), 'write for example {"text": ".."}')
        yield Line(path, number, value)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} twice")
        found[key] = value
    return found


def no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which is not JSON")


def sample_of(line: Line, task: str, labels: Sequence[str] | None, problem_type: str | None) -> tuple[Sample, bool]:
    """The sample of a line, and whether it carries a label."""
    fields: dict[str, Any] = {}
    if task == "question-answering":
        fields = {"question": line.string("question"), "context": line.string("context")}
    elif task == "token-classification" and "tokens" in line.fields:
        fields = tagged_text(line, labels)
    elif task == "feature-extraction" and any(name in line.fields for name in TEXT_FIELDS[task]):
        fields = scored_pair(line)
    elif task == "text-generation" and ("prompt" in line.fields or "reference" in line.fields):
        fields = prompt_of(line)
    else:
        fields = {"text": line.string("text")}
    labelled = any(name in line.fields for name in LABEL_FIELDS.get(task, ()))
    if task == "feature-extraction":
        labelled = "score" in fields  # a lone text's score is a column like others
    if task == "text-classification" and labelled:
        fields["label"] = label_of(line, labels, problem_type)
    elif task == "token-classification" and "spans" in line.fields:
        fields["spans"] = spans_of(line, fields["text"], labels)
    elif task == "question-answering" and labelled:
        fields["answers"] = answers_of(line)
    known = {"text", "tokens", *TEXT_FIELDS.get(task, ()), *LABEL_FIELDS.get(task, ())}
    columns = {key: value for key, value in line.fields.items() if key not in known}
    return Sample(line.number, columns=columns, **fields), labelled


def label_of(line: Line, labels: Sequence[str] | None, problem_type: str | None) -> tuple[int, ...]:
    """Label indices; one, or several of a list where the model may say several."""
    if labels is None:
        line.refuse(
            "data for a model with labels",
            "a bundle without labels",
            "remove the labels, or give a classification bundle",
        )
    value = line.fields["label"]
    if not isinstance(value, list):
        return (label_index(line, value, labels),)
    if problem_type != "multi_label_classification" and len(labels) > 1:
        # The model says one label: a list of two, or of none, would count as wrong whatever it says.
        line.refuse(
            "one label, by name or index, for a model of one label a text", shown(value), 'write "label": 0, say'
        )
    return tuple(sorted({label_index(line, item, labels) for item in value}))


def label_index(line: Line, value: Any, labels: Sequence[str]) -> int:
    if isinstance(value, str) and value in labels:
        return labels.index(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value < len(labels):
            return value
        line.refuse(f"a label index from 0 to {len(labels) - 1}", str(value))
    fix = nearest(value, labels) if isinstance(value, str) else f"known: {', '.join(labels)}"
    return line.refuse("a label of the model, by name or index", shown(value), fix)


def spans_of(line: Line, text: str, labels: Sequence[str] | None) -> tuple[Span, ...]:
    value = line.fields["spans"]
    if not isinstance(value, list):
        line.refuse('"spans" to be a list of [start, end, label]', shown(value))
    return tuple(sorted(span_of(line, item, text, labels) for item in value))


def span_of(line: Line, item: Any, text: str, labels: Sequence[str] | None) -> Span:
    parts = [item.get("start"), item.get("end"), item.get("label")] if isinstance(item, dict) else item
    if not (
        isinstance(parts, list)
        and len(parts) == 3
        and type(parts[0]) is int
        and type(parts[1]) is int
        and isinstance(parts[2], str)
    ):
        line.refuse("a span [start, end, label]", shown(item))
    start, end, label = parts
    if not 0 <= start < end <= len(text):
        line.refuse(f"a span inside the text of {len(text)} characters", shown(item))
    return Span(start, end, entity_label(line, label, labels))


def entity_label(line: Line, label: str, labels: Sequence[str] | None) -> str:
    """The entity type, checked against the model's tags without their B-/I- prefix."""
    known = {
        name.split("-", 1)[1] if name[:2] in {"B-", "I-", "S-", "E-", "L-", "U-"} else name for name in labels or ()
    } - {"O"}
    if known and label not in known:
        line.refuse("an entity label of the model", shown(label), nearest(label, known))
    return label


def tagged_text(line: Line, labels: Sequence[str] | None) -> dict[str, Any]:
    """Text and spans of a pre-tokenized line; spans only where it has tags."""
    tokens = line.strings("tokens")
    if not tokens or not all(tokens):
        line.refuse('"tokens" to be words, none empty', shown(tokens))
    if "tags" not in line.fields:
        return {"text": " ".join(tokens)}
    tags = line.strings("tags")
    if len(tags) != len(tokens):
        line.refuse(f"one tag for each of the {len(tokens)} tokens", f"{len(tags)} tags")
    spans = spans_from_tags(tokens, tags)
    for span in spans:
        entity_label(line, span.label, labels)
    return {"text": " ".join(tokens), "spans": spans}


def answers_of(line: Line) -> tuple[str, ...]:
    value = line.fields["answers"]
    texts = value.get("text") if isinstance(value, dict) else value
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(item, str) and is_unicode(item) for item in texts):
        line.refuse('"answers" to be a list of texts, or {"text": [..]}', shown(value))
    return tuple(texts)


def scored_pair(line: Line) -> dict[str, Any]:
    """Two texts and how alike they are, by either pair of names."""
    first, second = ("text", "text_pair")
    if "sentence1" in line.fields or "sentence2" in line.fields:
        if "text" in line.fields or "text_pair" in line.fields:
            expected = '"sentence1" and "sentence2", or "text" and "text_pair"'
            line.refuse(expected, fields_seen(line.fields), "keep one pair of names")
        first, second = ("sentence1", "sentence2")
    return {"text": line.string(first), "pair": line.string(second), "score": score_of(line)}


def score_of(line: Line) -> float:
    if "score" not in line.fields:
        line.refuse('a field "score": how alike the two texts are', fields_seen(line.fields), "add the field")
    value = line.fields["score"]
    try:
        score = math.nan if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)
    except OverflowError:  # a whole number beyond 1.8e308
        score = math.inf
    if not math.isfinite(score):
        line.refuse('"score" to be a finite number', shown(value))
    return score


def check_scores(path: Path, samples: Sequence[Sample]) -> None:
    """Refuse pairs of which none is more alike than another: they rank nothing."""
    scores = {sample.score for sample in samples}
    if len(samples) > 1 and len(scores) == 1 and None not in scores:
        got = f"{scores.pop():g} on all {len(samples)} lines"
        raise DataError(f"scores that differ in {path}", got, "give pairs that are more alike and pairs that are less")


def prompt_of(line: Line) -> dict[str, Any]:
    """A prompt and the texts that continue it as it should be."""
    if "text" in line.fields:
        expected = '"prompt" and "reference", or "text" alone'
        line.refuse(expected, fields_seen(line.fields), "keep one form")
    prompt = line.string("prompt")
    if not isinstance(line.fields.get("reference"), list):
        return {"text": prompt, "references": (line.string("reference"),)}
    references = line.strings("reference")
    if not references or not all(text.strip() for text in references):
        line.refuse('"reference" to be a text or texts, none empty', shown(references))
    return {"text": prompt, "references": tuple(references)}


def is_unicode(text: str) -> bool:
    """False for a lone surrogate, which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def fields_seen(fields: dict[str, Any]) -> str:
    return f"the fields {', '.join(map(repr, list(fields)[:8]))}" if fields else "no field"


def shown(value: Any) -> str:
    """A value in a message, cut to one short line."""
    text = ascii(value) if isinstance(value, str) and not is_unicode(value) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
