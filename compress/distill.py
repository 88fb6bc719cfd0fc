"""Distillation: train the model on the bench to answer as its parent does.

What a pass before has cut is learned again from the teacher's logits, hidden states or attention relations, and from
labels where there are any (:mod:`planish.compress.distill_losses` names the papers). With ``quantization_aware`` the
student computes with the integers of the passes that follow. The best weights by the metric on the validation examples
are what the pass leaves; the student as it came is among the candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from planish.compress.augment import TASKS, Augment
from planish.compress.bench import Bench, Context
from planish.compress.distill_loop import accelerator_of
from planish.compress.distill_objective import Weights
from planish.compress.distill_setup import Setup
from planish.compress.distill_state import History
from planish.compress.distill_trackers import check_tracker
from planish.compress.fake_quantize_training import FakeQuantization, plan
from planish.compress.passes import Pass
from planish.compress.teacher import open_teacher
from planish.errors import RecipeError, nearest

if TYPE_CHECKING:
    from planish.compress.examples import Examples

__all__ = ["Distill"]


@dataclass(frozen=True, kw_only=True)
class Distill(Pass):
    """Train the student on the teacher's outputs.

    ``epochs`` may be a fraction; ``steps`` (of the optimizer) replaces it. ``batch_size`` is a process's; a step takes
    ``accumulate`` batches. ``warmup`` is a share of the steps. ``clip`` bounds the gradient's norm, 0 = no bound.
    ``layer_map``: see ``observed.pair_layers``. ``teacher``: a checkpoint, null = the parent. ``top_k``: of a decoder's
    teacher keep the likeliest tokens only, on disk. ``evaluate_every`` counts steps, null = each epoch; ``patience``
    evaluations without a better one end the training. ``freeze``: patterns of parameters that stay. ``dropout``
    replaces the student's own while it trains. ``augment``: the teacher is asked about altered texts, see
    :class:`planish.compress.augment.Augment`. ``judge``: the best weights are those with the best task's *metric* on
    the validation examples, or those nearest to the *teacher* (its KL divergence, where the task has one), which is
    less a matter of luck. ``tracker``: one that accelerate knows, such as trackio or mlflow.
    """

    name: ClassVar[str] = "distill"
    roles: ClassVar[frozenset[str]] = frozenset()
    kinds: ClassVar[frozenset[str]] = frozenset()
    in_place: ClassVar[bool] = True
    judged: ClassVar[bool] = True

    epochs: Annotated[float, Field(gt=0.0, le=1000.0)] = 3.0
    steps: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    accumulate: Annotated[int, Field(ge=1, le=4096)] = 1
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-4
    warmup: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    clip: Annotated[float, Field(ge=0.0)] = 1.0
    temperature: Annotated[float, Field(gt=0.0, le=100.0)] = 2.0
    weights: Weights = field(default_factory=Weights)
    layer_map: Literal["uniform"] | list[int] | None = "uniform"
    teacher: str | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    quantization_aware: bool = False
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    evaluate_every: Annotated[int, Field(ge=1)] | None = None
    patience: Annotated[int, Field(ge=1)] | None = None
    freeze: list[str] = field(default_factory=list)
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    judge: Literal["metric", "teacher"] = "metric"
    augment: Augment | None = None
    tracker: str | None = None

    def apply(self, bench: Bench, context: Context) -> Bench:
        self._check(bench)
        examples = context.examples()
        self._check_data(examples)
        teacher = open_teacher(self.teacher, bench, context)
        specs = plan(context.later, bench) if self.quantization_aware else {}
        cuda = list(range(torch.cuda.device_count()))
        with torch.random.fork_rng(devices=cuda), _trainable(bench.model, self.freeze, self.dropout):
            torch.manual_seed(context.seed)
            with accelerator_of(self.accumulate, self.precision, self.tracker) as accelerator:
                run = Setup(self, bench, context, examples, teacher, accelerator)
                fakes = FakeQuantization(bench, specs) if specs else None
                history = run.train(fakes)
                device, precision = str(accelerator.device.type), str(accelerator.mixed_precision)
            bench.model.to("cpu")
        facts = {**_facts(history), "teacher": self.teacher or context.source.name}
        bench.facts |= {**facts, "device": device, "bf16": precision == "bf16", "fake_quantized_layers": len(specs)}
        return bench

    def _check(self, bench: Bench) -> None:
        if self.include or self.exclude:
            expected = "no include or exclude in pass distill, which trains all layers"
            raise RecipeError(expected, str((self.include + self.exclude)[:2]), "name what is to stay in freeze")
        if bench.stored:
            got = f"{len(bench.stored)} layers quantized by an earlier pass"
            raise RecipeError("distill before the passes that quantize", got, "move distill up in the recipe")
        names = [name for name, _ in bench.model.named_parameters()]
        for pattern in self.freeze:
            if not any(fnmatchcase(name, pattern) for name in names):
                expected = f"pattern {pattern!r} in freeze of pass distill to match a parameter"
                raise RecipeError(expected, "no match", nearest(pattern, names[:1]) + f", e.g. {names[0]}")
        if all(any(fnmatchcase(name, pattern) for pattern in self.freeze) for name in names):
            raise RecipeError("something left to train in pass distill", "all of it in freeze", "loosen freeze")
        if self.tracker is not None:
            check_tracker(self.tracker)

    def _check_data(self, examples: Examples) -> None:
        if self.weights.labels and not examples.labelled:
            raise RecipeError(
                "labels in the training data, since weights.labels is not 0", "none", "label it, or set labels: 0"
            )
        if self.augment is not None and examples.task not in TASKS:
            raise RecipeError(
                f"augment for {', '.join(TASKS)} only", f"a model for {examples.task}", "leave augment out"
            )
        if self.augment is not None and self.weights.labels:
            got = f"labels {self.weights.labels:g}"
            raise RecipeError("weights.labels 0 with augment, whose texts have no labels", got, "set labels: 0")
        if self.top_k is not None and examples.task != "text-generation":
            raise RecipeError("top_k for decoders only", f"a model for {examples.task}", "leave top_k out")
        if self.top_k is not None and (self.weights.hidden or self.weights.relations):
            got = f"hidden {self.weights.hidden:g}, relations {self.weights.relations:g}"
            raise RecipeError("weights.hidden and weights.relations 0 with top_k, which keeps logits", got, "drop one")


@contextmanager
def _trainable(model: nn.Module, freeze: list[str], dropout: float | None) -> Iterator[None]:
    """While open, parameters not frozen take gradients and dropout is as set; afterwards all is as passes expect it."""
    before: list[tuple[nn.Module, str, float]] = []
    for module in model.modules() if dropout is not None else ():
        names = ["p"] if isinstance(module, nn.Dropout) else ["dropout", "attention_dropout", "activation_dropout"]
        before += [(module, name, value) for name in names if isinstance(value := getattr(module, name, None), float)]
    for module, name, _ in before:
        setattr(module, name, dropout)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(fnmatchcase(name, pattern) for pattern in freeze))
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        model.eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.grad = None


def _facts(history: History) -> dict[str, Any]:
    return {
        "steps": history.step,
        "tokens": history.tokens,
        "training_seconds": round(history.seconds, 1),
        "losses": history.losses,
        "evaluations": history.evaluations,
        "best_step": history.best_step,
        "stopped": history.stopped,
    }
