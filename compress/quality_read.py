"""What a torch model says on each example, kept small enough to hold for all of them.

Answers are read as the runtime reads them: labels of several-label models where the logit is above 0, an answer's best
first and last token at most 15 tokens apart, a word's tag from its first token, embeddings as the mean over tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from planish.compress.calibrate import no_cache
from planish.compress.encode_examples import IGNORED, Example
from planish.compress.examples import Examples, Part
from planish.errors import CheckpointError

__all__ = ["KEPT", "Reading", "chosen_rows", "read_all"]

Progress = Callable[[str, int, int], None]

KEPT = 1024
"""Of a vocabulary's log-probabilities only the largest are kept; the rest counts as one more outcome."""

_BATCH = 32
_LOGITS = 1 << 26  # numbers a batch may give at most: 256 MiB
_LABELS = ("labels", "start_positions", "end_positions")
_ANSWER_TOKENS = 15


@dataclass(frozen=True)
class Reading:
    """What a model said on one example, at ``n`` places.

    The places are the text as a whole (1), its words (tagging), its masked or its predicted tokens, or an answer's
    first and last token (2).

    Attributes:
        best: int64 ``[n]``, the best class at each place.
        log: float32 ``[n, k]``, log-probabilities of classes or tokens; logits where several labels may be right; the
            embedding ``[1, hidden]``.
        ids: int32 ``[n, k]``, the tokens ``log`` is of; None where it is of all classes.
        places: int64 ``[n, 2]`` (of answers ``[t, 2]``), characters; None where a place has none.
        losses: float32 ``[n]``, negative log-likelihood of the true token; empty for other tasks.
        truth: int64 ``[n]``, the true token or tag; empty where there is none.
    """

    best: Tensor
    log: Tensor
    ids: Tensor | None = None
    places: Tensor | None = None
    losses: Tensor = torch.empty(0)  # noqa: RUF009
    truth: Tensor = torch.empty(0, dtype=torch.int64)  # noqa: RUF009

    @property
    def span(self) -> tuple[int, int]:
        """Characters of the answer in the context; (0, 0) for none."""
        assert self.places is not None
        first, last = self.best.tolist()
        start, end = int(self.places[first, 0]), int(self.places[last, 1])
        return (start, end) if start >= 0 else (0, 0)


def chosen_rows(count: int, limit: int | None) -> list[int]:
    """Numbers of at most ``limit`` examples, evenly spread: files are often sorted by label.

    >>> chosen_rows(10, 3)
    [0, 3, 6]
    """
    if limit is None or limit >= count:
        return list(range(count))
    return [number * count // limit for number in range(limit)]


@torch.no_grad()
def read_all(
    model: Any,
    examples: Examples,
    part: Part,
    rows: Sequence[int],
    *,
    keep: bool = False,
    against: Sequence[Reading] | None = None,
    progress: Progress | None = None,
) -> list[Reading]:
    """One reading for each of ``rows``, in their order; the model is left in the mode it was in.

    Args:
        keep: keep the largest log-probabilities of a vocabulary.
        against: readings of the same rows; log-probabilities are then those of the same tokens.

    Raises:
        CheckpointError: the model says numbers that are not finite.
    """
    found: dict[int, Reading] = {}
    all_rows = examples.rows(part)
    read = _READERS[examples.task]
    nothing = _may_say_nothing(examples, part)
    training = model.training
    model.eval()
    try:
        for batch in _batches(model, examples, part, rows):
            inputs = examples.batch(part, [rows[place] for place in batch])
            outputs = _run(model, inputs)
            for index, place in enumerate(batch):
                example = all_rows[rows[place]]
                piece = {name: value[index, : len(example.ids)] for name, value in outputs.items() if value.dim() > 2}
                piece |= {name: value[index] for name, value in outputs.items() if value.dim() <= 2}
                ids = against[place].ids if against is not None else None
                label = inputs["labels"][index] if "labels" in inputs else None
                ask = _Ask(example, label, examples.several, nothing, keep, ids)
                found[place] = _finite(read(piece, ask))
            if progress is not None:
                progress("evaluate", len(found), len(rows))
    finally:
        model.train(training)
    return [found[place] for place in range(len(rows))]


@dataclass(frozen=True)
class _Ask:
    """What a reader needs beside the outputs; ``label`` is padded, ``ids`` are the tokens whose log to gather."""

    example: Example
    label: Tensor | None
    several: bool
    nothing: bool
    keep: bool
    ids: Tensor | None


def _may_say_nothing(examples: Examples, part: Part) -> bool:
    """Whether some question of labelled data has no answer, so that the empty one may win."""
    if examples.task != "question-answering" or not examples.judged:
        return False
    return any(row.sample is not None and not row.sample.answers for row in examples.rows(part))


def _batches(model: Any, examples: Examples, part: Part, rows: Sequence[int]) -> Iterator[list[int]]:
    """Places in ``rows``, in batches of like length that fit in memory."""
    lengths = [len(examples.rows(part)[row].ids) for row in rows]
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    head = model.get_output_embeddings() if examples.task in ("fill-mask", "text-generation") else None
    wide = 1 if head is None else int(head.weight.shape[0])
    start = 0
    while start < len(order):
        part_of = order[start : start + _BATCH]
        fitting = max(1, min(len(part_of), _LOGITS // (wide * lengths[part_of[-1]])))
        yield part_of[:fitting]
        start += fitting


def _run(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs by name, on the CPU: floats ``[b, ...]``."""
    device = next(model.parameters()).device
    given = {name: value.to(device) for name, value in inputs.items() if name not in _LABELS}
    outputs = model(**given, **no_cache(model))
    wanted = ("logits", "start_logits", "end_logits", "last_hidden_state")
    return {name: outputs[name].float().cpu() for name in wanted if outputs.get(name) is not None}


def _finite(reading: Reading) -> Reading:
    allowed = reading.log[reading.log != -torch.inf]
    if not bool(torch.isfinite(allowed).all()):
        fix = "take the last model that was finite; lower the learning rate, or cut less"
        raise CheckpointError("finite outputs of the model on the validation texts", "NaN or infinity", fix)
    return reading


def _classes(outputs: dict[str, Tensor], ask: _Ask) -> Reading:
    logits = outputs["logits"][None]
    if ask.several:
        return Reading((logits[0] > 0).nonzero().flatten(), logits)
    return Reading(logits.argmax(-1), logits.log_softmax(-1))


def _tags(outputs: dict[str, Tensor], ask: _Ask) -> Reading:
    example = ask.example
    assert example.open is not None
    assert example.words is not None
    logits = outputs["logits"][example.open]
    truth = example.label[example.open] if example.label is not None else torch.empty(0, dtype=torch.int64)
    return Reading(logits.argmax(-1), logits.log_softmax(-1), places=example.words[example.open], truth=truth)


def _answers(outputs: dict[str, Tensor], ask: _Ask) -> Reading:
    example = ask.example
    assert example.open is not None
    allowed = example.open.clone()
    allowed[0] = True
    count = len(allowed)
    both = torch.stack([outputs[f"{name}_logits"][:count] for name in ("start", "end")])
    if not bool(torch.isfinite(both).all()):
        return Reading(torch.zeros(2, dtype=torch.int64), both)
    log = both.masked_fill(~allowed, -torch.inf).log_softmax(-1)
    scores = log[0][:, None] + log[1]
    inside = example.open[:, None] & example.open & torch.ones(count, count).triu().tril(_ANSWER_TOKENS - 1).bool()
    scores = scores.masked_fill(~inside, -torch.inf)
    best = divmod(int(scores.argmax()), count)
    if not bool(inside.any()) or (ask.nothing and float(log[:, 0].sum()) >= float(scores[best])):
        best = (0, 0)
    return Reading(torch.tensor(best), log, places=example.words)


def _masks(outputs: dict[str, Tensor], ask: _Ask) -> Reading:
    assert ask.label is not None
    label = ask.label[: len(ask.example.ids)]
    at = label != IGNORED
    return _tokens(outputs["logits"][at], label[at], ask)


def _next_tokens(outputs: dict[str, Tensor], ask: _Ask) -> Reading:
    return _tokens(outputs["logits"][:-1], ask.example.ids[1:], ask)


def _tokens(logits: Tensor, truth: Tensor, ask: _Ask) -> Reading:
    """A reading of logits ``[n, vocabulary]`` whose true tokens are ``truth [n]``."""
    log = logits.log_softmax(-1)
    losses = -log.gather(1, truth[:, None])[:, 0]
    best = log.argmax(-1)
    if ask.ids is not None and len(ask.ids) == len(log):
        return Reading(best, log.gather(1, ask.ids.long()), ask.ids, losses=losses, truth=truth)
    if not ask.keep:
        return Reading(best, losses[:, None], losses=losses, truth=truth)
    values, ids = log.topk(min(KEPT, log.shape[1]), dim=-1)
    return Reading(best, values, ids.int(), losses=losses, truth=truth)


def _embedding(outputs: dict[str, Tensor], ask: _Ask) -> Reading:
    mean = outputs["last_hidden_state"].double().mean(0, keepdim=True).float()
    return Reading(torch.empty(0, dtype=torch.int64), mean)


_READERS: dict[str, Callable[[dict[str, Tensor], _Ask], Reading]] = {
    "text-classification": _classes,
    "token-classification": _tags,
    "question-answering": _answers,
    "fill-mask": _masks,
    "text-generation": _next_tokens,
    "feature-extraction": _embedding,
}
