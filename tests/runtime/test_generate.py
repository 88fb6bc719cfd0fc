"""Generation against transformers' ``generate``, and what holds for batches, streams, threads and bad requests."""

from __future__ import annotations

import gc
import math
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from planish.errors import RequestError
from planish.runtime.decoders import OrtDecoder
from planish.runtime.generate import Generation, Generator
from planish.runtime.manifest import Generation as DecoderInfo
from planish.runtime.text import TextEncoder
from tests.runtime import tiny_decoder

PROMPTS = ["Call me Ishmael.", "It", "The whale, the whale! Up helm, up helm! Oh, all ye sweet powers of air, hug me"]
SAMPLED = {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "seed": 7}


def decoder(session: Any, vocab: int) -> OrtDecoder:
    return OrtDecoder(session, DecoderInfo(**tiny_decoder.manifest_info()), vocab)


@pytest.fixture(scope="module")
def generator(session: Any, encoder: TextEncoder, vocab: int) -> Generator:
    return Generator(decoder(session, vocab), encoder, DecoderInfo(**tiny_decoder.manifest_info()), vocab)


def one(generator: Generator, prompt: str, **options: Any) -> Generation:
    result = generator.generate(prompt, **options)
    assert isinstance(result, Generation)
    return result


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_tokens_match_transformers(
    generator: Generator, model: Any, encoder: TextEncoder, penalty: float
) -> None:
    for prompt in PROMPTS:
        ids = torch.tensor([encoder.encode([prompt])[0].ids])
        expected = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=40,
            do_sample=False,
            repetition_penalty=penalty,
            eos_token_id=None,
            pad_token_id=0,
        )[0, ids.shape[1] :].tolist()
        got = one(generator, prompt, max_new_tokens=40, repetition_penalty=penalty)
        assert list(got.token_ids) == expected
        assert got.finish_reason == "length"
        assert got.prompt_tokens == ids.shape[1]
        assert got.text == encoder.tokenizer.decode(expected)


@pytest.mark.parametrize("options", [{}, SAMPLED, {"repetition_penalty": 1.3}], ids=["greedy", "sampled", "penalty"])
def test_a_ragged_batch_gives_what_each_prompt_gives_alone(generator: Generator, options: dict[str, Any]) -> None:
    alone = [one(generator, prompt, max_new_tokens=30, **options) for prompt in PROMPTS]
    assert generator.generate(PROMPTS, max_new_tokens=30, **options) == alone
    assert generator.generate(PROMPTS[::-1], max_new_tokens=30, **options) == alone[::-1]


def test_more_prompts_than_a_batch_come_back_in_order(
    session: Any, generator: Generator, encoder: TextEncoder, vocab: int
) -> None:
    pairs = Generator(
        decoder(session, vocab), encoder, DecoderInfo(**tiny_decoder.manifest_info()), vocab, batch_size=2
    )
    many = [*PROMPTS, "Ahab", "The sea"]
    assert pairs.generate(many, max_new_tokens=8, stop="e") == generator.generate(many, max_new_tokens=8, stop="e")


def test_rows_that_end_early_leave_the_others_alone(
    session: Any, generator: Generator, encoder: TextEncoder, vocab: int
) -> None:
    """The first prompt's sixth token becomes the end of sequence: it stops there, the others go on as before."""
    free = generator.generate(PROMPTS, max_new_tokens=30)
    assert isinstance(free, list)
    tokens = free[0].token_ids
    eos = next(t for t in tokens[3:] if tokens.index(t) >= 3)
    at = tokens.index(eos)
    ending = Generator(decoder(session, vocab), encoder, DecoderInfo(**tiny_decoder.manifest_info((eos,))), vocab)
    for got, whole in zip(ending.generate(PROMPTS, max_new_tokens=30), free, strict=True):
        end = whole.token_ids.index(eos) if eos in whole.token_ids else 30
        assert got.token_ids == whole.token_ids[:end]
        assert got.finish_reason == ("length" if end == 30 else "eos")
    assert one(ending, PROMPTS[0], max_new_tokens=30).token_ids == tokens[:at]


def test_same_seed_same_text_whatever_the_batch(generator: Generator) -> None:
    twice = generator.generate([PROMPTS[0], PROMPTS[1], PROMPTS[0]], max_new_tokens=20, **SAMPLED)
    assert isinstance(twice, list)
    assert twice[0] == twice[2]
    others = {**SAMPLED, "seed": [1, 2, 3]}
    seeded = generator.generate([PROMPTS[0]] * 3, max_new_tokens=20, **others)
    assert isinstance(seeded, list)
    assert len({result.token_ids for result in seeded}) == 3
    assert seeded[1] == one(generator, PROMPTS[0], max_new_tokens=20, **{**SAMPLED, "seed": 2})


def test_token_ids_are_taken_as_prompts(generator: Generator, encoder: TextEncoder) -> None:
    ids = encoder.encode([PROMPTS[0]])[0].ids
    expected = one(generator, PROMPTS[0], max_new_tokens=5)
    assert generator.generate(ids, max_new_tokens=5) == expected
    assert generator.generate(np.array(ids), max_new_tokens=5) == expected
    assert generator.generate([ids, ids], max_new_tokens=5) == [expected, expected]


@pytest.mark.parametrize("options", [{}, SAMPLED, {"stop": ["zzzz", "e"]}], ids=["greedy", "sampled", "stop"])
def test_streamed_pieces_make_the_text(generator: Generator, options: dict[str, Any]) -> None:
    whole = one(generator, PROMPTS[0], max_new_tokens=40, **options)
    with generator.generate(PROMPTS[0], max_new_tokens=40, stream=True, **options) as stream:
        pieces = list(stream)
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + [whole.finish_reason]
    assert stream.result == whole

    together = generator.generate(PROMPTS, max_new_tokens=40, stream=True, **options)
    texts = [""] * len(PROMPTS)
    for piece in together:
        texts[piece.index] += piece.text
    results = together.result
    assert isinstance(results, list)
    assert texts == [result.text for result in results]
    assert results == generator.generate(PROMPTS, max_new_tokens=40, **options)


def test_stop_strings_cut_the_text_across_token_borders(generator: Generator, encoder: TextEncoder) -> None:
    free = one(generator, PROMPTS[0], max_new_tokens=40)
    pieces = [encoder.tokenizer.decode([token]) for token in free.token_ids]
    start = len(pieces[0]) + len(pieces[1]) - 1
    stop = free.text[start : start + len(pieces[2]) + 2]  # from inside the second token into the fourth
    got = one(generator, PROMPTS[0], max_new_tokens=40, stop=stop)
    assert got.finish_reason == "stop"
    assert got.text == free.text[: free.text.index(stop)]
    assert len(got.token_ids) == 4
    assert got.token_ids == free.token_ids[:4]
    absent = one(generator, PROMPTS[0], max_new_tokens=40, stop=free.text + "x")
    assert absent == free


def test_log_probabilities_are_the_models_own(generator: Generator, model: Any, encoder: TextEncoder) -> None:
    for options in ({}, {**SAMPLED, "repetition_penalty": 1.5}):
        got = one(generator, PROMPTS[0], max_new_tokens=10, logprobs=True, **options)
        ids = encoder.encode([PROMPTS[0]])[0].ids
        with torch.no_grad():
            logits = model(torch.tensor([[*ids, *got.token_ids]])).logits[0, len(ids) - 1 : -1]
        expected = torch.log_softmax(logits.double(), -1)[range(10), list(got.token_ids)]
        assert got.logprobs is not None
        np.testing.assert_allclose(got.logprobs, expected.numpy(), atol=2e-4)


def test_a_closed_or_dropped_stream_frees_its_cache_and_harms_nobody(generator: Generator) -> None:
    from planish.runtime.cache import KVCache

    def caches() -> int:
        gc.collect()
        return sum(type(thing) is KVCache for thing in gc.get_objects())

    before = caches()
    expected = one(generator, PROMPTS[0], max_new_tokens=10)
    stream = generator.generate(PROMPTS[0], max_new_tokens=100, stream=True)
    next(stream)
    assert caches() == before + 1
    stream.close()
    assert caches() == before
    assert list(stream) == []
    assert stream.result is None
    next(generator.generate(PROMPTS[0], max_new_tokens=100, stream=True))  # dropped
    assert caches() == before
    assert one(generator, PROMPTS[0], max_new_tokens=10) == expected


def test_an_interrupt_leaves_the_model_usable(generator: Generator) -> None:
    expected = one(generator, PROMPTS[0], max_new_tokens=10)
    # Ctrl-C in the middle of some seconds of work; the signal is sent when the first of eight groups is under way.
    timer = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            generator.generate(PROMPTS[:1] * 64, max_new_tokens=480)
    finally:
        timer.cancel()
    assert one(generator, PROMPTS[0], max_new_tokens=10) == expected


def test_threads_share_a_generator(generator: Generator) -> None:
    expected = [one(generator, prompt, max_new_tokens=25, **SAMPLED) for prompt in PROMPTS]
    barrier = threading.Barrier(6)

    def work(at: int) -> bool:
        barrier.wait()
        return all(one(generator, PROMPTS[at], max_new_tokens=25, **SAMPLED) == expected[at] for _ in range(4))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, [0, 1, 2, 0, 1, 2]))


def test_the_limit_is_said_in_numbers(session: Any, encoder: TextEncoder, vocab: int) -> None:
    short = Generator(decoder(session, vocab), encoder, DecoderInfo(**tiny_decoder.manifest_info(max_length=20)), vocab)
    prompt = list(range(12))
    result = short.generate(prompt, max_new_tokens=8)
    assert isinstance(result, Generation)
    assert len(result.token_ids) == 8
    with pytest.raises(RequestError, match=r"at most 20, got 12 \+ 9 in prompt 0; pass max_new_tokens=8"):
        short.generate(prompt, max_new_tokens=9)
    with pytest.raises(RequestError, match=r"at most 19 tokens.*got 20 tokens in prompt 1"):
        short.generate([[1], list(range(20))], max_new_tokens=1)


@pytest.mark.parametrize(
    ("prompts", "options", "match"),
    [
        ("", {}, "at least one token"),
        ([], {}, "at least one prompt"),
        (["a", ""], {}, "text 1 has none"),
        ([[]], {}, "prompt 0 has none"),
        ([1, 5000], {}, "5000 in prompt 0"),
        ([-1], {}, "-1 in prompt 0"),
        ([1.5], {}, "among other prompts"),
        ([True, False], {}, "whole numbers"),
        (np.array([1.0, 2.0]), {}, "among other prompts"),
        (["a", [1]], {}, "among other prompts"),
        (b"bytes", {}, "got bytes"),
        (None, {}, "NoneType"),
        (7, {}, "got int"),
        (np.array(5), {}, "got ndarray"),
        ([np.array(5)], {}, "ndarray among other prompts"),
        ("half \ud800", {}, "UTF-8"),
        ("a", {"max_new_tokens": 0}, "max_new_tokens"),
        ("a", {"max_new_tokens": -5}, "max_new_tokens"),
        ("a", {"max_new_tokens": 2.5}, "max_new_tokens"),
        ("a", {"max_new_tokens": True}, "max_new_tokens"),
        ("a", {"temperature": math.nan}, "temperature"),
        ("a", {"top_p": 0}, "top_p"),
        ("a", {"top_k": -1}, "top_k"),
        ("a", {"seed": -1}, "seed"),
        ("a", {"seed": "x"}, "seed"),
        ("a", {"seed": [1, 2]}, "seed"),
        ("a", {"seed": np.array(5)}, "seed"),
        ("a", {"repetition_penalty": 1e38}, "repetition_penalty as a number >= 0.01 and <= 100"),
        ("a", {"stop": ""}, "at least one character"),
        ("a", {"stop": 5}, "stop strings"),
        ("a", {"stop": ["x"] * 100}, "at most 64"),
    ],
)
def test_bad_requests_are_refused(generator: Generator, prompts: Any, options: dict[str, Any], match: str) -> None:
    for stream in (False, True):
        with pytest.raises(RequestError, match=match):
            generator.generate(prompts, stream=stream, **options)
