"""One distillation, put together: what is compared, what of the teacher is kept, how the student is judged."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn

from planish.compress.bench import Bench, Context
from planish.compress.digest import tensors_digest
from planish.compress.distill_loop import Evaluate, Loop, Plan
from planish.compress.distill_losses import common_heads
from planish.compress.distill_objective import Batch, Objective, goal_of
from planish.compress.distill_state import History, Keeper
from planish.compress.fake_quantize_training import FakeQuantization
from planish.compress.observed import Observed, Want, fit_projection, pair_layers
from planish.compress.quality import Reference, evaluate, headline
from planish.compress.teacher_cache import TeacherCache
from planish.families import Parts, block_list, block_parts

if TYPE_CHECKING:
    from planish.compress.distill import Distill
    from planish.compress.examples import Examples

__all__ = ["Setup"]

_FIRST = 4  # batches the projection and static input ranges start from


class Setup:
    """Wrapped models, the objective, a cache of the teacher where it can stand in for it; then the loop."""

    def __init__(
        self,
        step: Distill,
        bench: Bench,
        context: Context,
        examples: Examples,
        teacher: nn.Module,
        accelerator: Accelerator,
    ) -> None:
        self.step, self.bench, self.context, self.examples = step, bench, context, examples
        self.accelerator = accelerator
        weights, student = step.weights, bench.model
        hidden_pairs = pair_layers(step.layer_map, len(block_list(student)), len(block_list(teacher)))
        pairs = hidden_pairs if weights.hidden else []
        block, heads = None, (1, 1, 1)
        if weights.relations:
            block = max(1, hidden_pairs[-1][1]) - 1
            heads = _relation_heads(block_parts(student)[-1], block_parts(teacher)[block])
        goal = goal_of(examples.task, student.config)
        rows = None if step.top_k is None else min(step.top_k, teacher.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
        self.objective = Objective(goal, weights, step.temperature, heads, rows)
        want = Want(tuple(theirs for _, theirs in pairs), block)
        self.teacher = Observed(teacher, want).eval().requires_grad_(False)
        last = len(block_list(student)) - 1
        own = Want(tuple(mine for mine, _ in pairs), last if weights.relations else None)
        self.student = Observed(student, own, keep_labels=weights.labels > 0)
        ranks = accelerator.num_processes
        self.per_epoch = math.ceil(math.ceil(examples.count("train") / step.batch_size) / ranks / step.accumulate)
        self.steps = step.steps or max(1, round(step.epochs * self.per_epoch))
        self.tag = self._tag(ranks)
        for model in (self.student, self.teacher):
            model.to(accelerator.device)

    def train(self, fakes: FakeQuantization | None) -> History:
        """The whole training; the model on the bench is the result."""
        step = self.step
        models: list[Any] = [self.student.model, self.teacher.model]
        width, target = (int(model.config.hidden_size) for model in models)
        first = [send_to_device(batch, self.accelerator.device) for batch in self._batches(0)[:_FIRST]]
        with _attached(fakes):
            if step.weights.hidden and width != target:
                self.student.project(width, target)
                fit_projection(self.student, self.teacher, first)
            if fakes is not None:
                for batch in first:  # shows static inputs their first ranges
                    self.student(**batch)
            if step.tracker is not None:
                self.accelerator.init_trackers("planish", config={**_flat(step.settings()), "steps": self.steps})
            cache = self._cache()
            loop = Loop(
                self.accelerator,
                self.student,
                self.objective,
                self._plan(),
                batches=self._batches,
                target=None if cache is None else cache.fetch,
                teacher=self.teacher if cache is None and self._taught else None,
                evaluate=self._evaluation(),
                keeper=Keeper(self.context.pieces, self.tag, active=not self.accelerator.use_distributed),
                fakes=fakes,
                progress=lambda done, total: self.context.progress("distill", done, total),
            )
            try:
                return loop.run()
            finally:
                self.student.unhook()

    @property
    def _taught(self) -> bool:
        """Whether anything but labels counts."""
        weights = self.objective.weights
        return bool(weights.logits or weights.hidden or weights.relations)

    def _batches(self, epoch: int) -> Sequence[Batch]:
        size, augment, seed = self.step.batch_size, self.step.augment, self.context.seed
        if augment is not None:
            return self.examples.altered_batches(size, augment, seed=seed, epoch=epoch)
        return self.examples.batches("train", size, seed=seed, epoch=epoch)

    def _cache(self) -> TeacherCache | None:
        """The teacher's targets, computed once: always where the recipe keeps the top k, else where it saves time."""
        objective = self.objective
        if not (objective.weights.logits and objective.from_logits_alone) or objective.goal == "masked":
            return None
        if self.step.augment is not None:  # a text is seen once
            return None
        if objective.top_k is None and (objective.goal == "tokens" or self.steps <= self.per_epoch):
            return None
        batches = self._batches(0)[: self.steps * self.step.accumulate * self.accelerator.num_processes]

        def compute(batch: Batch) -> dict[str, Tensor]:
            here: dict[str, Tensor] = send_to_device(dict(batch), self.accelerator.device)
            with torch.no_grad(), self.accelerator.autocast():
                return self.objective.target(self.teacher(**here), here)

        def tick(done: int, total: int) -> None:
            self.context.progress("teacher", done, total)

        return TeacherCache.build(batches, compute, self.context.pieces, self.tag, tick)

    def _evaluation(self) -> Evaluate:
        """The task's metric where it is asked for and examples are labelled, else how near the teacher is."""
        examples, student, teacher = self.examples, self.student.model, self.teacher.model
        near = self.step.judge == "teacher"
        reference = Reference.of(teacher, examples) if near or not examples.judged else None

        def judge() -> tuple[str, float, bool]:
            found = evaluate(student, examples) if reference is None else reference.compare(student, examples)
            return ("kl", found["kl"], False) if near and "kl" in found else headline(found, examples.task)

        return judge

    def _plan(self) -> Plan:
        step = self.step
        return Plan(
            steps=self.steps,
            steps_per_epoch=self.per_epoch,
            accumulate=step.accumulate,
            learning_rate=step.learning_rate,
            warmup=step.warmup,
            schedule=step.schedule,
            weight_decay=step.weight_decay,
            clip=step.clip,
            evaluate_every=step.evaluate_every,
            patience=step.patience,
        )

    def _tag(self, ranks: int) -> str:
        """Whatever a saved state depends on that the work folder's key does not know."""
        content = {
            "settings": self.step.settings(),
            "seed": self.context.seed,
            "examples": self.examples.digest,
            "later": [[step.name, step.settings()] for step in self.context.later],
            "student": tensors_digest(dict(self.student.model.named_parameters())),
            "teacher": tensors_digest(dict(self.teacher.model.named_parameters())),
            "ranks": ranks,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _relation_heads(student: Parts, teacher: Parts) -> tuple[int, int, int]:
    """Into how many heads queries, keys and values are split anew, the same for both models."""
    queries = common_heads(student.heads * student.head_dim, teacher.heads * teacher.head_dim)
    keys = common_heads(student.kv_heads * student.head_dim, teacher.kv_heads * teacher.head_dim)
    return queries, keys, keys


@contextmanager
def _attached(fakes: FakeQuantization | None) -> Iterator[None]:
    if fakes is not None:
        fakes.attach()
    try:
        yield
    finally:
        if fakes is not None:
            fakes.detach()


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as trackers take them: one level, plain values."""
    groups = [(name, part) for name, part in settings.items() if isinstance(part, dict)]
    nested = {f"{name}.{key}": value for name, part in groups for key, value in part.items()}
    flat = {name: value for name, value in settings.items() if isinstance(value, (int, float, str, bool))}
    return {**flat, **nested}
