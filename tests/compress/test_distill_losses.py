"""The losses against formulas written out, and against torch's own where it has them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.compress.distill_losses import (
    common_heads,
    cosine_distance,
    kl,
    mse,
    pooled,
    relation_kl,
    relative_mse,
    similarity_mse,
    soft_bce,
    span_kl,
    top_k_kl,
    top_k_of,
)


def random(*shape: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def test_kl_by_hand() -> None:
    student, teacher, t = [0.0, 1.0, 3.0], [2.0, 0.5, -1.0], 2.0
    p = [math.exp(x / t) for x in teacher]
    q = [math.exp(x / t) for x in student]
    p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
    expected = t * t * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    found = kl(torch.tensor([student, teacher]), torch.tensor([teacher, teacher]), t)
    assert float(found) == pytest.approx(expected / 2, rel=1e-5)  # the second row has nothing to learn


@pytest.mark.parametrize("temperature", [1.0, 2.0, 7.0])
def test_gradient_of_kl_is_the_difference_of_probabilities(temperature: float) -> None:
    student, teacher = random(4, 6).requires_grad_(), random(4, 6, seed=1)
    kl(student, teacher, temperature).backward()
    expected = (F.softmax(student / temperature, -1) - F.softmax(teacher / temperature, -1)) * temperature / 4
    torch.testing.assert_close(student.grad, expected.detach(), rtol=1e-4, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 12), t=st.floats(0.5, 5.0))
def test_top_k_never_exceeds_the_whole(seed: int, k: int, t: float) -> None:
    student, teacher = random(3, 12, seed=seed), random(3, 12, seed=seed + 1)
    log_p, classes = top_k_of(teacher, k, t)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(3))
    found, whole = float(top_k_kl(student, log_p, classes, t)), float(kl(student, teacher, t))
    assert -1e-5 <= found <= whole + 1e-4  # putting classes together loses information
    if k >= 11:  # the rest is one class or none: nothing is put together
        assert found == pytest.approx(whole, rel=1e-3, abs=1e-4)


def test_top_k_by_hand() -> None:
    student, teacher = random(5, 9), random(5, 9, seed=3)
    log_p, classes = top_k_of(teacher, 4, 1.5)
    p, q = F.softmax(teacher / 1.5, -1), F.softmax(student / 1.5, -1)
    kept = torch.zeros(5, 9, dtype=torch.bool).scatter_(1, p.topk(4).indices, True)
    part = torch.where(kept, p * (p / q).log(), 0.0).sum(1)
    rest_p, rest_q = (p * ~kept).sum(1), (q * ~kept).sum(1)
    expected = (part + rest_p * (rest_p / rest_q).log()).mean() * 1.5**2
    torch.testing.assert_close(top_k_kl(student, log_p, classes, 1.5), expected, rtol=1e-4, atol=1e-6)


def test_top_k_from_16_bits_and_sure_models() -> None:
    teacher, student = random(4, 50), random(4, 50, seed=1).requires_grad_()
    log_p, classes = top_k_of(teacher, 8, 1.0)
    exact = top_k_kl(student, log_p, classes, 1.0)
    torch.testing.assert_close(top_k_kl(student, log_p.half(), classes, 1.0), exact, rtol=2e-3, atol=1e-4)
    sure = torch.full((4, 50), -80.0).scatter_(1, classes[:, :1], 80.0).requires_grad_()
    loss = top_k_kl(sure, *top_k_of(sure.detach() * 0.9, 8, 1.0), 1.0)
    loss.backward()
    assert abs(float(loss.detach())) < 1e-4
    assert bool(torch.isfinite(sure.grad).all())


def test_binary_labels_and_numbers() -> None:
    student, teacher = random(4, 3), random(4, 3, seed=1)
    p, q = torch.sigmoid(teacher / 2), torch.sigmoid(student / 2)
    expected = -(p * q.log() + (1 - p) * (1 - q).log()).mean() * 4
    torch.testing.assert_close(soft_bce(student, teacher, 2.0), expected)
    torch.testing.assert_close(mse(student, teacher), F.mse_loss(student, teacher))


def test_spans_leave_padding_out() -> None:
    student, teacher = random(2, 5), random(2, 5, seed=1)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    expected = (kl(student[:1, :3], teacher[:1, :3], 2.0) + kl(student[1:], teacher[1:], 2.0)) / 2
    torch.testing.assert_close(span_kl(student, teacher, mask, 2.0), expected)


def test_hidden_states_in_units_of_the_teacher() -> None:
    student, teacher = random(2, 3, 4), random(2, 3, 4, seed=1)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    keep = mask.bool()
    expected = (student[keep] - teacher[keep]).square().mean() / teacher[keep].square().mean()
    torch.testing.assert_close(relative_mse(student, teacher, mask), expected)
    torch.testing.assert_close(relative_mse(student * 9, teacher * 9, mask), expected)
    assert float(relative_mse(torch.zeros_like(teacher), teacher, mask)) == pytest.approx(1.0)


def test_relations_by_hand() -> None:
    student, teacher, heads = random(1, 4, 6), random(1, 4, 12, seed=1), 3
    mask = torch.tensor([[1, 1, 1, 0]])
    total = 0.0
    for head in range(heads):
        s, t = student[0, :3, head * 2 : head * 2 + 2], teacher[0, :3, head * 4 : head * 4 + 4]
        p, q = F.softmax(t @ t.t() / 2.0, -1), F.softmax(s @ s.t() / math.sqrt(2), -1)
        total += float((p * (p / q).log()).sum(-1).mean())
    assert float(relation_kl(student, teacher, mask, heads)) == pytest.approx(total / heads, rel=1e-4)


@pytest.mark.parametrize("heads", [1, 2, 4, 12])
def test_relations_of_equals_are_zero_in_any_number_of_heads(heads: int) -> None:
    vectors, mask = random(2, 5, 24), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    assert float(relation_kl(vectors, vectors, mask, heads)) == pytest.approx(0.0, abs=1e-6)
    assert float(relation_kl(vectors * 0.3, random(2, 5, 48, seed=5) * 0.3, mask, heads)) > 0.005
    # a rotation inside each relation head changes every vector and no product
    turn = torch.linalg.qr(random(24 // heads, 24 // heads, seed=2))[0]
    turned = (vectors.view(2, 5, heads, -1) @ turn).flatten(-2)
    assert not torch.allclose(turned, vectors)
    assert float(relation_kl(turned, vectors, mask, heads)) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    ("widths", "heads"), [((384, 384), 48), ((160, 384), 16), ((64, 64), 8), ((32, 96), 4), ((6, 9), 3), ((7, 9), 1)]
)
def test_common_heads(widths: tuple[int, int], heads: int) -> None:
    assert common_heads(*widths) == heads
    assert all(width % heads == 0 for width in widths)


def test_sentence_vectors() -> None:
    hidden, mask = random(2, 3, 4), torch.tensor([[1, 1, 0], [1, 1, 1]])
    vectors = pooled(hidden, mask)
    torch.testing.assert_close(vectors[0], hidden[0, :2].mean(0))
    other = random(2, 4, seed=1)
    torch.testing.assert_close(cosine_distance(vectors, other), 1 - F.cosine_similarity(vectors, other).mean())
    assert float(cosine_distance(vectors, vectors * 3)) == pytest.approx(0.0, abs=1e-6)
    turn = torch.linalg.qr(random(7, 7, seed=2))[0][:4]  # into a space of another width
    assert float(similarity_mse(vectors @ turn, vectors)) == pytest.approx(0.0, abs=1e-10)
    assert float(similarity_mse(other @ turn, vectors)) > 1e-3


@pytest.mark.parametrize("loss", [lambda s: kl(s, s, 1.0), lambda s: top_k_kl(s, s, s.long(), 1.0)])
def test_a_batch_in_which_nothing_counts(loss: object) -> None:
    empty = torch.zeros(0, 5, requires_grad=True)
    value = loss(empty)  # type: ignore[operator]
    value.backward()
    assert float(value.detach()) == 0.0
