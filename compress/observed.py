"""A model that says what distillation compares: logits, hidden states, and the queries, keys and values of one block.

Teacher and student are wrapped alike. Hooks keep references only; nothing is copied. What the student must learn
besides its own weights, the projection of its hidden states to the teacher's width, lives in its wrapper, so that
accelerate prepares both together.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from planish.compress.calibrate import no_cache
from planish.errors import RecipeError
from planish.families import Parts, block_parts

__all__ = ["Observed", "Signals", "Want", "fit_projection", "pair_layers", "relation_parts"]

Signals = dict[str, Any]
"""``logits`` (or ``start`` and ``end``, or ``last``), ``loss`` where labels were given, ``hidden`` (a list), ``q``,
``k``, ``v``."""

LABELS = ("labels", "start_positions", "end_positions")


@dataclass(frozen=True)
class Want:
    """What to say beside outputs: ``hidden`` states by number (0 = before the first block), relations of ``block``."""

    hidden: tuple[int, ...] = ()
    block: int | None = None


class Observed(nn.Module):
    """``forward(**batch)`` gives :data:`Signals`; with ``keep_labels`` the model's own loss on them too."""

    def __init__(self, model: nn.Module, want: Want, *, keep_labels: bool = False) -> None:
        super().__init__()
        self.model = model
        self.projection: nn.Linear | None = None
        self._no_split_modules = getattr(model, "_no_split_modules", None)  # what FSDP wraps
        self._want = want
        self._keep_labels = keep_labels
        self._options: dict[str, Any] = dict(no_cache(model))
        if want.hidden:
            self._options["output_hidden_states"] = True
        self._known = set(inspect.signature(model.forward).parameters)
        self._parts = None if want.block is None else block_parts(model)[want.block]
        self._seen: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        if self._parts is not None:
            self._hook(self._parts)

    def forward(self, **batch: Tensor) -> Signals:
        given = {name: value for name, value in batch.items() if name in self._known}
        if not self._keep_labels:
            given = {name: value for name, value in given.items() if name not in LABELS}
        output = self.model(**given, **self._options)
        signals = _outputs(output)
        if self._want.hidden:
            states = [output.hidden_states[number] for number in self._want.hidden]
            signals["hidden"] = states if self.projection is None else [self.projection(state) for state in states]
        if self._parts is not None:
            signals |= relation_parts(self._parts, self._seen)
            self._seen.clear()
        return signals

    def project(self, width: int, target: int) -> None:
        """Give hidden states ``width`` wide a projection to ``target``; call :func:`fit_projection` next."""
        self.projection = nn.Linear(width, target, bias=False)

    def _hook(self, parts: Parts) -> None:
        def keep(name: str) -> Any:
            def hook(_: nn.Module, __: Any, output: Tensor) -> None:
                self._seen[name] = output

            return hook

        for name in ("q", "k", "v", "qkv"):
            module: nn.Module | None = getattr(parts, name)
            if module is not None:
                self._handles.append(module.register_forward_hook(keep(name)))

    def unhook(self) -> None:
        """Take the hooks off the model again."""
        for handle in self._handles:
            handle.remove()


def _outputs(output: Any) -> Signals:
    signals: Signals = {}
    if "start_logits" in output:
        signals |= {"start": output.start_logits, "end": output.end_logits}
    elif "logits" in output:
        signals["logits"] = output.logits
    else:
        signals["last"] = output.last_hidden_state
    loss = output.get("loss")
    return signals if loss is None else {**signals, "loss": loss}


def relation_parts(parts: Parts, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values ``[batch, tokens, heads * head_dim]`` of what a block's projections gave."""
    if "qkv" not in seen:
        return {name: seen[name] for name in ("q", "k", "v")}
    fused = seen["qkv"]
    if parts.fused == "stacked":
        q, k, v = fused.chunk(3, -1)
    else:
        split = fused.view(*fused.shape[:-1], parts.heads, 3 * parts.head_dim)
        q, k, v = (part.flatten(-2) for part in split.chunk(3, -1))
    return {"q": q, "k": k, "v": v}


def pair_layers(how: Any, student: int, teacher: int) -> list[tuple[int, int]]:
    """Which hidden states are compared, (student's, teacher's), 0 = before the first of this many blocks.

    ``how``: *uniform* spreads the student's over the teacher's (Jiao et al. 2020); a list names the teacher's block
    (from 0) for each of the student's; None compares the last only.

    Raises:
        RecipeError: a list of another length, or a block the teacher does not have.
    """
    if how is None:
        return [(student, teacher)]
    if how == "uniform":
        return [(number, round(number * teacher / student)) for number in range(student + 1)]
    if len(how) != student or not all(0 <= number < teacher for number in how):
        expected = f"layer_map: one of the teacher's blocks 0..{teacher - 1} for each of the student's {student}"
        raise RecipeError(expected, str(list(how))[:80], "correct the list, or say uniform")
    return [(0, 0), *((index + 1, number + 1) for index, number in enumerate(how))]


@torch.no_grad()
def fit_projection(student: Observed, teacher: Observed, batches: Iterable[Mapping[str, Tensor]]) -> None:
    """Start the projection at the ridge regression of the teacher's hidden states on the student's."""
    projection = student.projection
    assert projection is not None
    width, target = projection.in_features, projection.out_features
    gram, cross = torch.zeros(width, width, dtype=torch.float64), torch.zeros(width, target, dtype=torch.float64)
    student.projection = None
    for batch in batches:
        keep = batch["attention_mask"].bool()
        for own, theirs in zip(student(**batch)["hidden"], teacher(**batch)["hidden"], strict=True):
            x, y = own[keep].double(), theirs[keep].double()
            gram += x.t() @ x
            cross += x.t() @ y
    gram.diagonal().add_(0.01 * gram.diagonal().mean().clamp_min(1e-12))
    projection.weight.copy_(torch.linalg.solve(gram, cross).t())
    student.projection = projection
