"""Engines on a fake libcudart and a fake TensorRT that executes with ONNX Runtime: same answers, nothing leaked."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planish.errors import HostError, RequestError
from planish.runtime import Model, load
from planish.runtime.cuda import CudaError, DeviceMemoryError
from planish.runtime.device_time import device_time, device_time_counted
from planish.runtime.plan_engine import PlanEngine
from tests.runtime import fake_tensorrt
from tests.runtime.engine_bundle import ENCODER_PROFILES, add_fake_engine, encoder_bundle
from tests.runtime.fake_cuda import ILLEGAL_ADDRESS, MEMORY, FakeCudart

TEXTS = ["the whale", "call me ishmael, some years ago", "sea", "never mind how long", "o", "a white whale in the sea"]


@pytest.fixture(scope="module")
def embedder(tiny: Callable[..., Any]) -> Any:
    return tiny("feature-extraction", 6, pooling={"mode": "mean", "normalize": True}, profile="rtx-4090")


@pytest.fixture
def cuda() -> FakeCudart:
    return FakeCudart()


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, cuda: FakeCudart) -> Any:
    return fake_tensorrt.install(monkeypatch, cuda)


@pytest.fixture
def bundle(embedder: Any, tmp_path: Path) -> Path:
    made = encoder_bundle(embedder.path, tmp_path / "bundle")
    add_fake_engine(made)
    return made


@pytest.fixture
def model(bundle: Path, module: Any, cuda: FakeCudart) -> Iterator[Model]:
    with load(bundle) as opened:
        yield opened
    assert not cuda.live


def batch(rows: int, length: int, seed: int = 0) -> dict[str, Any]:
    ids = np.random.default_rng(seed).integers(5, 600, (rows, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def test_auto_takes_the_engine_and_answers_as_onnx_runtime(model: Model, bundle: Path, module: Any) -> None:
    assert (model.device, model.dialect, model.passed_over) == ("tensorrt:0", "qdq", ())
    assert model.engine_id == "tensorrt-10.3.0-sm89-rtx-4090"
    before = module.executions
    with load(bundle, "cpu") as other:
        assert other.engine_id is None
        np.testing.assert_allclose(model.embed(TEXTS), other.embed(TEXTS), atol=1e-6)
        inputs = batch(3, 11)
        np.testing.assert_array_equal(model.run(inputs)["last_hidden_state"], other.run(inputs)["last_hidden_state"])
    assert module.executions >= before + 3  # six texts, at most four a batch, and one raw run


def test_shapes_may_change_from_run_to_run(model: Model, bundle: Path) -> None:
    draw = np.random.default_rng(1)
    with load(bundle, "cpu") as other:
        for seed in range(40):
            inputs = batch(int(draw.integers(1, 5)), int(draw.integers(1, 33)), seed)
            got, wanted = model.run(inputs), other.run(inputs)
            np.testing.assert_array_equal(got["last_hidden_state"], wanted["last_hidden_state"])


def test_buffers_only_grow(model: Model, cuda: FakeCudart) -> None:
    model.run(batch(4, 32))
    used, calls = cuda.used, cuda.calls["cudaMalloc"]
    for seed in range(5):
        model.run(batch(2, 7 + seed))
        model.run(batch(4, 32))
    assert (cuda.used, cuda.calls["cudaMalloc"]) == (used, calls)


def test_a_shape_that_comes_back_becomes_a_graph(bundle: Path, module: Any, cuda: FakeCudart) -> None:
    with load(bundle, cuda_graphs=2) as model, load(bundle, "cpu") as other:
        model.run(batch(4, 32))  # buffers have their final addresses
        for seed in range(5):
            for length in (4, 5):
                inputs = batch(2, length, seed)
                got, wanted = model.run(inputs), other.run(inputs)
                np.testing.assert_array_equal(got["last_hidden_state"], wanted["last_hidden_state"])
        assert cuda.calls["cudaStreamBeginCapture"] == 2
        assert cuda.calls["cudaGraphLaunch"] == 2 * 3
        for length in (6, 7, 8):
            for _ in range(2):
                model.run(batch(1, length))
        assert cuda.live["executable graph"] == 2
        assert cuda.live["graph"] == 0
    assert not cuda.live


def test_a_graph_is_forgotten_when_its_buffers_move(model: Model, bundle: Path, cuda: FakeCudart) -> None:
    for _ in range(3):
        model.run(batch(1, 4))
    assert cuda.live["executable graph"] == 1
    model.run(batch(4, 32))
    assert cuda.live["executable graph"] == 0
    with load(bundle, "cpu") as other:
        for seed in range(4):
            got, wanted = model.run(batch(1, 4, seed)), other.run(batch(1, 4, seed))
            np.testing.assert_array_equal(got["last_hidden_state"], wanted["last_hidden_state"])


def test_graphs_can_be_turned_off(bundle: Path, module: Any, cuda: FakeCudart) -> None:
    with load(bundle, cuda_graphs=0) as model:
        for _ in range(4):
            model.run(batch(1, 4))
    assert cuda.calls["cudaStreamBeginCapture"] == 0
    for wrong in (-1, True, "8", 1.5):
        with pytest.raises(RequestError, match="cuda_graphs"):
            load(bundle, cuda_graphs=wrong)  # type: ignore[arg-type]


def test_an_engine_that_cannot_be_captured_runs_without(bundle: Path, module: Any, cuda: FakeCudart) -> None:
    cuda.fail("cudaStreamEndCapture", 900)
    with load(bundle) as model, load(bundle, "cpu") as other:
        for seed in range(5):
            got, wanted = model.run(batch(1, 4, seed)), other.run(batch(1, 4, seed))
            np.testing.assert_array_equal(got["last_hidden_state"], wanted["last_hidden_state"])
    assert cuda.calls["cudaStreamBeginCapture"] == 1
    assert not cuda.live


def test_inputs_outside_the_profile_are_refused_by_name(model: Model, module: Any) -> None:
    before = module.executions
    message = r"input_ids within the engine's \[1, 1\] to \[4, 32\] \(profile 0\), got \[5, 4\]; .*planish build BUNDLE"
    with pytest.raises(RequestError, match=message):
        model.run(batch(5, 4))
    with pytest.raises(RequestError, match=r"got \[1, 33\]"):
        model.run(batch(1, 33))
    with pytest.raises(RequestError, match=r"got \[1, 40\]"):
        model.embed("whale " * 38)
    assert module.executions == before
    assert model.run(batch(1, 4))


def test_bad_inputs_are_refused_as_everywhere(model: Model) -> None:
    inputs = batch(1, 4)
    with pytest.raises(RequestError, match="input_ids"):
        model.run({**inputs, "input_ids": inputs["input_ids"] - 700})
    with pytest.raises(RequestError, match="attention_mask"):
        model.run({"input_ids": inputs["input_ids"]})
    with pytest.raises(RequestError, match="ONNX Runtime, got a TensorRT engine"):
        _ = model.session


@pytest.mark.parametrize("after", range(4))
def test_no_memory_in_the_middle_of_a_run(bundle: Path, module: Any, cuda: FakeCudart, after: int) -> None:
    """Each allocation of a first large run fails once; the model then answers smaller and the same inputs."""
    with load(bundle) as model, load(bundle, "cpu") as other:
        function = "cudaMalloc" if after < 2 else "cudaHostAlloc"
        cuda.fail(function, MEMORY, after % 2)
        with pytest.raises(DeviceMemoryError, match=r"\d+ bytes of (GPU|pinned) memory, got .*out of memory") as caught:
            model.run(batch(4, 32))
        assert caught.value.exit_code == 4
        for inputs in (batch(1, 4), batch(4, 32)):
            got, wanted = model.run(inputs), other.run(inputs)
            np.testing.assert_array_equal(got["last_hidden_state"], wanted["last_hidden_state"])
    assert not cuda.live


def test_out_of_memory_names_what_was_asked_and_what_is_free(bundle: Path, module: Any, cuda: FakeCudart) -> None:
    with load(bundle) as model:
        cuda.total = cuda.used + 1000
        expected = rf"bytes of GPU memory, got \d+ of {cuda.total} free \(cudaErrorMemoryAllocation: out of memory"
        with pytest.raises(DeviceMemoryError, match=expected):
            model.run(batch(4, 32))
    assert not cuda.live


@pytest.mark.parametrize("function", ["cudaMalloc", "cudaStreamCreateWithFlags", "cudaSetDevice"])
def test_a_failure_while_opening_leaves_nothing(bundle: Path, module: Any, cuda: FakeCudart, function: str) -> None:
    cuda.fail(function, MEMORY)
    with pytest.raises(HostError, match="out of memory"):
        load(bundle)
    assert not cuda.live


def test_an_error_of_the_device_carries_its_words(model: Model, cuda: FakeCudart) -> None:
    model.run(batch(1, 4))
    cuda.fail("cudaStreamSynchronize", ILLEGAL_ADDRESS)
    with pytest.raises(CudaError, match="an illegal memory access was encountered") as caught:
        model.run(batch(1, 4))
    assert caught.value.code == ILLEGAL_ADDRESS
    assert model.run(batch(1, 4))


def test_an_error_of_tensorrt_carries_its_log(model: Model, cuda: FakeCudart, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_tensorrt.Context, "infer_shapes", lambda self: ["attention_mask"])
    with pytest.raises(HostError, match="wants attention_mask"):
        model.run(batch(1, 4))
    monkeypatch.undo()
    monkeypatch.setattr(fake_tensorrt.Context, "execute_async_v3", lambda self, stream: self._refuse("by a test"))
    with pytest.raises(HostError, match=r"Error Code 3: API Usage Error \(by a test\)") as caught:
        model.run(batch(1, 4))
    assert "a warning nobody wants" not in str(caught.value)


def test_an_interrupt_in_the_middle_leaves_a_model_that_answers(
    model: Model, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Any, stream: int) -> bool:
        raise KeyboardInterrupt

    with load(bundle, "cpu") as other:
        for number in range(5):
            with monkeypatch.context() as patch:
                patch.setattr(fake_tensorrt.Context, "execute_async_v3", interrupted)
                if number == 0:  # from then on its graph is there
                    with pytest.raises(KeyboardInterrupt):
                        model.run(batch(4, 32))
            got, wanted = model.run(batch(4, 32)), other.run(batch(4, 32))
            np.testing.assert_array_equal(got["last_hidden_state"], wanted["last_hidden_state"])


def test_two_profiles_and_the_tighter_one(embedder: Any, tmp_path: Path, module: Any, cuda: FakeCudart) -> None:
    bundle = encoder_bundle(embedder.path, tmp_path / "bundle")
    small = dict.fromkeys(("input_ids", "attention_mask"), ((1, 1), (1, 8), (1, 8)))
    add_fake_engine(bundle, [*ENCODER_PROFILES, small])
    with load(bundle) as model, load(bundle, "cpu") as other:
        engine = model._open()
        assert isinstance(engine, PlanEngine)
        plan = engine.open()
        assert [plan.choose({"input_ids": shape}) for shape in ((1, 8), (1, 9), (2, 8))] == [1, 0, 0]
        for seed, (rows, length) in enumerate([(1, 8), (4, 32), (1, 8), (1, 9), (1, 8), (4, 32)]):
            inputs = batch(rows, length, seed)
            got, wanted = model.run(inputs), other.run(inputs)
            np.testing.assert_array_equal(got["last_hidden_state"], wanted["last_hidden_state"])
        with pytest.raises(
            RequestError, match=r"\[1, 1\] to \[4, 32\] \(profile 0\) or \[1, 1\] to \[1, 8\] \(profile 1"
        ):
            model.run(batch(5, 2))
    assert not cuda.live


def test_an_engine_for_one_row(embedder: Any, tmp_path: Path, module: Any, cuda: FakeCudart) -> None:
    """The golden batch has two rows, and batches of texts more."""
    bundle = encoder_bundle(embedder.path, tmp_path / "bundle")
    add_fake_engine(bundle, [dict.fromkeys(("input_ids", "attention_mask"), ((1, 1), (1, 16), (1, 48)))])
    with load(bundle) as model, load(bundle, "cpu") as other:
        np.testing.assert_allclose(model.embed(TEXTS), other.embed(TEXTS), atol=1e-6)
    assert not cuda.live


def test_where_the_time_goes(model: Model, cuda: FakeCudart) -> None:
    engine = model._open()
    assert isinstance(engine, PlanEngine)
    inputs = batch(2, 8)
    for _ in range(3):  # plain, recorded, launched
        outputs, split = engine.timed(inputs)
        np.testing.assert_array_equal(outputs["last_hidden_state"], model.run(inputs)["last_hidden_state"])
        assert 0 < split.to_host < split.compute  # the fake executes with ONNX Runtime, and copies bytes
        assert 0 < split.to_device < 1000
    assert cuda.calls["cudaEventRecord"] == 12
    assert cuda.live["event"] == 4  # made once


def test_the_devices_own_time_is_counted_where_it_is_asked_for(model: Model, cuda: FakeCudart) -> None:
    inputs, before, wall = batch(2, 8), device_time(), time.perf_counter()
    model.run(inputs)
    assert device_time() == before
    assert cuda.calls["cudaEventRecord"] == 0
    with device_time_counted(), device_time_counted():
        seen = [before]
        for _ in range(3):  # plain, recorded, launched
            model.run(inputs)
            seen.append(device_time())
    assert all(earlier < later for earlier, later in itertools.pairwise(seen))
    assert seen[-1] - before < time.perf_counter() - wall
    model.run(inputs)
    assert device_time() == seen[-1]


def test_an_event_that_fails_is_a_typed_error_and_the_model_lives(model: Model, cuda: FakeCudart) -> None:
    cuda.fail("cudaEventElapsedTime", 600)
    with device_time_counted():
        with pytest.raises(CudaError, match="time events"):
            model.run(batch(2, 8))
        model.run(batch(2, 8))


def test_texts_are_padded_to_whole_steps(model: Model, cuda: FakeCudart) -> None:
    """Texts of 3 to 16 tokens have one shape: it is recorded once and launched for all others."""
    engine = model._open()
    assert [engine.padded(length) for length in (1, 16, 17, 32, 33)] == [16, 16, 32, 32, 33]
    for words in range(1, 9):
        model.embed("sea " * words)
    assert cuda.calls["cudaStreamBeginCapture"] == 1
    assert cuda.calls["cudaGraphLaunch"] >= 5


def test_texts_shorter_than_the_engines_least(embedder: Any, tmp_path: Path, module: Any) -> None:
    bundle = encoder_bundle(embedder.path, tmp_path / "bundle")
    small = dict.fromkeys(("input_ids", "attention_mask"), ((1, 4), (1, 16), (4, 48)))
    large = dict.fromkeys(("input_ids", "attention_mask"), ((1, 20), (1, 32), (4, 48)))
    add_fake_engine(bundle, [large, small])
    with load(bundle) as model, load(bundle, "cpu") as other:
        np.testing.assert_allclose(model.embed(TEXTS), other.embed(TEXTS), atol=1e-6)


def test_large_outputs_do_not_stay_in_pinned_memory(
    bundle: Path, module: Any, cuda: FakeCudart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planish.runtime.plan_engine.STAGED", 1000)
    cuda.plain_from = 1001
    with load(bundle) as model, load(bundle, "cpu") as other:
        for seed in range(4):
            got, wanted = model.run(batch(4, 32, seed)), other.run(batch(4, 32, seed))
            np.testing.assert_array_equal(got["last_hidden_state"], wanted["last_hidden_state"])
        pinned = sum(size for _, size, kind in cuda.blocks.values() if kind == "pinned")
        assert pinned < 2 * 4 * 32 * 8 + got["last_hidden_state"].nbytes  # inputs, and what was small
    assert not cuda.live


def test_threads_share_a_model(model: Model, bundle: Path) -> None:
    with load(bundle, "cpu") as other, ThreadPoolExecutor(6) as pool:
        inputs = [batch(1 + seed % 4, 1 + seed, seed) for seed in range(30)]
        for got, each in zip(pool.map(model.run, inputs), inputs, strict=True):
            np.testing.assert_array_equal(got["last_hidden_state"], other.run(each)["last_hidden_state"])


def test_closed_models_say_so(bundle: Path, module: Any, cuda: FakeCudart) -> None:
    model = load(bundle)
    model.close()
    model.close()
    assert not cuda.live
    with pytest.raises(RequestError, match="closed"):
        model.embed("sea")


def test_a_model_nobody_closes_is_freed_with_its_last_reference(bundle: Path, module: Any, cuda: FakeCudart) -> None:
    model = load(bundle)
    for _ in range(3):
        model.run(batch(1, 4))
    assert cuda.live["executable graph"] == 1
    del model
    gc.collect()
    assert not cuda.live


def test_closing_frees_the_rest_when_a_step_fails(bundle: Path, module: Any, cuda: FakeCudart) -> None:
    model = load(bundle)
    for _ in range(3):
        model.run(batch(1, 4))
    cuda.fail("cudaStreamDestroy", ILLEGAL_ADDRESS)
    with pytest.raises(CudaError, match="illegal memory access"):
        model.close()
    assert cuda.live == {"stream": 1}


def test_the_rtx_module_records_graphs_itself_and_keeps_kernels(
    embedder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: FakeCudart
) -> None:
    module = fake_tensorrt.install(monkeypatch, cuda, name="tensorrt_rtx", version="1.7.1.116")
    bundle = encoder_bundle(embedder.path, tmp_path / "bundle")
    add_fake_engine(bundle, module="tensorrt_rtx")
    folder = tmp_path / "kernels"
    with pytest.raises(RequestError, match="a folder for runtime_cache"):
        load(bundle, runtime_cache=folder)
    folder.mkdir()
    for round_number in range(2):
        with load(bundle, runtime_cache=folder) as model:
            for _ in range(3):
                model.run(batch(1, 4))
        assert [path.suffix for path in folder.iterdir()] == [".rtxcache"]
        assert len(module.caches_read) == round_number
    assert {config.cuda_graph_strategy.name for config in module.configs} == {"WHOLE_GRAPH_CAPTURE"}
    assert cuda.calls["cudaStreamBeginCapture"] == 0
    with load(bundle, cuda_graphs=0) as model:
        model.run(batch(1, 4))
    assert module.configs[-1].cuda_graph_strategy.name == "DISABLED"
    assert not cuda.live
