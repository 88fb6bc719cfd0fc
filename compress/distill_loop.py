"""The training loop, on accelerate: one process on a CPU or GPU, several by ``accelerate launch``, bf16 where it pays.

accelerate places and wraps the model, accumulates gradients, scales, clips and averages them over processes, and feeds
trackers. What is here is what it leaves to its caller: the learning rate as a function of the step, when to evaluate,
when to stop, what to keep. Batches are dealt out round by round, process ``r`` of ``n`` taking ``r, r + n, ..``.

Run so far: one process, and two by DDP, on a CPU; no GPU and no FSDP. FSDP follows accelerate's documented use: a copy
of the model is trained, and weights are gathered by ``get_state_dict``. States are saved by a single process only: a
killed run of several starts anew.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, broadcast, send_to_device
from torch import Tensor, nn

from planish.compress.distill_objective import Batch, Objective
from planish.compress.distill_state import (
    History,
    Keeper,
    Weights,
    moments,
    restore_moments,
    snapshot,
    write_back,
)
from planish.compress.fake_quantize_training import REFRESH, FakeQuantization
from planish.compress.observed import Observed
from planish.errors import CheckpointError, RecipeError

__all__ = ["Evaluate", "Loop", "Plan", "accelerator_of", "rate"]

Evaluate = Callable[[], tuple[str, float, bool]]
"""Judges the student as it is: name of the metric, its value, whether higher is better."""

_POINTS = 20  # of the losses that are logged
_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


@dataclass(frozen=True)
class Plan:
    """Numbers of the loop; ``steps`` are optimizer steps, ``evaluate_every`` too (None = each epoch)."""

    steps: int
    steps_per_epoch: int
    accumulate: int
    learning_rate: float
    warmup: float
    schedule: Literal["linear", "cosine", "constant"]
    weight_decay: float
    clip: float
    evaluate_every: int | None
    patience: int | None


def rate(plan: Plan, step: int) -> float:
    """Factor on the learning rate at ``step`` (from 0): up in a line over the warm-up, then as the schedule says.

    >>> plan = Plan(10, 10, 1, 1.0, 0.2, "linear", 0.0, 1.0, None, None)
    >>> [round(rate(plan, step), 3) for step in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.125]
    """
    rising = math.ceil(plan.warmup * plan.steps)
    if step < rising:
        return (step + 1) / rising
    share = (step - rising) / max(1, plan.steps - rising)
    if plan.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * share))
    return 1.0 if plan.schedule == "constant" else 1 - share


@contextmanager
def accelerator_of(accumulate: int, precision: str, tracker: str | None) -> Iterator[Accelerator]:
    """accelerate, set up for one training and left behind as it was found.

    ``precision``: *auto* is bf16 on a GPU that has it and float32 everywhere else.
    """
    fresh = not AcceleratorState._shared_state
    cuda = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    half = precision == "bf16" or (precision == "auto" and cuda)
    accelerator = Accelerator(
        gradient_accumulation_steps=accumulate,
        mixed_precision="bf16" if half else "no",
        log_with=tracker,
        project_dir="planish-runs" if tracker else None,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    try:
        yield accelerator
        if tracker:
            accelerator.end_training()
    finally:
        accelerator.free_memory()
        if fresh:
            AcceleratorState._reset_state()


class Loop:
    """One training of ``student`` (wrapped in :class:`Observed`) towards what ``target`` or ``teacher`` says.

    ``batches(epoch)`` are all of an epoch. ``target`` gives what a cache holds for a batch; without it ``teacher`` is
    run on each. ``evaluate`` judges the student's model as it is.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        student: Observed,
        objective: Objective,
        plan: Plan,
        *,
        batches: Callable[[int], Sequence[Batch]],
        target: Callable[[Batch], Mapping[str, Tensor]] | None,
        teacher: Observed | None,
        evaluate: Evaluate,
        keeper: Keeper,
        fakes: FakeQuantization | None,
        progress: Callable[[int, int], None],
    ) -> None:
        self.accelerator, self.objective, self.plan = accelerator, objective, plan
        self.plain, self.teacher = student, teacher
        self.batches, self.target, self.evaluate = batches, target, evaluate
        self.keeper, self.fakes, self.progress = keeper, fakes, progress
        self.history = History()
        self.best: Weights = {}
        self.apart = accelerator.distributed_type in _SHARDED
        if self.apart and fakes is not None:
            got = f"{accelerator.distributed_type.value}, which splits weights"
            raise RecipeError(
                "one GPU, or several by DDP, for quantization_aware", got, "choose another accelerate config"
            )
        trained = copy.deepcopy(student) if self.apart else student
        optimizer = torch.optim.AdamW(
            _groups(trained), lr=plan.learning_rate, weight_decay=plan.weight_decay, fused=True
        )
        self.trained, self.optimizer = accelerator.prepare(trained, optimizer)
        self._epoch: tuple[int, list[Batch]] = (-1, [])

    def run(self) -> History:
        """Train to the end, or to where it has to stop; the student's model holds the best weights then.

        Raises:
            RecipeError: the loss is not finite before anything worth keeping was trained.
        """
        start = time.monotonic()
        self._begin()
        self.plain.train()
        with torch.enable_grad():
            while self.history.step < self.plan.steps and self.history.stopped is None:
                self.progress(self.history.step, self.plan.steps)
                self._next()
                now = time.monotonic()
                self.history.seconds, start = self.history.seconds + now - start, now
                if self.history.step % self.plan.steps_per_epoch == 0 or self.keeper.due():
                    self._save()
        self.plain.eval()
        write_back(self.plain.model, self.best)
        self.progress(self.plan.steps, self.plan.steps)
        return self.history

    def _begin(self) -> None:
        """Continue from the last state, or judge the student as it came."""
        saved = self.keeper.load()
        if saved is None:
            self._judge()
            return
        groups, self.history = saved
        write_back(self.plain, groups["model"])
        restore_moments(self.plain, self.optimizer, groups.get("optimizer", {}))
        self.best = groups["best"]
        if self.fakes is not None:
            self.fakes.restore(groups["fakes"])
        torch.set_rng_state(groups["rng"]["cpu"])
        if "cuda" in groups["rng"]:
            torch.cuda.set_rng_state(groups["rng"]["cuda"], self.accelerator.device)

    def _save(self) -> None:
        if self.apart or not self.accelerator.is_main_process:
            return
        groups = {"model": snapshot(self.plain), "optimizer": moments(self.plain, self.optimizer), "best": self.best}
        groups["rng"] = {"cpu": torch.get_rng_state()}
        if self.accelerator.device.type == "cuda":
            groups["rng"]["cuda"] = torch.cuda.get_rng_state(self.accelerator.device)
        if self.fakes is not None:
            groups["fakes"] = self.fakes.state()
        self.keeper.save(groups, self.history)

    def _next(self) -> None:
        """One optimizer step, and what is due after it."""
        plan, history = self.plan, self.history
        if self.fakes is not None and history.step % REFRESH == 0:
            self.fakes.refresh(self._mean)
        for group in self.optimizer.param_groups:
            group["lr"] = plan.learning_rate * rate(plan, history.step)
        found = self._gradients()
        if found is None:
            self._stop_at_nan(history.step + 1)
            return
        self.optimizer.step()
        self.optimizer.zero_grad()
        history.step += 1
        history.add(found)
        if history.step % max(1, plan.steps // _POINTS) == 0 or history.step == plan.steps:
            self.accelerator.log(history.point(), step=history.step)
        every = plan.evaluate_every or plan.steps_per_epoch
        if history.step % every == 0 or history.step == plan.steps:
            self._judge()

    def _gradients(self) -> dict[str, float] | None:
        """Gradients of one step, averaged over its batches and processes; the losses, or None if one is not finite."""
        epoch, number = divmod(self.history.step, self.plan.steps_per_epoch)
        mine, sums, whole = self._dealt(epoch), dict[str, float](), 0.0
        for index in range(self.plan.accumulate):
            batch = mine[(number * self.plan.accumulate + index) % len(mine)]
            self.history.tokens += int(batch["attention_mask"].sum()) * self.accelerator.num_processes
            with self.accelerator.accumulate(self.trained):
                loss, parts = self._losses(batch)
                self.accelerator.backward(loss)
            whole += float(self._mean(loss.detach()))
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach()) / self.plan.accumulate
        norm = 0.0
        if self.plan.clip:
            norm = float(self.accelerator.clip_grad_norm_(self.trained.parameters(), self.plan.clip))
        return {"loss": whole / self.plan.accumulate, **sums} if math.isfinite(whole) and math.isfinite(norm) else None

    def _losses(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        device, signals = self.accelerator.device, None
        here: dict[str, Tensor] = send_to_device(dict(batch), device)
        student = self.trained(**here)
        target = None if self.target is None else send_to_device(dict(self.target(batch)), device)
        if self.teacher is not None:
            with torch.no_grad(), self.accelerator.autocast():
                signals = self.teacher(**here)
            target = self.objective.target(signals, here) if self.objective.weights.logits else None
        return self.objective(student, target, signals, here)

    def _dealt(self, epoch: int) -> list[Batch]:
        """This process's batches of an epoch; as many for each, the first twice where they do not come out even."""
        if self._epoch[0] != epoch:
            found, ranks = self.batches(epoch), self.accelerator.num_processes
            rounds = -(-len(found) // ranks)
            own = [found[(turn * ranks + self.accelerator.process_index) % len(found)] for turn in range(rounds)]
            self._epoch = (epoch, own)
        return self._epoch[1]

    def _mean(self, value: Tensor) -> Tensor:
        """Of all processes."""
        mean: Tensor = self.accelerator.reduce(value, "mean")
        return mean

    def _judge(self) -> None:
        """Evaluate; keep the weights if they are the best, stop if they have not been for too long."""
        if self.fakes is not None:
            self.fakes.refresh(self._mean)
        self._gather()
        self.plain.eval()
        try:
            with torch.no_grad():
                name, value, higher = self.evaluate()
        except CheckpointError:  # weights that are not finite, or make numbers that are not
            self._stop_at_nan(self.history.step)
            return
        self.plain.train()
        if self.history.judge(name, value, higher=higher):
            self.best = snapshot(self.plain.model)
        self.accelerator.log({name: value}, step=self.history.step)
        if self.plan.patience is not None and self.history.stale >= self.plan.patience:
            said = f"no better {name} in {self.history.stale} evaluations, at step {self.history.step}"
            self.history.stopped = said

    @torch.no_grad()
    def _gather(self) -> None:
        """Bring weights that are split over processes into the plain student, of each process."""
        if not self.apart:
            return
        state = self.accelerator.get_state_dict(self.trained)
        for name, parameter in self.plain.named_parameters():
            whole = state[name] if self.accelerator.is_main_process else torch.empty_like(parameter)
            parameter.copy_(broadcast(whole.to(self.accelerator.device)))

    def _stop_at_nan(self, step: int) -> None:
        epoch = max(0, step - 1) // self.plan.steps_per_epoch + 1
        if len(self.history.evaluations) < 2:  # the first was before any step
            got = f"NaN or infinity at step {step} of {self.plan.steps}"
            raise RecipeError("a finite loss in pass distill", got, "lower its learning_rate")
        self.history.stopped = f"NaN loss at step {step} (epoch {epoch})"


def _groups(module: nn.Module) -> list[dict[str, Any]]:
    """Parameters to train: matrices with weight decay, biases and norms without."""
    free = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in free if parameter.ndim > 1]},
        {"params": [parameter for parameter in free if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
