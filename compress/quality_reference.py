"""How far a model says what its parent says, without labels.

Agreement is the share of places with the same best class; divergence is Kullback-Leibler's of the model from the
parent, nats a place. Of a vocabulary the parent's 1,024 likeliest tokens and the rest taken together are compared,
which bounds the divergence from below (SmolLM2 with 5 % noise on its weights: 0.125 of 0.131). Texts are matched by
their characters: after vocabulary trimming, ids differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from planish.compress.examples import Examples, Part
from planish.compress.quality_read import Progress, Reading, chosen_rows, read_all
from planish.compress.quality_spans import entities
from planish.errors import InputError

__all__ = ["Reference"]

_PLACES = 4096  # tokens whose likeliest continuations are kept: 32 MiB
_TINY = 1e-12
_MASKED = 0.15


class Reference:
    """What the parent says on a part of its examples; made once, then compared with as often as one likes."""

    def __init__(self, examples: Examples, part: Part, rows: list[int], readings: list[Reading]) -> None:
        self._examples, self._part, self._rows, self._readings = examples, part, rows, readings

    @classmethod
    def of(
        cls,
        model: Any,
        examples: Examples,
        *,
        part: Part = "validation",
        limit: int | None = None,
        progress: Progress | None = None,
    ) -> Reference:
        """Run the parent on at most ``limit`` examples; of vocabularies on so many that memory stays small."""
        rows = chosen_rows(examples.count(part), _bounded(examples, part, limit))
        return cls(examples, part, rows, read_all(model, examples, part, rows, keep=True, progress=progress))

    def compare(
        self, model: Any, examples: Examples | None = None, *, progress: Progress | None = None
    ) -> dict[str, float]:
        """``agreement`` and ``kl``; of embeddings ``cosine_mean`` and ``cosine_min`` (of other widths
        ``similarity_correlation``); of tags ``entity_agreement`` too.

        Args:
            examples: the same texts in the tokens of ``model``; None = the tokens the parent read. Of decoders with
                another vocabulary nothing can be compared: empty.

        Raises:
            InputError: other texts.
            CheckpointError: the model says numbers that are not finite.
        """
        mine = self._examples if examples is None else examples
        same = mine.vocabulary == self._examples.vocabulary
        if not same and mine.task == "text-generation":
            return {}
        self._check(mine)
        against = self._readings if same else None
        said = read_all(model, mine, self._part, self._rows, against=against, progress=progress)
        pairs = list(zip(said, self._readings, strict=True))
        return self._measure(pairs, mine, same)

    def _check(self, examples: Examples) -> None:
        ours, theirs = (one.rows(self._part) for one in (self._examples, examples))
        if len(ours) != len(theirs) or any(a.text != b.text for a, b in zip(ours, theirs, strict=True)):
            got = f"{len(theirs)} others"
            raise InputError(f"the {len(ours)} texts the parent was run on", got, "read both from the same data")

    def _measure(self, pairs: list[tuple[Reading, Reading]], mine: Examples, same: bool) -> dict[str, float]:
        task = mine.task
        if task == "feature-extraction":
            if pairs[0][0].log.shape != pairs[0][1].log.shape:  # the stream was made narrower
                found = _similarities([a.log[0] for a, _ in pairs], [b.log[0] for _, b in pairs])
                return {} if found is None else {"similarity_correlation": found}
            cosines = [_cosine(a.log[0], b.log[0]) for a, b in pairs]
            return {"cosine_mean": sum(cosines) / len(cosines), "cosine_min": min(cosines)}
        if task == "text-classification":
            kl = [_several(a.log, b.log) if mine.several else _divergence(a.log, b.log) for a, b in pairs]
            return {"agreement": _mean([float(a.best.tolist() == b.best.tolist()) for a, b in pairs]), "kl": _mean(kl)}
        if task == "question-answering":
            kl = [_divergence(a.log, b.log) for a, b in pairs if _same_places(a, b)]
            return {
                "agreement": _mean([float(a.span == b.span) for a, b in pairs]),
                **({"kl": _mean(kl)} if kl else {}),
            }
        if task == "token-classification":
            return _words(pairs, mine.labels)
        return self._token_measures(pairs, mine, same)

    def _token_measures(self, pairs: list[tuple[Reading, Reading]], mine: Examples, same: bool) -> dict[str, float]:
        if same:
            hits = torch.cat([a.best == b.best for a, b in pairs])
            kl = torch.cat([_kept_divergence(a.log, b.log) for a, b in pairs])
            return {"agreement": float(hits.double().mean()), "kl": float(kl.mean())} if len(hits) else {}
        names = [
            mine.token_name(int(x)) == self._examples.token_name(int(y))
            for row, (a, b) in zip(self._rows, pairs, strict=True)
            if len(mine.rows(self._part)[row].ids) == len(self._examples.rows(self._part)[row].ids)
            for x, y in zip(a.best, b.best, strict=True)
        ]
        return {"agreement": _mean([float(name) for name in names])} if names else {}


def _bounded(examples: Examples, part: Part, limit: int | None) -> int | None:
    """``limit``, lower where more places than memory is kept for would be read."""
    if examples.task not in ("fill-mask", "text-generation"):
        return limit
    share = _MASKED if examples.task == "fill-mask" else 1.0
    count = examples.count(part)
    places = share * sum(len(row.ids) for row in examples.rows(part))
    fitting = max(1, int(count * min(1.0, _PLACES / max(places, 1.0))))
    return fitting if limit is None else min(limit, fitting)


def _cosine(one: Tensor, other: Tensor) -> float:
    """At most 1, which rounding exceeds."""
    return min(1.0, float(torch.cosine_similarity(one.double(), other.double(), 0)))


def _similarities(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> float | None:
    """Pearson's correlation of the cosines between all texts: of vectors of other widths no more can be compared.

    None for fewer than three texts, or vectors that do not differ.
    """
    pairs = [torch.nn.functional.normalize(torch.stack(list(one)).double(), dim=-1) for one in (mine, theirs)]
    above = torch.triu_indices(len(mine), len(mine), offset=1)
    both = torch.stack([(one @ one.T)[above[0], above[1]] for one in pairs])
    if both.shape[1] < 3 or bool((both.std(1) == 0).any()):
        return None
    return float(torch.corrcoef(both)[0, 1])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _divergence(log: Tensor, parent: Tensor) -> float:
    """Mean over places of the divergence of ``log`` from ``parent``, log-probabilities ``[n, k]`` of all classes."""
    one, other = log.double(), parent.double()
    terms = torch.where(other == -torch.inf, 0.0, other.exp() * (other - one))
    return float(terms.sum(-1).clamp_min(0).mean())


def _kept_divergence(log: Tensor, parent: Tensor) -> Tensor:
    """Divergence at each place ``[n]`` from log-probabilities ``[n, k]`` of some outcomes, the rest taken together."""
    one, other = log.double(), parent.double()
    rest, rest_parent = ((1 - part.exp().sum(-1)).clamp_min(_TINY) for part in (one, other))
    tail = rest_parent * (rest_parent.log() - rest.log())
    return ((other.exp() * (other - one)).sum(-1) + tail).clamp_min(0)


def _several(logits: Tensor, parent: Tensor) -> float:
    """Divergence of independent yes-or-no answers, summed over the labels; logits ``[1, C]``."""
    found = 0.0
    for sign in (1.0, -1.0):
        one, other = (torch.nn.functional.logsigmoid(sign * part.double()) for part in (logits, parent))
        found += float((other.exp() * (other - one)).sum())
    return max(found, 0.0)


def _same_places(one: Reading, other: Reading) -> bool:
    if one.places is None or other.places is None or one.log.shape != other.log.shape:
        return False
    return torch.equal(one.places, other.places)


def _words(pairs: list[tuple[Reading, Reading]], labels: Sequence[str]) -> dict[str, float]:
    """Of tags: words the parent read that the model calls the same (one it did not read differs), and whole texts."""
    hits: list[float] = []
    kl: list[float] = []
    for mine, parent in pairs:
        assert mine.places is not None
        assert parent.places is not None
        found = {int(start): index for index, (start, _) in enumerate(mine.places.tolist())}
        for index, (start, _) in enumerate(parent.places.tolist()):
            at = found.get(int(start))
            hits.append(float(at is not None and int(mine.best[at]) == int(parent.best[index])))
            if at is not None:
                kl.append(_divergence(mine.log[at : at + 1], parent.log[index : index + 1]))
    whole = [float(entities(a, labels) == entities(b, labels)) for a, b in pairs]
    return {"agreement": _mean(hits), "entity_agreement": _mean(whole), "kl": _mean(kl)}
