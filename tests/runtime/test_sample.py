"""Sampling against transformers' own processors, and its draws against the distribution they should follow."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from planish.errors import BundleError, RequestError
from planish.runtime.sample import PENALTIES, Sampler, Sampling, candidates, draw, log_sum_exp, penalize

VOCAB = 2000


def logits(seed: int, size: int = VOCAB, spread: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, size).astype(np.float32)


def reference(scores: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The probabilities transformers would draw from, in the order of its generation loop."""
    steps = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        steps.append(MinPLogitsWarper(sampling.min_p))
    processed = steps(torch.zeros(1, 1, dtype=torch.long), torch.from_numpy(scores)[None])
    return torch.softmax(processed.double(), -1)[0].numpy()


def ours(scores: np.ndarray, sampling: Sampling) -> np.ndarray:
    ids, weights = candidates(scores, sampling)
    dense = np.zeros(scores.size)
    dense[ids] = weights / weights.sum()
    return dense


SETTINGS = [
    Sampling(1.0),
    Sampling(0.7),
    Sampling(1.0, top_k=40),
    Sampling(1.0, top_k=1),
    Sampling(1.0, top_k=VOCAB + 1),
    Sampling(1.0, top_p=0.9),
    Sampling(2.5, top_p=0.999),  # a nucleus wider than the first look
    Sampling(1.0, top_p=1e-6),
    Sampling(1.3, min_p=0.05),
    Sampling(0.8, 50, 0.9, 0.02),
    Sampling(1.7, 5, 0.3, 0.9),
]


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_filters_match_transformers(sampling: Sampling, seed: int) -> None:
    scores = logits(seed)
    expected = reference(scores, sampling)
    got = ours(scores, sampling)
    assert set(np.flatnonzero(got)) == set(np.flatnonzero(expected))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.floats(0.05, 5),
    st.integers(0, 300),
    st.floats(0.05, 1),
    st.none() | st.floats(0, 1),
    st.floats(0.1, 20),
)
def test_any_settings_match_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float | None, spread: float
) -> None:
    scores = logits(seed, 257, spread)
    sampling = Sampling(temperature, top_k, top_p, min_p)
    expected, got = reference(scores, sampling), ours(scores, sampling)
    # Float sums in another order may move one borderline token; it can only be the lightest one kept. Tokens lighter
    # than a float32 sum near 1 can tell (the reference here has doubles) may come and go together.
    heavy = np.maximum(got, expected) > 1e-7
    assert np.count_nonzero((got > 0)[heavy] != (expected > 0)[heavy]) <= 1
    assert 0.5 * np.abs(got - expected).sum() <= 1.01 * min(expected[expected > 0].min(), got[got > 0].min()) + 1e-5


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_repetition_penalty_matches_transformers(penalty: float) -> None:
    scores = logits(1)
    seen = np.array([3, 3, 17, int(scores.argmax()), int(scores.argmin())])
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.from_numpy(seen)[None], torch.from_numpy(scores)[None])
    got = scores.copy()
    penalize(got, np.unique(seen), penalty)
    np.testing.assert_array_equal(got, expected[0].numpy())
    assert not np.array_equal(got, scores)


def test_the_penalty_covers_the_prompt_and_what_was_generated() -> None:
    sampler = Sampler(Sampling(repetition_penalty=1.5), None, [7], 10)
    scores = np.array([1.0, 3, 0, 0, 0, 0, 0, 3.3, 0, 2.5], np.float32)
    tokens = [sampler(scores.copy()) for _ in range(4)]
    assert tokens == [1, 9, 7, 7]  # 7 starts at 2.2; then 1 falls to 2.0, and 9 to 1.67
    assert Sampler(Sampling(), None, [7], 10)(scores.copy()) == 7


def test_draws_follow_the_distribution() -> None:
    scores = logits(3, 40, 1.0)
    sampling = Sampling(0.9, 20, 0.95)
    expected = reference(scores, sampling)
    sampler = Sampler(sampling, 12345, [], 40)
    counts = np.bincount([sampler(scores.copy()) for _ in range(20_000)], minlength=40)
    kept = expected > 0
    assert counts[~kept].sum() == 0
    assert chisquare(counts[kept], expected[kept] / expected[kept].sum() * 20_000).pvalue > 1e-3
    # The test has teeth: a slightly different temperature is told apart.
    other = reference(scores, Sampling(1.0, 20, 0.95))[kept]
    assert chisquare(counts[kept], other / other.sum() * 20_000).pvalue < 1e-3


def test_a_seed_repeats_its_draws_and_another_does_not() -> None:
    def tokens(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(1.0), seed, [], VOCAB)
        return [sampler(logits(step)) for step in range(30)]

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)
    assert tokens(None) != tokens(None)


def test_the_ends_of_the_quantile_range_are_drawn_from_the_ends() -> None:
    ids, weights = np.array([4, 9, 2]), np.array([0.5, 1.0, 0.25], np.float32)
    last = math.nextafter(1, 0)
    assert [draw(ids, weights, u) for u in (0.0, 0.285, 0.286, 0.857, 0.8572, last)] == [4, 4, 9, 9, 2, 2]
    assert draw(np.array([1, 5]), np.array([1.0, 0.0], np.float32), last) == 1


def test_a_draw_from_a_vocabulary_is_its_quantile() -> None:
    weights = np.exp(logits(4, 3001))
    quantiles = np.cumsum(weights, dtype=np.float64) / weights.sum(dtype=np.float64)
    for uniform in np.random.default_rng(0).random(2000):
        at = draw(np.arange(weights.size), weights, uniform)
        assert (quantiles[at - 1] if at else 0) - 1e-6 <= uniform <= quantiles[at] + 1e-6


@pytest.mark.parametrize("temperature", [1e-45, 1e-30, 1e-5])
def test_a_tiny_temperature_is_greedy_without_overflow(temperature: float) -> None:
    scores = logits(5)
    assert Sampler(Sampling(temperature), 0, [], VOCAB)(scores.copy()) == int(scores.argmax())


def test_log_sum_exp_matches_torch_and_does_not_overflow() -> None:
    scores = logits(9) + np.float32(200)
    assert log_sum_exp(scores) == pytest.approx(float(torch.logsumexp(torch.from_numpy(scores).double(), 0)), abs=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(bad: float) -> None:
    scores = logits(0)
    scores[100] = bad
    with pytest.raises(BundleError, match="finite logits"):
        Sampler(Sampling(), None, [], VOCAB)(scores)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("temperature", v) for v in (math.nan, math.inf, -1, "1", True, None, 10**400)],
        *[("top_k", v) for v in (-1, 1.5, True, "3")],
        *[("top_p", v) for v in (0, -0.1, 1.01, math.nan)],
        *[("min_p", v) for v in (-0.1, 1.1, math.nan)],
        *[("repetition_penalty", v) for v in (0, -1, math.nan, math.inf, 1e-45, 0.009, 101, 1e38, 1e39)],
    ],
)
def test_settings_outside_their_range_are_refused(field: str, value: object) -> None:
    with pytest.raises(RequestError, match=field):
        Sampling(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_strongest_penalties_leave_numbers(penalty: float) -> None:
    scores = logits(0, spread=1e30)
    Sampler(Sampling(repetition_penalty=penalty), None, np.arange(VOCAB), VOCAB)(scores)
    assert np.isfinite(scores).all()
