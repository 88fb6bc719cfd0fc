"""The loss of one batch: what each task compares of the two models' outputs, and how the parts add up.

What is needed of the teacher's outputs is small (class logits, sentence vectors, the likeliest tokens); it is made by
:meth:`Objective.target`, which is also what a cache keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict
from torch import Tensor

from planish.compress import distill_losses as losses
from planish.compress.observed import Signals
from planish.errors import RecipeError

__all__ = ["Batch", "Goal", "Objective", "Weights", "goal_of"]

Batch = Mapping[str, Tensor]

Goal = Literal["classes", "binary", "numbers", "tags", "spans", "masked", "tokens", "vectors"]
"""What logits mean: one of several classes; yes or no for each label; numbers; a class a token; where an answer starts
and ends; the masked tokens; the next token; or there are none and sentence vectors count."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """How much each part of the loss counts; 0 = off."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    logits: float = 1.0
    hidden: float = 0.0
    relations: float = 0.0
    labels: float = 0.0

    def __post_init__(self) -> None:
        parts = {name: getattr(self, name) for name in ("logits", "hidden", "relations", "labels")}
        if not all(0 <= value < float("inf") for value in parts.values()) or not any(parts.values()):
            got = ", ".join(f"{name} {value:g}" for name, value in parts.items())
            raise RecipeError("weights of pass distill: none negative, one positive", got, "e.g. weights: {logits: 1}")


def goal_of(task: str, config: Any) -> Goal:
    """What the logits of a model for ``task`` mean; ``config`` is the model's."""
    if task == "text-classification":
        kind = getattr(config, "problem_type", None)
        if kind == "multi_label_classification":
            return "binary"
        return "numbers" if kind == "regression" or config.num_labels == 1 else "classes"
    goals: dict[str, Goal] = {
        "token-classification": "tags",
        "question-answering": "spans",
        "fill-mask": "masked",
        "text-generation": "tokens",
        "feature-extraction": "vectors",
    }
    return goals[task]


@dataclass(frozen=True)
class Objective:
    """``relation_heads``: of queries, keys and values. ``top_k``: of a decoder's tokens, None = all."""

    goal: Goal
    weights: Weights
    temperature: float
    relation_heads: tuple[int, int, int] = (1, 1, 1)
    top_k: int | None = None

    @property
    def from_logits_alone(self) -> bool:
        """Whether a cache of :meth:`target` can stand for the teacher."""
        return not self.weights.hidden and not self.weights.relations

    def target(self, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        """What the logits' part needs of the teacher: ``[batch, ...]``, or ``[batch, tokens, ...]`` where per token."""
        if self.goal == "vectors":
            return {"pooled": losses.pooled(teacher["last"], batch["attention_mask"])}
        if self.goal == "spans":
            return {"start": teacher["start"], "end": teacher["end"]}
        if self.top_k is not None:
            log_p, classes = losses.top_k_of(teacher["logits"], self.top_k, self.temperature)
            return {"log_p": log_p, "classes": classes}
        return {"logits": teacher["logits"]}

    def __call__(
        self, student: Signals, target: Mapping[str, Tensor] | None, teacher: Signals | None, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and its parts before weighting. ``teacher`` is None where ``target`` is enough."""
        parts: dict[str, Tensor] = {}
        if self.weights.logits and target is not None:
            parts["logits"] = self._logits(student, target, batch)
        if teacher is not None and self.weights.hidden:
            parts["hidden"] = self._hidden(student, teacher, batch)
        if teacher is not None and self.weights.relations:
            parts["relations"] = self._relations(student, teacher, batch)
        if self.weights.labels and "loss" in student:
            parts["labels"] = student["loss"]
        total = sum(part * getattr(self.weights, name) for name, part in parts.items())
        assert not isinstance(total, int)
        return total, parts

    def _logits(self, student: Signals, target: Mapping[str, Tensor], batch: Batch) -> Tensor:
        if self.goal == "vectors":
            return self._vectors(losses.pooled(student["last"], batch["attention_mask"]), target["pooled"])
        if self.goal == "spans":
            mask, t = batch["attention_mask"], self.temperature
            ends = [losses.span_kl(student[name], target[name], mask, t) for name in ("start", "end")]
            return (ends[0] + ends[1]) / 2
        logits = student["logits"]
        if self.goal == "numbers":
            return losses.mse(logits, target["logits"])
        if self.goal == "binary":
            return losses.soft_bce(logits, target["logits"], self.temperature)
        if self.goal == "classes":
            return losses.kl(logits, target["logits"], self.temperature)
        counted = self._counted(batch)
        rows, theirs = _rows(logits, counted), {name: _rows(value, counted) for name, value in target.items()}
        if "log_p" in theirs:
            return losses.top_k_kl(rows, theirs["log_p"], theirs["classes"], self.temperature)
        return losses.kl(rows, theirs["logits"], self.temperature)

    def _counted(self, batch: Batch) -> Tensor:
        """Tokens whose logits count, bool ``[batch, tokens]``: those masked, or all that are text."""
        text = batch["attention_mask"] != 0
        if self.goal in ("masked", "tags") and "labels" in batch:
            return text & (batch["labels"] != -100)
        return text

    def _vectors(self, student: Tensor, teacher: Tensor) -> Tensor:
        if student.shape != teacher.shape:
            return losses.similarity_mse(student, teacher)
        return losses.cosine_distance(student, teacher) + losses.relative_mse(
            student[:, None], teacher[:, None], student.new_ones(len(student), 1)
        )

    def _hidden(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        mask, pairs = batch["attention_mask"], list(zip(student["hidden"], teacher["hidden"], strict=True))
        total = sum(losses.relative_mse(own, theirs, mask) for own, theirs in pairs)
        assert not isinstance(total, int)
        return total / len(pairs)

    def _relations(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        mask = batch["attention_mask"]
        each = [
            losses.relation_kl(student[name], teacher[name], mask, heads)
            for name, heads in zip("qkv", self.relation_heads, strict=True)
        ]
        return (each[0] + each[1] + each[2]) / 3


def _rows(values: Tensor, counted: Tensor) -> Tensor:
    """``values [batch, tokens, n]`` at the tokens that count, ``[rows, n]``; a view where all do."""
    return values.flatten(0, 1) if bool(counted.all()) else values[counted]
