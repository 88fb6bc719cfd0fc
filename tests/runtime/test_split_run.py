"""Decoders of the `qdq` dialect, in ONNX Runtime and as an engine: the tokens of the `ort` dialect, row by row."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from planish.errors import BundleError, HostError, ParityError, RequestError
from planish.gate.clock import ProcessClock
from planish.gate.likelihood import compare_likelihood
from planish.gate.workloads import Shape, probes
from planish.runtime import Model, load, prove_engine
from planish.runtime.decoders import SplitDecoder
from planish.runtime.manifest import Generation as DecoderInfo
from planish.runtime.ort_steps import OrtSteps
from planish.runtime.split_run import SwapCache
from planish.runtime.text import TextEncoder
from tests.runtime import fake_tensorrt, tiny_decoder
from tests.runtime.engine_bundle import add_fake_engine, decoder_bundle
from tests.runtime.fake_cuda import ILLEGAL_ADDRESS, MEMORY, FakeCudart
from tests.runtime.recompute import follow, reference
from tests.runtime.tiny_qdq_decoder import profile

PROMPTS = ["Call me Ishmael.", "It", "The whale, the whale! Up helm, up helm! Oh, all ye sweet powers of air, hug me"]
PREFILL = profile((1, 4), (1, 32), (1, 200), 16)
DECODE = profile((1, 4), (1, 1), (1, 200), 1)
TOLERANCE = 0.03  # the cache is float16
Ints = NDArray[np.int64]
Logits = NDArray[np.float32]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, model: Any, encoder: TextEncoder, vocab: int) -> Path:
    root = decoder_bundle(tmp_path_factory.mktemp("decoder") / "bundle", model, encoder, vocab)
    add_fake_engine(root, [PREFILL, DECODE])
    return root


@pytest.fixture
def cuda() -> FakeCudart:
    return FakeCudart()


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, cuda: FakeCudart) -> Any:
    return fake_tensorrt.install(monkeypatch, cuda)


@pytest.fixture
def ort(bundle: Path) -> Iterator[Model]:
    with load(bundle, "cpu") as opened:
        yield opened


@pytest.fixture(params=["onnxruntime", "tensorrt"])
def split(request: pytest.FixtureRequest, bundle: Path, module: Any, cuda: FakeCudart) -> Iterator[Model]:
    chosen: dict[str, Any] = {"device": "cpu", "dialect": "qdq"} if request.param == "onnxruntime" else {}
    with load(bundle, **chosen) as opened:
        assert opened.device == ("CPUExecutionProvider" if chosen else "tensorrt:0")
        assert opened.dialect == "qdq"
        yield opened
    assert not cuda.live


def prompts(vocab: int, *lengths: int, seed: int = 0) -> list[Ints]:
    random = np.random.default_rng(seed)
    return [random.integers(0, vocab, length) for length in lengths]


@pytest.mark.parametrize("lengths", [(1,), (7,), (5, 9, 1), (4, 4), (1, 1, 1), (70, 3, 40), (33, 90)], ids=str)
def test_prefill_and_steps_match_a_full_recompute(
    split: Model, model: Any, vocab: int, lengths: tuple[int, ...]
) -> None:
    """Prompts above 32 tokens go through the engine in several passes."""
    given_prompts = prompts(vocab, *lengths)
    run = split.decoder.start(len(given_prompts), longest=max(lengths), limit=150)
    follow(run, model, [ids.tolist() for ids in given_prompts], run.prefill(given_prompts), 6, TOLERANCE)
    assert run.lengths.tolist() == [length + 6 for length in lengths]
    run.close()
    run.close()
    with pytest.raises(RequestError, match="an open run"):
        run.step([1] * len(given_prompts))


def test_a_dropped_row_leaves_the_others_alone(split: Model, model: Any, vocab: int) -> None:
    given_prompts = prompts(vocab, 9, 3, 6, 12, seed=3)
    texts = [ids.tolist() for ids in given_prompts]
    run = split.decoder.start(4, longest=12, limit=100)
    logits = follow(run, model, texts, run.prefill(given_prompts), 2, TOLERANCE)
    for row in (3, 0, 1):  # the last, the first, the last again
        logits = logits.copy()
        texts[row], logits[row] = texts[-1], logits[-1]
        texts.pop()
        run.drop(row)
        logits = follow(run, model, texts, logits[:-1], 3, TOLERANCE)
    assert run.rows == 1


def test_a_growing_cache_keeps_what_it_holds(
    split: Model, model: Any, vocab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planish.runtime.split_run._AHEAD", 0)
    given_prompts = prompts(vocab, 60, 8, seed=1)
    run = split.decoder.start(2, longest=60, limit=190)
    assert run.capacity == 64
    follow(run, model, [ids.tolist() for ids in given_prompts], run.prefill(given_prompts), 8, TOLERANCE)
    assert run.capacity == 128


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_order_of_steps_and_drops(
    bundle: Path, model: Any, vocab: int, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    """Prompts of any lengths in passes of any size, rows dropped at any time, a cache that grows all the way."""
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=4), label="lengths")
    monkeypatch.setattr("planish.runtime.split_run._AHEAD", 0)
    monkeypatch.setattr("planish.runtime.split_run.round_up", lambda positions: positions + 1)
    monkeypatch.setattr("planish.runtime.ort_steps._PASS", data.draw(st.integers(1, 100), label="positions a pass"))
    given_prompts = prompts(vocab, *lengths, seed=data.draw(st.integers(0, 99), label="seed"))
    texts = [ids.tolist() for ids in given_prompts]
    with load(bundle, "cpu", dialect="qdq") as opened:
        run = opened.decoder.start(len(texts), longest=max(lengths), limit=max(lengths) + 12)
        logits = run.prefill(given_prompts)
        for _ in range(data.draw(st.integers(1, 10), label="steps")):
            if len(texts) > 1 and data.draw(st.booleans(), label="drop"):
                row = data.draw(st.integers(0, len(texts) - 1), label="row")
                run.drop(row)
                texts[row] = texts[-1]
                texts.pop()
            tokens = [data.draw(st.integers(0, vocab - 1), label="token") for _ in texts]
            texts = [[*ids, token] for ids, token in zip(texts, tokens, strict=True)]
            logits = run.step(tokens)
        assert run.lengths.tolist() == [len(ids) for ids in texts]
        for ids, row_logits in zip(texts, logits, strict=True):
            np.testing.assert_allclose(row_logits, reference(model, ids)[-1], atol=TOLERANCE)


def test_extend_gives_every_position(split: Model, model: Any, vocab: int) -> None:
    """The engine gives 16 logits a pass."""
    ids = prompts(vocab, 50)[0]
    run = split.decoder.start(1, longest=50, limit=51)
    got = np.concatenate([run.extend(ids[:20]), run.extend(ids[20:21]), run.extend(ids[21:])])
    np.testing.assert_allclose(got, reference(model, ids.tolist()), atol=TOLERANCE)


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3}, {"stop": "e"}], ids=["greedy", "penalty", "stop"])
def test_generation_is_that_of_the_ort_dialect(split: Model, ort: Model, options: dict[str, Any]) -> None:
    got, wanted = (each.generate(PROMPTS, max_new_tokens=30, **options) for each in (split, ort))
    assert got == wanted
    assert [split.generate(prompt, max_new_tokens=30, **options) for prompt in PROMPTS] == wanted


def test_sampling_is_the_same_in_a_batch_and_alone(split: Model) -> None:
    """Not compared with the other dialect: a draw may fall into the float16 cache's rounding."""
    options: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0.9, "top_k": 50, "top_p": 0.95, "seed": 7}
    assert [split.generate(prompt, **options) for prompt in PROMPTS] == split.generate(PROMPTS, **options)


def test_more_prompts_than_the_engine_has_rows(split: Model, ort: Model) -> None:
    many = [*PROMPTS, "Ahab", "The sea", "a", "b"]
    assert split.generate(many, max_new_tokens=6) == ort.generate(many, max_new_tokens=6)


def test_rows_that_end_early(bundle: Path, split: Model, ort: Model) -> None:
    """Each prompt ends at its own token: rows leave the batch one after the other."""
    texts = [result.text for result in ort.generate(PROMPTS, max_new_tokens=20)]
    stops = [texts[0][3:6], texts[2][9:12]]
    got, wanted = (each.generate(PROMPTS, max_new_tokens=20, stop=stops) for each in (split, ort))
    assert got == wanted
    assert {result.finish_reason for result in got} >= {"stop"}


def test_scores_are_those_of_the_ort_dialect(split: Model, ort: Model) -> None:
    got, wanted = (each.score(PROMPTS, context=40) for each in (split, ort))
    for mine, theirs in zip(got.nll, wanted.nll, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=TOLERANCE)


def test_streams_side_by_side_and_cut_short(split: Model, ort: Model, cuda: FakeCudart) -> None:
    idle = cuda.live
    streams = [split.generate(prompt, max_new_tokens=12, stream=True) for prompt in PROMPTS]
    for _ in range(5):
        for stream in streams:
            next(stream)
    streams[0].close()
    rest = [stream.finish() for stream in streams[1:]]
    assert rest == ort.generate(PROMPTS[1:], max_new_tokens=12)
    assert cuda.live == idle or not idle  # what runs held is back


def test_raw_runs_take_a_past_and_padding_anywhere(split: Model, model: Any, vocab: int) -> None:
    ids = prompts(vocab, 6)[0]
    empty = {info.name: np.zeros((1, 2, 0, 16), np.float16) for info in split.manifest.dialects["qdq"].inputs[4:]}
    mask = np.array([[1, 1, 0, 1, 1, 1]])  # a hole
    inputs = {
        "input_ids": ids[None],
        "position_ids": np.array([[0, 1, 2, 2, 3, 4]]),
        "attention_mask": mask,
        "logits_index": np.array([[5, 3]]),
    }
    first = split.run({**inputs, **empty})
    kept = [int(token) for token, one in zip(ids, mask[0], strict=True) if one]
    np.testing.assert_allclose(first["logits"][0, 0], reference(model, kept)[-1], atol=TOLERANCE)
    np.testing.assert_allclose(first["logits"][0, 1], reference(model, kept)[2], atol=TOLERANCE)
    past = {name.replace("present", "past_key_values"): value for name, value in first.items() if "present" in name}
    second = {
        "input_ids": np.array([[7]]),
        "position_ids": np.array([[5]]),
        "attention_mask": np.concatenate([mask, [[1]]], axis=1),
        "logits_index": np.array([[0]]),
    }
    got = split.run({**second, **past})
    np.testing.assert_allclose(got["logits"][0, 0], reference(model, [*kept, 7])[-1], atol=TOLERANCE)
    for name, bad in (("logits_index", 6), ("logits_index", -1), ("position_ids", 512)):
        with pytest.raises(RequestError, match=name):
            split.run({**inputs, **empty, name: np.full_like(inputs[name], bad)})
    with pytest.raises(RequestError, match="past and new tokens"):
        split.run({**inputs, **empty, "attention_mask": np.ones((1, 8), np.int64)})


def test_a_cache_without_memory(bundle: Path, module: Any, cuda: FakeCudart) -> None:
    with load(bundle) as model:
        model.generate("It", max_new_tokens=2)
        idle = cuda.live
        for after in (0, 1):
            cuda.fail("cudaMalloc", MEMORY, after)
            with pytest.raises(HostError, match="bytes of GPU memory"):
                model.generate(PROMPTS, max_new_tokens=20)
            assert cuda.live == idle
        cuda.fail("cudaStreamSynchronize", ILLEGAL_ADDRESS, 3)
        with pytest.raises(HostError, match="illegal memory access"):
            model.generate(PROMPTS, max_new_tokens=20)
        assert cuda.live == idle
        assert model.generate("It", max_new_tokens=2)
    assert not cuda.live


def test_closing_the_model_frees_what_runs_hold(bundle: Path, module: Any, cuda: FakeCudart, vocab: int) -> None:
    opened = load(bundle)
    run = opened.decoder.start(1, longest=4, limit=20)
    run.prefill(prompts(vocab, 4))
    opened.close()
    assert not cuda.live
    with pytest.raises(RequestError, match="a closed one"):
        run.step([1])
    run.close()
    assert not cuda.live


def test_what_the_engine_was_not_built_for(bundle: Path, module: Any, cuda: FakeCudart, vocab: int) -> None:
    with load(bundle) as model:
        before = module.executions
        limit = (
            "prompt and new tokens of at most 200, the engine's limit, got 20[0-9]; .*build BUNDLE --profile rtx-4090"
        )
        with pytest.raises(RequestError, match=limit):
            model.generate([prompts(vocab, 150)[0].tolist()], max_new_tokens=53)
        with pytest.raises(RequestError, match="at most 4 rows, the engine's limit, got 5"):
            model.decoder.start(5, longest=3, limit=20)
        assert module.executions == before
        assert len(model.generate(prompts(vocab, 150)[0].tolist(), max_new_tokens=50).token_ids) == 50
    assert not cuda.live


@pytest.mark.parametrize(
    "profiles",
    [[profile((1, 2), (1, 1), (1, 64), 1)], [profile((1, 1), (1, 8), (1, 64), 8)]],
    ids=["steps only", "one row"],
)
def test_engines_that_take_little(
    tmp_path: Path, model: Any, encoder: TextEncoder, vocab: int, module: Any, profiles: Any, cuda: FakeCudart
) -> None:
    """A prompt is read token by token, or prompts one after the other, if the engine takes no more."""
    root = decoder_bundle(tmp_path / "bundle", model, encoder, vocab)
    add_fake_engine(root, profiles)
    with load(root) as opened, load(root, "cpu") as other:
        assert opened.generate(PROMPTS[:2], max_new_tokens=9) == other.generate(PROMPTS[:2], max_new_tokens=9)
        wanted = other.score(PROMPTS[0])
        np.testing.assert_allclose(opened.score(PROMPTS[0]).nll[0], wanted.nll[0], atol=TOLERANCE)


def test_the_gate_measures_whatever_runs(split: Model, ort: Model, judge_text: str, cuda: FakeCudart) -> None:
    idle = cuda.live
    timings = probes([split], Shape(2, 12), ProcessClock(), 0)[0](ProcessClock())
    assert timings.keys() == {"prefill", "decode"}
    found = compare_likelihood(split, ort, [judge_text[:6000]], max_tokens=600)
    assert not found.failures
    assert found.top_1.value > 0.97
    assert found.divergence.value < 1e-3
    assert cuda.live == idle


def test_the_golden_set_tries_prefill_and_step(
    tmp_path: Path, model: Any, encoder: TextEncoder, vocab: int, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = decoder_bundle(tmp_path / "bundle", model, encoder, vocab)
    name = add_fake_engine(root, [PREFILL, DECODE])
    proof = prove_engine(root, name).engines[name].proved
    assert proof is not None
    assert 0 < proof["drift"] < proof["limit"]
    whole = fake_tensorrt._execute
    seen: set[int] = set()

    def wrong_at_steps(engine: Any, shapes: Any, addresses: Any) -> None:
        whole(engine, shapes, addresses)
        seen.add(shapes["input_ids"][1])
        if shapes["input_ids"][1] == 1:
            ctypes.memset(addresses["logits"], 0, 64)

    monkeypatch.setattr(fake_tensorrt, "_execute", wrong_at_steps)
    with pytest.raises(ParityError, match="golden answers within"):
        prove_engine(root, name)
    assert seen == {1, 11, 12}


def test_the_cache_says_what_it_takes() -> None:
    held: dict[int, int] = {}

    class Memory:
        def allocate(self, nbytes: int) -> int:
            if len(held) == 1 and nbytes > 100_000:
                raise HostError("memory", "none", "less")
            address = 4096 * (len(held) + 1)
            held[address] = nbytes
            return address

        def free(self, address: int) -> None:
            del held[address]

        def copy(self, target: int, source: int, nbytes: int) -> None:
            raise AssertionError

    info = DecoderInfo(**tiny_decoder.manifest_info())
    cache = SwapCache(Memory(), info, "float16", 1, 10)
    assert (cache.capacity, cache.nbytes, cache.shape) == (64, 2 * 4 * 64 * 2 * 16 * 2, (1, 2, 0, 16))
    assert sum(held.values()) == cache.nbytes
    cache.close()
    with pytest.raises(HostError):
        SwapCache(Memory(), info, "float16", 8, 1000)
    assert not held
    with pytest.raises(BundleError, match="float16 or float32, got int8"):
        SwapCache(Memory(), info, "int8", 1, 10)


def test_graphs_without_a_cache_are_refused(session: Any) -> None:
    class NoCache:
        def get_inputs(self) -> list[Any]:
            return []

    with pytest.raises(BundleError, match=r"past_key_values\.0\.key"):
        OrtSteps(NoCache())
    assert SplitDecoder(OrtSteps(session), DecoderInfo(**tiny_decoder.manifest_info())).max_rows is None
