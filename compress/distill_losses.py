"""What a student is asked to match of its teacher, as free functions of tensors; all are means, so batches compare.

==================  ==============================================================================================
``kl``              softened class probabilities (Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural
                    Network", 2015): KL divergence at temperature T, times T squared, so that gradients keep their size
``top_k_kl``        the same from the teacher's k likeliest classes, all others together as one more class
``soft_bce``        independent yes/no labels: binary cross-entropy against the teacher's probabilities
``span_kl``         start and end of an answer: KL over the tokens of the text
``relative_mse``    hidden states (Jiao et al., "TinyBERT", 2020), in units of the teacher's own mean square: a weight
                    of 1 means the same in every layer of every model
``relation_kl``     how tokens attend to each other through queries, keys or values (Wang et al., "MiniLMv2", 2021);
                    needs neither the teacher's width nor its number of heads
``cosine_distance`` and ``similarity_mse``: sentence vectors of the same width, or only how alike sentences are
                    (Tung & Mori, "Similarity-Preserving Knowledge Distillation", 2019) where widths differ
==================  ==============================================================================================
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "common_heads",
    "cosine_distance",
    "kl",
    "mse",
    "pooled",
    "relation_kl",
    "relative_mse",
    "similarity_mse",
    "soft_bce",
    "span_kl",
    "top_k_kl",
    "top_k_of",
]

_MASKED = -1e4  # exp of it is 0 in float32, and 0 times it is still 0
_MOST_RELATION_HEADS = 48  # what MiniLMv2 found best for a base model
_NARROWEST_RELATION = 8  # dimensions a relation head keeps, where sizes allow


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 * KL(softmax(teacher / T) || softmax(student / T))``, mean over rows; logits ``[rows, classes]``."""
    if not len(student):
        return student.sum()
    log_student = F.log_softmax(student.float() / temperature, -1)
    log_teacher = F.log_softmax(teacher.float() / temperature, -1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


def top_k_of(logits: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Log probabilities at ``temperature`` of the ``k`` likeliest classes and, last, of the rest; and the classes.

    ``logits [rows, classes]``; returns float32 ``[rows, k + 1]`` and int64 ``[rows, k]``.
    """
    log_p = F.log_softmax(logits.float() / temperature, -1)
    top, classes = log_p.topk(k, -1)
    rest = log_p.scatter(-1, classes, -math.inf).logsumexp(-1, keepdim=True).clamp_min(_MASKED)
    return torch.cat([top, rest], -1), classes


def top_k_kl(student: Tensor, log_p: Tensor, classes: Tensor, temperature: float) -> Tensor:
    """:func:`kl` over ``k + 1`` classes: the teacher's likeliest and the rest (see :func:`top_k_of`).

    ``student`` are logits ``[rows, all classes]``. It is never more than :func:`kl`, and equal to it where the student
    spreads the rest as the teacher does.
    """
    if not len(student):
        return student.sum()
    log_p = F.log_softmax(log_p.float(), -1)  # what was stored in 16 bits no longer sums to one
    scaled = student.float() / temperature
    top = scaled.gather(-1, classes) - scaled.logsumexp(-1, keepdim=True)
    covered = top.logsumexp(-1, keepdim=True).clamp_max(-1e-7)
    log_q = torch.cat([top, torch.log(-torch.expm1(covered))], -1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the outputs of a regression."""
    return F.mse_loss(student.float(), teacher.float())


def soft_bce(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Binary cross-entropy against ``sigmoid(teacher / T)``, times ``T^2``; logits ``[rows, labels]``."""
    target = torch.sigmoid(teacher.float() / temperature)
    return F.binary_cross_entropy_with_logits(student.float() / temperature, target) * temperature**2


def span_kl(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """:func:`kl` over the tokens of each text: logits and ``mask [batch, tokens]``, 0 = padding."""
    padding = mask == 0
    return kl(student.float().masked_fill(padding, _MASKED), teacher.float().masked_fill(padding, _MASKED), temperature)


def relative_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """``mean (s - t)^2 / mean t^2`` over tokens that are not padding; ``[batch, tokens, width]``, mask 0 = padding."""
    weight = mask.unsqueeze(-1).to(torch.float32)
    error = ((student.float() - teacher.float()).square() * weight).sum()
    return error / (teacher.float().square() * weight).sum().clamp_min(1e-12)


def common_heads(*widths: int) -> int:
    """Relation heads that divide all ``widths``: as many as MiniLMv2 advises, each at least 8 wide where it can be."""
    common = math.gcd(*widths)
    fitting = [count for count in range(1, min(common, _MOST_RELATION_HEADS) + 1) if common % count == 0]
    wide = [count for count in fitting if min(widths) // count >= _NARROWEST_RELATION]
    return max(wide or fitting)


def relation_kl(student: Tensor, teacher: Tensor, mask: Tensor, heads: int) -> Tensor:
    """KL between the softmaxed scaled products ``x x^T`` of the teacher's and the student's vectors, token by token.

    ``student [batch, tokens, a]``, ``teacher [batch, tokens, b]``: queries, keys or values of all heads side by side.
    They are split anew into ``heads``, which divides ``a`` and ``b``. Mean over heads and tokens that are not padding.
    """
    keys = torch.zeros_like(mask, dtype=torch.float32).masked_fill_(mask == 0, _MASKED)[:, None, None, :]
    log_student = F.log_softmax(_products(student, heads) + keys, -1)
    log_teacher = F.log_softmax(_products(teacher, heads) + keys, -1)
    each = (log_teacher.exp() * (log_teacher - log_student)).sum(-1)  # [batch, heads, tokens]
    weight = mask[:, None, :].to(each.dtype)
    return (each * weight).sum() / (weight.sum() * heads).clamp_min(1.0)


def _products(vectors: Tensor, heads: int) -> Tensor:
    batch, tokens, width = vectors.shape
    split = vectors.float().view(batch, tokens, heads, width // heads).transpose(1, 2)
    return split @ split.transpose(-1, -2) / math.sqrt(width // heads)


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens that are not padding: ``[batch, tokens, width]`` to ``[batch, width]``."""
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1).clamp_min(1e-9)


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """``1 - cosine`` of vectors ``[rows, width]``, mean over rows."""
    return (1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)).mean()


def similarity_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the cosines between all rows of a batch; widths may differ."""
    a, b = F.normalize(student.float(), dim=-1), F.normalize(teacher.float(), dim=-1)
    return F.mse_loss(a @ a.t(), b @ b.t())
