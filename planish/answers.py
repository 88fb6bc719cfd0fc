"""From texts to printable answers, whatever the bundle's task: what ``planish run`` and the demo show."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from planish.errors import InputError

__all__ = ["answers", "answers_as_lines", "generation_options"]


def answers(model: Any, texts: list[str], options: dict[str, Any]) -> list[Any]:
    """One JSON-ready answer per text, by the model's task."""
    ways: dict[str, Callable[[], Any]] = {
        "feature-extraction": lambda: model.embed(texts, pooling=options.get("pooling")),
        "text-classification": lambda: model.classify(texts, top_k=options.get("top_k")),
        "token-classification": lambda: model.tag(texts),
        "fill-mask": lambda: model.fill(texts, top_k=options.get("top_k") or 5),
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
    names = ("max_new_tokens", "temperature", "top_p", "repetition_penalty", "seed", "stop")
    chosen = {name: options[name] for name in names if options.get(name) is not None}
    if options.get("top_k"):
        chosen["top_k"] = options["top_k"]
    return chosen


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
