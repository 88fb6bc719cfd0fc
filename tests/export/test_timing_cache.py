"""Timings of full TensorRT are kept between builds.

Full TensorRT is not here, and TensorRT-RTX has made its timing caches no-ops, so a configuration that keeps bytes as
TensorRT documents it stands in; that the names exist is test_tensorrt_contract's business.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from planish.export.tensorrt_module import Chosen, load_module
from planish.export.timing_cache import TimingCache, timing_cache_for
from planish.runtime import BuiltOn

MAGIC = b"timings"


@dataclass
class Cache:
    """Timings; ``serialize`` gives them back."""

    data: bytes

    def serialize(self) -> bytes:
        return self.data


class Config:
    """Refuses bytes that are no cache, and caches of another device; measures one kernel a build."""

    def __init__(self, device: bytes = b"A") -> None:
        self.device, self.cache = device, Cache(MAGIC)

    def create_timing_cache(self, blob: bytes) -> Cache | None:
        return Cache(blob or MAGIC + self.device) if not blob or blob.startswith(MAGIC) else None

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch, "timings of another device are worthless"
        fits = cache.data.startswith(MAGIC + self.device)
        if fits:
            self.cache = cache
        return fits

    def get_timing_cache(self) -> Cache:
        return Cache(self.cache.data + b"+kernel")


def build(cache: TimingCache, config: Config) -> str:
    """One build's use of the cache."""
    cache.load_into(config)  # type: ignore[arg-type]
    return cache.save_from(config)  # type: ignore[arg-type]


def test_a_second_build_starts_from_the_first(tmp_path: Path) -> None:
    cache = TimingCache(tmp_path / "timing" / "a.cache")
    assert build(cache, Config()) == hashlib.sha256(b"timingsA+kernel").hexdigest()
    assert cache.path.read_bytes() == b"timingsA+kernel"
    assert build(cache, Config()) == hashlib.sha256(b"timingsA+kernel+kernel").hexdigest()
    assert [path.name for path in cache.path.parent.iterdir()] == ["a.cache"]


@pytest.mark.parametrize("before", [b"", b"no cache at all", MAGIC + b"B of another device"])
def test_what_does_not_fit_is_replaced(tmp_path: Path, before: bytes) -> None:
    cache = TimingCache(tmp_path / "a.cache")
    cache.path.write_bytes(before)
    build(cache, Config())
    assert cache.path.read_bytes() == b"timingsA+kernel"


def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "timing").write_text("a file in the way", encoding="utf-8")
    assert build(TimingCache(tmp_path / "timing" / "a.cache"), Config()) == (
        hashlib.sha256(b"timingsA+kernel").hexdigest()
    )


def test_only_full_tensorrt_on_its_device_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="NVIDIA publishes it for Linux on x86-64 only")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    module, orin = load_module("tensorrt_rtx"), BuiltOn("Orin (nvgpu)", "8.7")
    assert timing_cache_for(Chosen("tensorrt_rtx", module, "8.9", None)) is None
    assert timing_cache_for(Chosen("tensorrt_rtx", module, "8.7", orin)) is None
    found = timing_cache_for(Chosen("tensorrt", module, "8.7", orin))
    assert found is not None
    assert found.path == tmp_path / "planish" / "timing" / "tensorrt-1.7.1.116-Orin-nvgpu-sm8.7.cache"
