"""The CUDA layer alone: where the library is found, errors in CUDA's words, buffers and graphs that leave nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from planish.errors import HostError, RequestError
from planish.runtime import BuiltOn, cudart
from planish.runtime.cuda import Cuda, CudaError, DeviceMemoryError, open_cuda
from planish.runtime.cudart import FUNCTIONS, load_cudart
from planish.runtime.device_memory import Pool, array_at
from planish.runtime.kernel_cache import KernelCache
from planish.runtime.replay import Replays
from tests.runtime.fake_cuda import MEMORY, FakeCudart


@pytest.fixture
def fake() -> FakeCudart:
    return FakeCudart()


@pytest.fixture
def cuda(fake: FakeCudart) -> Cuda:
    return open_cuda(0, fake)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ``nvidia`` namespace of packages, and no library in the system's places."""
    folder = tmp_path / "nvidia"
    folder.mkdir()
    spec = SimpleNamespace(submodule_search_locations=[str(folder)])
    monkeypatch.setattr(cudart.importlib.util, "find_spec", lambda name: spec if name == "nvidia" else None)
    monkeypatch.setattr(cudart, "_system_names", tuple)
    return folder


def test_no_library_anywhere(packages: Path) -> None:
    with pytest.raises(HostError, match=r"\(libcudart\), got none; install CUDA 12 or 13, or pip install nvidia-cuda"):
        load_cudart()


def test_a_library_that_is_none(packages: Path) -> None:
    place = packages / "cuda_runtime" / "lib"
    place.mkdir(parents=True)
    (place / "libcudart.so.12").write_bytes(b"no library")
    with pytest.raises(HostError, match=r"libcudart\.so\.12"):
        load_cudart()


def test_the_library_of_a_package(packages: Path) -> None:
    found = [path for path in Path("/usr/local").glob("cuda*/lib*/libcudart.so.1[23]") if path.is_file()]
    if not found:
        pytest.skip("no CUDA runtime library on this machine to put into a package's folder")
    for home in ("cuda_runtime/lib", "cu13/lib"):
        (packages / home).mkdir(parents=True)
        target = packages / home / found[0].name
        shutil.copy(found[0], target)
        library = load_cudart()
        assert library._name == str(target)
        assert all(getattr(library, name).argtypes == kinds for name, kinds in FUNCTIONS.items())
        target.unlink()


@pytest.mark.parametrize(
    ("driver", "chosen"), [(13000, 13000), (13010, 13000), (12080, 12060), (0, 13000), (11080, 13000)]
)
def test_the_library_that_the_driver_serves(
    driver: int, chosen: int, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA 13 and 12 side by side; a driver that serves neither is told by the first."""

    class Library:
        def __init__(self, name: str) -> None:
            self.version = int(name)

        def cudaRuntimeGetVersion(self, version: Any) -> int:
            version._obj.value = self.version
            return 0

        def cudaDriverGetVersion(self, version: Any) -> int:
            version._obj.value = driver
            return 0

    monkeypatch.setattr(cudart, "_system_names", lambda: ("13000", "12060"))
    monkeypatch.setattr(cudart.ctypes, "CDLL", Library)
    monkeypatch.setattr(cudart, "_typed", lambda library: library)
    assert load_cudart().version == chosen


def test_facts(fake: FakeCudart) -> None:
    fake.sm, fake.driver, fake.name = "12.0", 12060, "NVIDIA RTX é"
    assert open_cuda(0, fake).facts == BuiltOn("NVIDIA RTX é", "12.0", "12.6")


def test_every_code_becomes_words(cuda: Cuda, fake: FakeCudart) -> None:
    fake.fail("cudaStreamCreateWithFlags", 700)
    with pytest.raises(CudaError, match=r"a stream, got cudaErrorIllegalAddress: an illegal memory access.*\(700\)"):
        cuda.stream()
    fake.fail("cudaSetDevice", 4321)
    with pytest.raises(CudaError, match=r"unknown error \(4321\)") as caught:
        cuda.activate()
    assert (caught.value.code, caught.value.exit_code) == (4321, 4)
    fake.fail("cudaMalloc", MEMORY)
    with pytest.raises(DeviceMemoryError, match=rf"10 bytes of GPU memory, got {fake.total} of {fake.total} free"):
        cuda.allocate(10)
    fake.fail("cudaHostAlloc", MEMORY)
    with pytest.raises(DeviceMemoryError, match="10 bytes of pinned memory"):
        cuda.allocate_host(10)
    fake.fail("cudaMalloc", 1)
    with pytest.raises(CudaError, match="invalid argument"):
        cuda.allocate(10)


def test_a_pool_grows_and_frees(cuda: Cuda, fake: FakeCudart) -> None:
    pool = Pool(cuda)
    first = pool.address("a", 100)
    assert pool.address("a", 50) == first
    assert (pool.nbytes, pool.moves) == (256, 1)
    pool.address("b", 0)
    pool.address("a", 1000)
    assert (pool.nbytes, pool.moves, fake.live["device"]) == (1024 + 256, 3, 2)
    fake.fail("cudaMalloc", MEMORY)
    with pytest.raises(DeviceMemoryError):
        pool.address("a", 5000)
    assert pool.nbytes == 256  # the smaller one is gone, the others stay
    assert pool.address("a", 10)
    fake.fail("cudaFree", 700)
    with pytest.raises(CudaError):
        pool.close()
    assert fake.live["device"] == 1  # what CUDA refused to free, and nothing else
    pool.close()


def test_arrays_at_addresses(cuda: Cuda) -> None:
    pool = Pool(cuda, pinned=True)
    address = pool.address("a", 24)
    array_at(address, (2, 3), np.dtype(np.float32))[...] = 7
    assert array_at(address, (6,), np.dtype(np.float32)).tolist() == [7] * 6
    assert array_at(address, (0, 3), np.dtype(np.float32)).shape == (0, 3)
    pool.close()


def test_a_capture_that_is_interrupted_is_ended(cuda: Cuda, fake: FakeCudart) -> None:
    stream = cuda.stream()
    replays = Replays(cuda, 4)
    calls: list[int] = []

    def enqueue() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    for _ in range(2):
        if len(calls) == 0:
            replays("key", stream, enqueue, lambda: (None, enqueue))
        else:
            with pytest.raises(KeyboardInterrupt):
                replays("key", stream, enqueue, lambda: (None, enqueue))
    assert not fake.recording
    assert not fake.graphs
    replays("key", stream, enqueue, lambda: (None, enqueue))
    assert (len(calls), len(replays), replays.launches) == (4, 0, 0)
    cuda.destroy_stream(stream)
    assert not fake.live


def test_a_kernel_cache_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    class Cache:
        seen: list[bytes] = []  # noqa: RUF012

        def deserialize(self, data: bytes) -> bool:
            self.seen.append(data)
            raise RuntimeError("not mine")

        def serialize(self) -> bytes:
            return b"kernels"

    class Config:
        def create_runtime_cache(self) -> Cache:
            return Cache()

        def set_runtime_cache(self, cache: Any) -> None:
            self.cache = cache

    cache = KernelCache(tmp_path, "ab" * 32, BuiltOn("x", "8.9", "13.0"))
    assert cache.path.name == "abababababababab-sm8.9-driver13.0.rtxcache"
    cache.save()
    assert not cache.path.exists()
    cache.path.write_bytes(b"old")
    config = Config()
    cache.attach(config)
    cache.attach(Config())
    assert Cache.seen == [b"old"]
    cache.save()
    assert cache.path.read_bytes() == b"kernels"
    shutil.rmtree(tmp_path)
    cache.save()  # a lost folder loses the cache alone
    with pytest.raises(RequestError, match="a folder for runtime_cache"):
        KernelCache(tmp_path, "ab" * 32, BuiltOn("x", "8.9", "13.0"))
