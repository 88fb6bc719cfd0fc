"""What decoders write after a prompt, against texts that people wrote.

chrF (Popovic 2015: characters, any language), BLEU (Papineni et al. 2002: words; the tokenizer is mteval's 13a) and,
if it is asked for, ROUGE-L (Lin 2004: the longest common subsequence of words of Latin letters and digits). The
statistics of a text are sacrebleu's own, and ROUGE-L is rouge-score's; of several references each library takes the
best, BLEU all. chrF and BLEU are functions of counts summed over the texts: the two formulas here are those of
sacrebleu for many sums at once, with its defaults. Values are shares: 0.31 is what others call 31 chrF.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planish.errors import HostError
from planish.gate.data import Dataset
from planish.gate.limits import ReferenceMetric
from planish.gate.metrics import Measured, mean_of
from planish.gate.outputs import Outputs

__all__ = ["bleu_of", "chrf_of", "reference_scores", "scorers"]

Floats = NDArray[np.float64]

ORDER = 4  # n-grams of words that BLEU counts
BETA = 2  # chrF: recall counts twice as much as precision
LIBRARIES = {"chrF": ("sacrebleu", "gate"), "BLEU": ("sacrebleu", "gate"), "ROUGE-L": ("rouge_score", "rouge")}
"""Metric -> the module it comes from, and planish's extra that brings it."""


def reference_scores(data: Dataset, said: Outputs, first: ReferenceMetric = "chrF") -> list[Measured]:
    """``first``, which decides, then chrF and BLEU if they are others. A sample that failed counts as an empty text.

    Raises:
        HostError: a library is not installed.
    """
    texts = ["" if item is None else item.answer for item in said.items]
    references = [sample.references for sample in data.samples]
    found = scorers(first)
    return [found[name](texts, references) for name in found]


def scorers(first: ReferenceMetric) -> dict[str, Any]:
    """Name -> what makes a `Measured` of texts and their references, in the order they are told.

    Raises:
        HostError: a library is not installed.
    """
    makers = {"chrF": chrf, "BLEU": bleu, "ROUGE-L": rouge_l}
    names = list(dict.fromkeys([first, "chrF", "BLEU"]))
    for name in names:
        module, extra = LIBRARIES[name]
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            got = f"no module {error.name!r} here"
            raise HostError(f"the library for {name}", got, f"pip install 'planish[{extra}]'") from None
    return {name: makers[name] for name in names}


def chrf(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Measured:
    from sacrebleu.metrics import CHRF

    return Measured("chrF", statistics(CHRF(), texts, references), chrf_of)


def bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Measured:
    from sacrebleu.metrics import BLEU

    return Measured("BLEU", statistics(BLEU(force=True), texts, references), bleu_of)


def rouge_l(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Measured:
    """The mean of each text's F-measure with its best reference, without stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer, pairs = RougeScorer(["rougeL"]), zip(texts, references, strict=True)
    return mean_of("ROUGE-L", [scorer.score_multi(list(own), text)["rougeL"].fmeasure for text, own in pairs])


def statistics(metric: Any, texts: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """``[texts, counts]`` as sacrebleu sums them up; its streams of references end where a text has no more."""
    most = max(map(len, references))
    streams = [[own[number] if number < len(own) else None for own in references] for number in range(most)]
    return np.array(metric._extract_corpus_statistics(list(texts), streams), dtype=np.float64)


def chrf_of(sums: Floats) -> Floats:
    """Sums ``[..., 6 * 3]`` of n-grams written, in the reference, and in both, to chrF ``[...]`` from 0 to 1."""
    said, true, both = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
    counted = (said > 0) & (true > 0)
    orders = np.maximum(counted.sum(axis=-1), 1)
    precision = np.sum(np.where(counted, both / np.maximum(said, 1), 0.0), axis=-1) / orders
    recall = np.sum(np.where(counted, both / np.maximum(true, 1), 0.0), axis=-1) / orders
    weight = BETA**2 * precision + recall
    return np.asarray((1 + BETA**2) * precision * recall / np.where(weight > 0, weight, 1.0))


def bleu_of(sums: Floats) -> Floats:
    """Sums ``[..., 2 + 2 * 4]`` of lengths (written, reference), n-grams in both and written, to BLEU ``[...]``.

    An order without a match is smoothed as mteval does: half a match, a quarter for the next such order, and so on.
    """
    written, wanted = sums[..., 0], sums[..., 1]
    matched, total = sums[..., 2 : 2 + ORDER], sums[..., 2 + ORDER :]
    smooth = 0.5 ** np.cumsum(matched == 0, axis=-1)
    precision = np.where(matched > 0, matched, smooth) / np.maximum(total, 1)
    some = (matched > 0).any(axis=-1) & (total > 0).all(axis=-1)
    brevity = np.exp(np.minimum(0.0, 1 - wanted / np.maximum(written, 1)))
    return np.asarray(np.where(some, brevity * np.exp(np.mean(np.log(precision), axis=-1)), 0.0))
