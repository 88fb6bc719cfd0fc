"""On a real GPU (`pytest -m gpu`): the CUDA layer, an engine TensorRT builds there, ONNX Runtime's CUDA provider.

Each says in words why it is skipped where the machine lacks something.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from planish.errors import HostError
from planish.gate import gate
from planish.runtime import load, prove_engine, read_manifest, update_manifest
from planish.runtime.cuda import Cuda, DeviceMemoryError, open_cuda
from planish.runtime.device_memory import Pool, array_at
from planish.runtime.engine_key import module_version
from planish.runtime.plan_engine import PlanEngine
from planish.runtime.replay import Replays

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def cuda() -> Cuda:
    try:
        found = open_cuda()
    except HostError as error:
        pytest.skip(f"no CUDA device to run on: {error}")
    found.activate()
    return found


@pytest.fixture
def stream(cuda: Cuda) -> Iterator[int]:
    made = cuda.stream()
    yield made
    cuda.destroy_stream(made)


def test_what_the_device_says_of_itself(cuda: Cuda) -> None:
    facts = cuda.facts
    free, total = cuda.memory()
    assert 0 < free <= total
    assert facts.name.isprintable()
    assert facts.name
    assert [part.isdigit() for part in f"{facts.sm}.{facts.driver}".split(".")] == [True] * 4


def test_bytes_go_there_and_back(cuda: Cuda, stream: int) -> None:
    device, pinned = Pool(cuda), Pool(cuda, pinned=True)
    sent = np.random.default_rng(0).integers(0, 255, (1 << 20,), np.uint8)
    out, back = pinned.address("out", sent.nbytes), pinned.address("back", sent.nbytes)
    array_at(out, sent.shape, sent.dtype)[...] = sent
    first, second = device.address("first", sent.nbytes), device.address("second", sent.nbytes)
    assert first % 256 == second % 256 == 0
    for target, source in ((first, out), (second, first), (back, second)):
        cuda.copy(target, source, sent.nbytes, stream)
    cuda.synchronize(stream)
    np.testing.assert_array_equal(array_at(back, sent.shape, sent.dtype), sent)
    device.close()
    pinned.close()


def test_a_recorded_copy_is_repeated(cuda: Cuda, stream: int) -> None:
    device, pinned = Pool(cuda), Pool(cuda, pinned=True)
    here, there, back = pinned.address("here", 64), device.address("there", 64), pinned.address("back", 64)
    source, target = (array_at(address, (64,), np.dtype(np.uint8)) for address in (here, back))
    replays = Replays(cuda, 1)

    def enqueue() -> None:
        cuda.copy(there, here, 64, stream)
        cuda.copy(back, there, 64, stream)

    for number in range(5):
        source[...] = number
        replays("key", stream, enqueue, lambda: (None, enqueue))
        cuda.synchronize(stream)
        assert target.tolist() == [number] * 64
    assert (len(replays), replays.launches) == (1, 3)
    replays.forget()
    device.close()
    pinned.close()


def test_time_passes_between_events(cuda: Cuda, stream: int) -> None:
    events = cuda.event(), cuda.event()
    device = Pool(cuda)
    a, b = device.address("a", 1 << 26), device.address("b", 1 << 26)
    cuda.record(events[0], stream)
    cuda.copy(a, b, 1 << 26, stream)
    cuda.record(events[1], stream)
    assert 0 < cuda.milliseconds(*events) < 1000
    for event in events:
        cuda.destroy_event(event)
    device.close()


def test_too_much_is_refused_and_nothing_is_lost(cuda: Cuda) -> None:
    free, total = cuda.memory()
    with pytest.raises(DeviceMemoryError, match=rf"{2 * total} bytes of GPU memory, got \d+ of {total} free"):
        cuda.allocate(2 * total)
    address = cuda.allocate(1 << 20)  # the error does not stick
    cuda.free(address)
    assert cuda.memory()[0] >= free - (64 << 20)


def test_onnx_runtime_on_the_gpu(cuda: Cuda, tiny: Callable[..., Any]) -> None:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA provider: pip install onnxruntime-gpu instead of onnxruntime")
    bundle = tiny("feature-extraction", 6, pooling={"mode": "mean", "normalize": True}).path
    texts = ["the whale", "call me ishmael"]
    with load(bundle, "cuda") as model, load(bundle, "cpu") as other:
        assert model.device == "CUDAExecutionProvider"
        np.testing.assert_allclose(model.embed(texts), other.embed(texts), atol=1e-3)


def built_here(cuda: Cuda, module: str, checkpoint: Path, bundle: Path) -> str:
    """Exports a checkpoint for this GPU and builds its engine; the engine's id."""
    if module_version(module) is None:
        pytest.skip(f"the module {module} is not installed")
    from planish import profiles
    from planish.export import export
    from planish.export.build_bundle import prepare

    known = [profiles.load(name) for name in profiles.names()]
    here = [profile for profile in known if profile.gpu is not None and profile.gpu.sm == cuda.facts.sm]
    fitting = [profile for profile in here if module.replace("_", "-") in {engine.name for engine in profile.engines}]
    if not fitting:
        pytest.skip(f"no profile for compute capability {cuda.facts.sm} with {module}")
    export(checkpoint, bundle, profile=fitting[0].name)
    ready = prepare(bundle, profile=fitting[0].name, module=module)
    if ready.chosen is None:  # any other refusal, and a build that fails, is a failure
        pytest.skip(f"{module} cannot build for compute capability {cuda.facts.sm}: {ready.refused[0]}")
    made = ready.run()
    assert made.proved is not None
    return made.engine_id


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_an_encoder_built_here(cuda: Cuda, module: str, minilm: Path, tmp_path: Path, sentences: list[str]) -> None:
    """MiniLM in float16, from export to vectors; its time a batch is printed (`-s`)."""
    bundle = tmp_path / "bundle"
    name = built_here(cuda, module, minilm, bundle)
    prove_engine(bundle, name)
    manifest = read_manifest(bundle)
    with load(bundle) as model, load(bundle, "cpu", dialect="qdq") as other:
        assert model.engine_id == name
        got, wanted = model.embed(sentences), other.embed(sentences)
        assert float((got * wanted).sum(axis=1).min()) > 0.999
        engine = model._open()
        assert isinstance(engine, PlanEngine)
        ids = np.full((1, 128), 7, np.int64)
        inputs = {name: ids if name == "input_ids" else np.ones_like(ids) for name in engine.input_names}
        inputs |= {"token_type_ids": np.zeros_like(ids)} if "token_type_ids" in inputs else {}
        begun = time.perf_counter()
        for _ in range(100):
            model.run(inputs)
        print(f"\n{cuda.facts}: {1e3 * (time.perf_counter() - begun) / 100:.3f} ms a 1x128, {engine.timed(inputs)[1]}")
        assert engine.replays.launches or engine.open().self_graphs
    report = gate(bundle, bundle, texts=sentences[:20], shapes=[(1, 128)], seconds=20)
    print(report.to_markdown())
    assert [found.judged for found in report.latency] == ["device"]
    assert report.verdict != "regress"
    free = cuda.memory()[0]
    for _ in range(3):
        load(bundle).close()
    assert cuda.memory()[0] >= free - (16 << 20)  # opening and closing leaks nothing
    assert update_manifest(bundle, gates=[]).engines == manifest.engines


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_a_decoder_built_here(cuda: Cuda, module: str, tmp_path: Path) -> None:
    """A tiny Llama: perplexity and tokens of the same graph in ONNX Runtime; its time a token is printed (`-s`)."""
    from tests.tiny import tiny_decoder

    bundle = tmp_path / "bundle"
    name = built_here(cuda, module, tiny_decoder("llama", tmp_path / "checkpoint"), bundle)
    texts = ["Call me Ishmael. Some years ago, never mind how long", "The whale", "It was the whiteness of the whale"]
    with load(bundle) as model, load(bundle, "cpu", dialect="qdq") as other:
        assert model.engine_id == name
        assert model.score(texts).perplexity == pytest.approx(other.score(texts).perplexity, rel=0.01)
        got, wanted = (each.generate(texts, max_new_tokens=16) for each in (model, other))
        assert [answer.token_ids[:4] for answer in got] == [answer.token_ids[:4] for answer in wanted]
        alone = [model.generate(text, max_new_tokens=16) for text in texts]
        assert [answer.token_ids[:4] for answer in alone] == [answer.token_ids[:4] for answer in wanted]
        begun = time.perf_counter()
        count = len(model.generate(texts[0], max_new_tokens=100).token_ids)
        print(f"\n{cuda.facts}: {1e3 * (time.perf_counter() - begun) / count:.3f} ms a token")
