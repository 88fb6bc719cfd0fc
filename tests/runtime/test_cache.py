"""The decoder's forward pass against transformers: a hand-written graph after the contract, ragged batches, growing
buffers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from planish.errors import BundleError
from planish.runtime.cache import DecoderRun, KVCache
from planish.runtime.manifest import Generation as DecoderInfo
from tests.runtime import tiny_decoder
from tests.runtime.recompute import follow, reference

VOCAB = 300
INFO = DecoderInfo(**tiny_decoder.manifest_info())
TOLERANCE = 2e-4

Logits = NDArray[np.float32]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_decoder.make_model(VOCAB)


@pytest.fixture(scope="module")
def session(model: Any) -> Any:
    return tiny_decoder.make_session(model)


def prompts(*lengths: int, seed: int = 0) -> list[NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    return [random.integers(0, VOCAB, length) for length in lengths]


@pytest.mark.parametrize("lengths", [(1,), (7,), (5, 9, 1), (4, 4), (1, 1, 1)], ids=str)
def test_prefill_and_steps_match_a_full_recompute(session: Any, model: Any, lengths: tuple[int, ...]) -> None:
    given = prompts(*lengths)
    run = DecoderRun(session, INFO, VOCAB, len(given), longest=max(lengths), limit=200)
    follow(run, model, [ids.tolist() for ids in given], run.prefill(given), 12, TOLERANCE)


@pytest.mark.parametrize("lengths", [(9,), (5, 9, 1), (4, 8), (16, 17)], ids=str)
def test_prompts_row_by_row_and_in_chunks_match_too(
    session: Any, model: Any, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planish.runtime.cache._PASS", 4)
    monkeypatch.setattr("planish.runtime.cache._TOGETHER", 8)
    given = prompts(*lengths)
    run = DecoderRun(session, INFO, VOCAB, len(given), longest=max(lengths), limit=200)
    follow(run, model, [ids.tolist() for ids in given], run.prefill(given), 6, TOLERANCE)


def test_a_growing_buffer_keeps_what_it_holds(session: Any, model: Any) -> None:
    given = prompts(30, 50)
    run = DecoderRun(session, INFO, VOCAB, 2, longest=50, limit=400)
    logits = run.prefill(given)
    first = run.capacity
    assert first == 320  # prompt + 256, in blocks of 64: attention's scratch memory follows the buffer's length
    texts = [ids.tolist() for ids in given]
    while max(map(len, texts)) < first - 2:
        for ids, row in zip(texts, logits, strict=True):
            ids.append(int(row.argmax()))
        logits = run.step([ids[-1] for ids in texts])
    follow(run, model, texts, logits, 5, TOLERANCE)
    assert run.capacity == 448


def test_rows_that_leave_do_not_disturb_the_others(session: Any, model: Any) -> None:
    given = prompts(20, 3, 8, 5)
    run = DecoderRun(session, INFO, VOCAB, 4, longest=20, limit=200)
    texts = [ids.tolist() for ids in given]
    logits = follow(run, model, texts, run.prefill(given), 4, TOLERANCE)
    for leaving in (0, 2, 0):  # the longest goes first: what follows has a shorter mask
        texts[leaving] = texts[-1]
        texts.pop()
        logits = logits.copy()
        logits[leaving] = logits[-1]
        run.drop(leaving)
        logits = follow(run, model, texts, logits[:-1], 4, TOLERANCE)
    assert run.rows == 1


@pytest.mark.parametrize("chunk", [1, 7, 30, 100])
def test_all_positions_in_chunks_match_one_pass(session: Any, model: Any, chunk: int) -> None:
    (ids,) = prompts(100)
    run = DecoderRun(session, INFO, VOCAB, 1, longest=100, limit=100)
    got = np.concatenate([run.extend(ids[at : at + chunk]).copy() for at in range(0, 100, chunk)])
    np.testing.assert_allclose(got, reference(model, ids.tolist()), atol=TOLERANCE)


def test_a_graph_that_declares_one_position_gives_them_all(model: Any) -> None:
    (ids,) = prompts(20)
    run = DecoderRun(tiny_decoder.make_session(model, positions=1), INFO, VOCAB, 1, longest=20, limit=20)
    np.testing.assert_allclose(run.extend(ids), reference(model, ids.tolist()), atol=TOLERANCE)


def test_past_and_present_are_the_same_memory(session: Any) -> None:
    cache = KVCache(INFO, 3, 100)
    assert cache.nbytes == 2 * tiny_decoder.LAYERS * 3 * tiny_decoder.KV_HEADS * 128 * tiny_decoder.HEAD_DIM * 4
    run = DecoderRun(session, INFO, VOCAB, 1, longest=5, limit=20)
    run.prefill(prompts(5))
    buffer = run._cache._buffers[0]
    written = buffer.any(axis=(0, 1, 3))
    assert written[:5].all()
    run.step([1])
    assert run._cache._buffers[0] is buffer
    assert buffer.any(axis=(0, 1, 3))[:6].all()
    present = {o.name: value for o, value in zip(session.get_outputs(), run._binding.get_outputs(), strict=True)}
    assert present["present.0.key"].data_ptr() == buffer.ctypes.data


def test_two_runs_on_one_session_do_not_meet(session: Any, model: Any) -> None:
    first, second = prompts(6, seed=1), prompts(11, seed=2)
    runs = [DecoderRun(session, INFO, VOCAB, 1, longest=11, limit=60) for _ in range(2)]
    texts = [first[0].tolist(), second[0].tolist()]
    logits = [runs[0].prefill(first), runs[1].prefill(second)]
    for _ in range(5):
        for at in range(2):
            logits[at] = follow(runs[at], model, [texts[at]], logits[at], 1, TOLERANCE)


def test_an_unknown_cache_type_is_refused() -> None:
    info = DecoderInfo(**{**tiny_decoder.manifest_info(), "cache_dtype": "bfloat16"})
    with pytest.raises(BundleError, match="bfloat16"):
        KVCache(info, 1, 10)
