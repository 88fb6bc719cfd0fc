"""Loading: the engine, device and options asked for, or a typed error; threads share a model; closing ends it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from planish.errors import BundleError, HostError, RequestError
from planish.runtime import load, read_manifest, verify, write_manifest
from planish.runtime.engine import open_session
from planish.runtime.placement import Device, place, place_on
from tests.runtime.fake_cuda import FakeCudart

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
GPU_HOST, PLAIN_HOST = ["TensorrtExecutionProvider", CUDA, CPU], ["AzureExecutionProvider", CPU]


@pytest.fixture(scope="module")
def embedder(tiny: Callable[..., Any]) -> Any:
    return tiny("feature-extraction", 6, pooling={"mode": "mean", "normalize": True})


@pytest.fixture
def bundle(embedder: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(embedder.path, tmp_path / "bundle"))


def sign(bundle: Path, **changes: Any) -> None:
    """Writes the manifest again over whatever the bundle holds now."""
    fields = read_manifest(bundle).to_json()
    (bundle / "manifest.json").unlink()
    write_manifest(bundle, {**{k: v for k, v in fields.items() if k not in ("digest", "files")}, **changes})


def dialect(bundle: Path, **changes: Any) -> dict[str, Any]:
    return {"ort": {**read_manifest(bundle).to_json()["dialects"]["ort"], **changes}}


@pytest.mark.parametrize(
    ("available", "device", "profile", "expected"),
    [
        (PLAIN_HOST, "auto", "cpu-x86-avx2", [CPU]),
        (PLAIN_HOST, "auto", "t4", [CPU]),
        (PLAIN_HOST, "cpu", None, [CPU]),
        (GPU_HOST, "auto", "cpu-arm64", [CPU]),
        (GPU_HOST, "auto", None, [CPU]),
        (GPU_HOST, "auto", "t4", [CUDA, CPU]),
        (GPU_HOST, "cpu", "t4", [CPU]),
        (GPU_HOST, "cuda", "cpu-arm64", [CUDA, CPU]),
    ],
)
def test_the_device_follows_manifest_and_host(
    available: list[str], device: str, profile: str | None, expected: list[str]
) -> None:
    assert list(place(available, device, profile).providers) == expected


@pytest.mark.parametrize(
    ("code", "expected"), [(0, [CUDA, CPU]), (35, [CPU]), (100, [CPU]), (None, [CUDA, CPU])], ids=str
)
def test_auto_asks_the_driver_whether_there_is_a_gpu(
    code: int | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that only ONNX Runtime finds (None) is given a chance; a GPU asked for by name always is."""
    fake = FakeCudart()
    fake.count_code = code or 0

    def library() -> FakeCudart:
        if code is None:
            raise HostError("the CUDA runtime library", "none", "install it")
        return fake

    class Library:
        @staticmethod
        def get_available_providers() -> list[str]:
            return [CUDA, CPU]

    monkeypatch.setattr("planish.runtime.cudart.load_cudart", library)
    assert list(place_on(Library, Device("auto"), "t4").providers) == expected  # type: ignore[arg-type]
    assert list(place_on(Library, Device("cuda"), None).providers) == [CUDA, CPU]  # type: ignore[arg-type]
    assert list(place_on(Library, Device("auto"), "cpu-arm64").providers) == [CPU]  # type: ignore[arg-type]


def test_what_onnxruntime_says_of_missing_libraries_is_in_the_error(embedder: Any, tmp_path: Path) -> None:
    """ONNX Runtime prints it to stdout, where answers belong, and starts without the provider."""

    class Library:
        __version__ = "1.31"

        @staticmethod
        def preload_dlls() -> None:
            print("Failed to load libcudnn.so.9: no such file")

        @staticmethod
        def InferenceSession(path: str, options: Any, **settings: Any) -> Any:
            return onnxruntime.InferenceSession(path, options, providers=[CPU])

    path = embedder.path / "onnx/ort/model.onnx"
    dialect = embedder.manifest.dialects["ort"]
    placement = place(GPU_HOST, "cuda", None)
    message = r"to start, got only CPUExecutionProvider \(Failed to load libcudnn"
    with pytest.raises(HostError, match=message):
        open_session(Library, path, dialect, onnxruntime.SessionOptions(), placement)  # type: ignore[arg-type]


def test_device_numbers_and_options() -> None:
    assert place(GPU_HOST, "cuda:1", None).options == ({"device_id": "1"}, {})
    merged = place(GPU_HOST, "cuda:1", None, provider_options={"gpu_mem_limit": 5})
    assert merged.options == ({"device_id": "1", "gpu_mem_limit": 5}, {})
    pairs = place(GPU_HOST, "auto", None, [(CUDA, {"a": 1}), CPU], [{"b": 2}, {"c": 3}])
    assert pairs.providers == (CUDA, CPU)
    assert pairs.options == ({"a": 1, "b": 2}, {"c": 3})
    with pytest.raises(RequestError, match="1 providers"):
        place(PLAIN_HOST, "cpu", None, provider_options=[{}, {}])


@pytest.mark.parametrize("device", ["gpu", "cpu:0", "auto:1", "cuda:x", "cuda:", "", "CUDA", 3, None])
def test_unknown_devices(embedder: Any, device: Any) -> None:
    with pytest.raises(RequestError, match="device"):
        load(embedder.path, device)


def test_devices_and_providers_this_host_has_not(embedder: Any) -> None:
    if CUDA not in onnxruntime.get_available_providers():
        with pytest.raises(HostError, match=CUDA) as caught:
            load(embedder.path, "cuda")
        assert caught.value.exit_code == 4
    with pytest.raises(HostError, match="NoSuchExecutionProvider"):
        load(embedder.path, providers=["NoSuchExecutionProvider", CPU])
    with pytest.raises(RequestError, match="leave one out"):
        load(embedder.path, "cpu", providers=[CPU])
    with pytest.raises(RequestError, match="at least one provider"):
        load(embedder.path, providers=[])
    assert load(embedder.path, providers=[(CPU, {"use_arena": "0"})]).device == CPU


@pytest.mark.parametrize("providers", [CPU, b"CPU", 3, {CPU: {}}, [3], [None], [(CPU, 3)], [(CPU, {}, 1)], [[]]])
def test_providers_that_are_no_list_of_names(embedder: Any, providers: Any) -> None:
    with pytest.raises(RequestError, match=r'provider.*; pass providers=\["CPUExecutionProvider"\]'):
        load(embedder.path, providers=providers)


@pytest.mark.parametrize("options", [3, [3], "use_arena", [None]])
def test_provider_options_that_are_no_mappings(embedder: Any, options: Any) -> None:
    with pytest.raises(RequestError, match="a mapping, or a list of them"):
        load(embedder.path, provider_options=options)


@pytest.mark.parametrize("path", [None, 7, b"bundle", ["bundle"]])
@pytest.mark.parametrize("door", [load, verify, read_manifest])
def test_what_is_no_path(door: Callable[..., Any], path: Any) -> None:
    with pytest.raises(RequestError, match="the path of a bundle directory"):
        door(path)


def test_session_options_reach_the_session(embedder: Any, tmp_path: Path) -> None:
    mapping = {"session.intra_op.allow_spinning": "0", "log_severity_level": 2, "inter_op_num_threads": 1}
    options = load(embedder.path, threads=1, session_options=mapping).session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert (options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level) == (1, 1, 2)
    own = onnxruntime.SessionOptions()
    own.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    load(embedder.path, session_options=own)
    assert (tmp_path / "optimized.onnx").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"intra_op_num_thread": 1}, "did you mean 'intra_op_num_threads'"),
        ({"add_session_config_entry": 1}, "session options"),
        ({"intra_op_num_threads": "one"}, "a value for intra_op_num_threads"),
        ({"intra_op_num_threads": 3_000_000}, "intra_op_num_threads of at most 1024, got 3000000"),
        ({"inter_op_num_threads": 1025}, "inter_op_num_threads of at most 1024"),
        ({"intra_op_num_threads": 10**14}, "a value for intra_op_num_threads"),
        ({3: 1}, "by their names, got 3"),
        (3, "a mapping"),
        (["a"], "a mapping"),
    ],
)
def test_wrong_session_options(embedder: Any, options: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        load(embedder.path, session_options=options)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2", 1025, 3_000_000, 10**14])
def test_wrong_threads(embedder: Any, threads: Any) -> None:
    with pytest.raises(RequestError, match="threads"):
        load(embedder.path, threads=threads)


def test_session_entries_and_optimizers_of_the_manifest(bundle: Path, tmp_path: Path) -> None:
    def nodes() -> int:
        path = tmp_path / "optimized.onnx"
        load(bundle, session_options={"optimized_model_filepath": str(path), "log_severity_level": 4})
        return len(onnx.load(path).graph.node)

    before = nodes()
    sign(bundle, dialects=dialect(bundle, disabled_optimizers=["EliminateIdentity"]))
    assert nodes() > before
    sign(bundle, dialects=dialect(bundle, session={"session.disable_prepacking": "1"}))
    entry = load(bundle).session.get_session_options().get_session_config_entry("session.disable_prepacking")
    assert entry == "1"


def test_a_file_that_is_no_model(bundle: Path) -> None:
    (bundle / "onnx/ort/model.onnx").write_bytes(b"no model at all")
    sign(bundle)
    with pytest.raises(BundleError, match=r"an ONNX model in model\.onnx"):
        load(bundle)


def test_a_graph_this_engine_does_not_know(bundle: Path) -> None:
    path = bundle / "onnx/ort/model.onnx"
    model = onnx.load(path)
    model.graph.node[0].op_type = "NoSuchOperator"
    path.write_bytes(model.SerializeToString())
    sign(bundle)
    with pytest.raises(HostError, match="opset 21"):
        load(bundle)


@pytest.mark.parametrize("part", ["inputs", "outputs"])
def test_a_graph_that_is_not_the_manifests(bundle: Path, part: str) -> None:
    ports = dialect(bundle)["ort"][part]
    sign(bundle, dialects=dialect(bundle, **{part: [{**ports[0], "dtype": "int32"}, *ports[1:]]}))
    with pytest.raises(BundleError, match=f"the {part} of the manifest"):
        load(bundle)
    sign(bundle, dialects=dialect(bundle, **{part: [{**ports[0], "name": "other"}, *ports[1:]]}))
    with pytest.raises(BundleError, match="other"):
        load(bundle)


def test_a_bundle_without_this_dialect(bundle: Path) -> None:
    sign(bundle, dialects={"qdq": dialect(bundle)["ort"]})
    with pytest.raises(BundleError, match="the dialect 'ort' in the bundle, got qdq"):
        load(bundle, dialect="ort")
    with load(bundle) as model:
        assert model.dialect == "qdq"
    sign(bundle, dialects={"other": read_manifest(bundle).to_json()["dialects"]["qdq"]})
    with pytest.raises(BundleError, match="the dialect 'ort' in the bundle, got other"):
        load(bundle)
    with pytest.raises(RequestError, match="a dialect: ort or qdq, got 'ort2'; did you mean 'ort'"):
        load(bundle, dialect="ort2")


@pytest.mark.parametrize(("name", "text"), [("config.json", "{"), ("tokenizer.json", "{}"), ("tokenizer.json", "")])
def test_broken_side_files(bundle: Path, name: str, text: str) -> None:
    (bundle / name).write_text(text)
    sign(bundle)
    with pytest.raises(BundleError):
        load(bundle)


@pytest.mark.parametrize("version", ["1.22.1", "0.9", "nightly"])
def test_an_old_engine_is_refused(embedder: Any, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", version)
    with pytest.raises(HostError, match=r"1\.23 or newer"):
        load(embedder.path)


def test_types_beyond_the_configured_ones(tiny: Callable[..., Any], bundle: Path) -> None:
    config = json.loads((bundle / "config.json").read_text())
    assert config["type_vocab_size"] == 2
    model = load(bundle)
    ids = np.array([[2, 5, 3]])
    with pytest.raises(RequestError, match="known input names, got 'token_type_ids'"):
        model.run({"input_ids": ids, "attention_mask": ids, "token_type_ids": ids})


def test_threads_share_a_model(embedder: Any, sentences: list[str]) -> None:
    model = load(embedder.path, threads=1)
    expected = model.embed(sentences)
    jobs = [range(start, len(sentences), 8) for start in range(8)] * 4
    with ThreadPoolExecutor(8) as pool:
        results = pool.map(lambda job: model.embed([sentences[index] for index in job], batch_size=5), jobs)
        for job, result in zip(jobs, results, strict=True):
            np.testing.assert_allclose(result, expected[list(job)], atol=1e-6)


@pytest.mark.parametrize("workers", [2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 40])
def test_workers_give_the_same_answers(embedder: Any, sentences: list[str], workers: int, count: int) -> None:
    texts = sentences[:count]
    expected = load(embedder.path).embed(texts, batch_size=4)
    model = load(embedder.path, workers=workers)
    assert model.session.get_session_options().intra_op_num_threads == 1
    np.testing.assert_allclose(model.embed(texts, batch_size=4), expected, atol=1e-6)
    np.testing.assert_allclose(model.embed(texts, batch_size=100), expected, atol=1e-6)


def test_an_error_in_a_worker_reaches_the_caller(tiny: Callable[..., Any], sentences: list[str]) -> None:
    made = tiny("text-classification", 3, change=lambda tables: tables.context.fill(np.inf))
    with pytest.raises(BundleError, match="finite"):
        load(made.path, workers=2).classify(sentences, batch_size=2)
    for workers in (0, True, 1.5, 1025):
        with pytest.raises(RequestError, match="workers"):
            load(made.path, workers=workers)


def test_a_closed_model_says_so(embedder: Any) -> None:
    with load(embedder.path) as model:
        assert model.embed("sea").shape == (1, 6)
    for call in (lambda: model.embed("sea"), lambda: model.run({}), lambda: model.session):
        with pytest.raises(RequestError, match="an open model"):
            call()
    model.close()
