"""The teacher of a distillation: the parent, or another checkpoint that speaks the same tokens and labels.

Where a pass has trimmed the student's vocabulary, the teacher's token table (and its head) is cut alike, so that both
read the same ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from planish.compress.bench import Bench, Context
from planish.compress.checkpoint import Checkpoint, open_checkpoint
from planish.compress.slicing import cut_vocabulary
from planish.errors import CheckpointError

__all__ = ["check_teacher", "open_teacher"]

_CLASSIFIERS = ("text-classification", "token-classification")


def open_teacher(name: str | None, bench: Bench, context: Context) -> nn.Module:
    """The teacher in eval mode, without gradients; ``name`` is a path (relative to the recipe) or a hub id, None = the
    parent.

    Raises:
        CheckpointError: it cannot be opened, is for another task, or has other tokens or labels.
    """
    source = context.source
    if name is not None:
        beside = context.folder / Path(name).expanduser()
        source = open_checkpoint(beside if beside.exists() else name)
        check_teacher(source, context.source)
    model = source.load_model()
    if bench.vocabulary is not None:
        cut_vocabulary(Bench.of(model), bench.vocabulary.tolist())
    return model.eval().requires_grad_(False)


def check_teacher(teacher: Checkpoint, parent: Checkpoint) -> None:
    """Refuse a teacher that does not speak the parent's language.

    Raises:
        CheckpointError: see :func:`open_teacher`.
    """
    if teacher.task != parent.task:
        raise CheckpointError(f"a teacher for {parent.task}", f"{teacher.name} for {teacher.task}", "name another")
    if _vocabulary(teacher) != _vocabulary(parent) or _rows(teacher) != _rows(parent):
        got = f"teacher and student vocabularies differ ({teacher.name} has {_rows(teacher)} tokens)"
        fix = "name a teacher with the same tokenizer, or leave teacher out: the parent teaches"
        raise CheckpointError(f"a teacher with the {_rows(parent)} tokens of {parent.name}", got, fix)
    if parent.task in _CLASSIFIERS and _labels(teacher) != _labels(parent):
        got = f"{_labels(teacher)} from {teacher.name}"[:160]
        fix = "name a teacher trained on the same labels in the same order"
        raise CheckpointError(f"teacher and student labels to be the same: {_labels(parent)}"[:160], got, fix)


def _vocabulary(checkpoint: Checkpoint) -> Any:
    return checkpoint.tokenizer().get_vocab()


def _rows(checkpoint: Checkpoint) -> int:
    return int(checkpoint.raw_config.get("vocab_size", 0))


def _labels(checkpoint: Checkpoint) -> list[str]:
    names = checkpoint.raw_config.get("id2label") or {}
    if names:
        return [str(names[key]) for key in sorted(names, key=int)]
    return [f"LABEL_{number}" for number in range(int(checkpoint.raw_config.get("num_labels", 2)))]
