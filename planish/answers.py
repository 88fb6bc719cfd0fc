"""From texts to printable answers, whatever the bundle's task: what ``planish run`` and the demo show."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from planish.errors import InputError

__all__ = ["answers", "answers_as_lines", "cut_texts", "generation_options", "refuse_unused"]

READERS = {
    "question": ("question-answering",),
    "pooling": ("feature-extraction",),
    "top_k": ("text-classification", "fill-mask", "text-generation"),
    "seed": ("text-generation",),
    "stop": ("text-generation",),
}
"""Option without a default -> the tasks that read it."""
CUTTING = ("feature-extraction", "text-classification", "fill-mask")
"""Tasks that read the beginning of a text that is too long for the model."""


def answers(model: Any, texts: list[str], options: dict[str, Any]) -> list[Any]:
    """One JSON-ready answer per text, by the model's task."""
    ways: dict[str, Callable[[], Any]] = {
        "feature-extraction": lambda: model.embed(texts, pooling=options.get("pooling")),
        "text-classification": lambda: model.classify(texts, top_k=options.get("top_k")),
        "token-classification": lambda: model.tag(texts),
        "fill-mask": lambda: model.fill(texts, **chosen(options, "top_k")),
        "question-answering": lambda: [model.answer(question(options), text) for text in texts],
        "text-generation": lambda: model.generate(texts, **generation_options(options)),
    }
    return list(plain(ways[model.manifest.task]()))


def question(options: dict[str, Any]) -> str:
    """The question of a question-answering call."""
    asked: str | None = options.get("question")
    if not asked:
        raise InputError("--question with a question-answering bundle", "none", 'add --question "..."')
    return asked


def generation_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options of ``planish run`` that ``generate`` takes."""
    return chosen(options, "max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed", "stop")


def chosen(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Those of ``options`` that were given."""
    return {name: options[name] for name in names if options.get(name) is not None}


def refuse_unused(task: str, options: dict[str, Any]) -> None:
    """Raise ``InputError`` for an option that another task than the bundle's would read."""
    for name, readers in READERS.items():
        if options.get(name) not in (None, ()) and task not in readers:
            option = f"--{name.replace('_', '-')}"
            raise InputError(
                f"a bundle for {' or '.join(readers)} with {option}", f"one for {task}", f"leave {option} out"
            )


def cut_texts(model: Any, texts: list[str]) -> list[str]:
    """A line for each text whose end the model did not read; tagging, answering and generating read all or refuse."""
    limit = model.manifest.max_length
    if model.manifest.task not in CUTTING:
        return []
    counts = enumerate(model.count_tokens(texts), 1)
    return [
        f"text {number} has {count} tokens; only the first {limit} were read"
        for number, count in counts
        if count > limit
    ]


def plain(value: Any) -> Any:
    """Results as JSON-ready dicts and lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    return value


def answers_as_lines(task: str, texts: list[str], results: list[Any]) -> list[str]:
    """The same answers for people, a few lines a text."""
    lines = []
    for text, result in zip(texts, results, strict=True):
        if task == "feature-extraction":
            head = ", ".join(f"{x:.4f}" for x in result[:6])
            lines.append(f"{text}\n  [{head}, ...] {len(result)} numbers")
        elif task == "text-generation":
            lines.append(text + result["text"])
        elif task == "text-classification":
            scored = zip(result["labels"], result["scores"], strict=True)
            lines.append("\n  ".join([text, *(f"{label}  {score:.4f}" for label, score in scored)]))
        else:
            found = result if isinstance(result, list) else [result]
            lines.append("\n  ".join([text, *map(one_line, found)]))
    return lines


def one_line(result: dict[str, Any]) -> str:
    """One entity, token or answer in a line."""
    told = {key: f"{value:.4f}" if isinstance(value, float) else value for key, value in result.items()}
    return "  ".join(f"{key}={value}" for key, value in told.items() if value is not None)
