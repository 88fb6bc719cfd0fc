"""The parts of the builder that need no TensorRT: shapes, estimate, progress, log, and importing it on a device."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.errors import BundleError, HostError, ProfileError
from planish.export.build_estimate import Estimate, Host, estimate, look_at_host, refusals
from planish.export.build_graph import read_graph
from planish.export.build_progress import BuildLog, Phases
from planish.export.build_shapes import optimization_profiles
from planish.profiles import load
from planish.runtime import read_manifest
from planish.runtime.manifest import TensorInfo
from tests.blocked import run_without
from tests.export.engine_bundles import MAX_LENGTH, make_bundle, make_profile
from tests.export.engine_graphs import FFN, LAYERS, VOCABULARY, decoder, encoder

GB = 1_000_000_000


def test_shapes_are_the_profiles_cut_to_the_model(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    manifest = read_manifest(bundle)
    (found,) = optimization_profiles(load("rtx-4090"), manifest, manifest.dialects["qdq"].inputs)
    sizes = found.shapes["input_ids"]
    assert (sizes.min, sizes.opt, sizes.max) == ((1, 1), (8, MAX_LENGTH), (32, MAX_LENGTH))
    assert list(found.shapes) == ["input_ids", "attention_mask"]


def test_a_decoders_total_is_past_and_sequence(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", "decoder")
    manifest = read_manifest(bundle)
    for shape in optimization_profiles(load("rtx-4090"), manifest, manifest.dialects["qdq"].inputs):
        for which in ("min", "opt", "max"):
            sequence = getattr(shape.shapes["input_ids"], which)[1]
            past = getattr(shape.shapes["past_key_values.0.key"], which)[2]
            assert getattr(shape.shapes["attention_mask"], which)[1] == past + sequence
            assert past < MAX_LENGTH


def test_unknown_axes_and_missing_pasts_are_refused(tmp_path: Path) -> None:
    manifest = read_manifest(make_bundle(tmp_path / "bundle", "decoder"))
    odd = (TensorInfo("pixels", "int64", ("batch", "height")),)
    with pytest.raises(BundleError, match="'height' in pixels"):
        optimization_profiles(load("rtx-4090"), manifest, odd)
    profile = load("rtx-4090")
    bare = replace(profile, shapes=replace(profile.shapes, past=None))
    with pytest.raises(ProfileError, match=r"shapes\.past"):
        optimization_profiles(bare, manifest, manifest.dialects["qdq"].inputs)


@pytest.mark.parametrize("linear", ["int8", "int8-weight", "fp16"])
def test_facts_of_a_graph(tmp_path: Path, linear: str) -> None:
    found = read_graph(encoder(tmp_path / "e.onnx", linear=linear))
    assert (found.widest, found.vocabulary) == (FFN, 0)
    assert len(found.products) == LAYERS * (6 + 2)
    assert abs(found.weights_bytes - (tmp_path / "e.onnx").stat().st_size) < 30_000
    head = read_graph(decoder(tmp_path / "d.onnx", linear=linear))
    assert head.widest == FFN
    assert head.vocabulary == VOCABULARY


def test_the_estimate_grows_with_shapes_and_holds_the_cache(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", "decoder")
    manifest = read_manifest(bundle)
    dialect = manifest.dialects["qdq"]
    facts = read_graph(bundle / dialect.path)
    needs = []
    for batch in (4, 8):
        profile = load(str(make_profile(tmp_path, name=f"b{batch}", batch=[1, 2, batch])))
        shapes = optimization_profiles(profile, manifest, dialect.inputs)
        needs.append(estimate(facts, shapes, dialect.inputs, dialect.outputs, "tensorrt_rtx"))
    small, large = needs
    cache = 2 * LAYERS * 4 * 2 * 32 * 2 * (24 + 40)  # keys and values, of past and present, batch 4, float16
    assert cache < small.buffer_bytes < 2 * cache
    assert large.buffer_bytes == pytest.approx(2 * small.buffer_bytes)
    assert large.activation_bytes == pytest.approx(2 * small.activation_bytes, rel=0.01)
    assert large.build_bytes == small.build_bytes > 3 * facts.weights_bytes


def test_what_does_not_fit_is_refused_with_numbers() -> None:
    need = Estimate(GB, GB, GB, 7 * GB, 5 * GB, 2 * GB, 60.0)
    orin = load("jetson-orin-nano-8gb")
    assert refusals(need, orin, Host(6 * GB, 3 * GB)) == []
    assert refusals(need, orin, Host(None, None)) == []
    (memory,) = refusals(need, orin, Host(4 * GB, 3 * GB))
    assert isinstance(memory, HostError)
    assert "5000 MB of memory" in str(memory)
    assert "4000 MB free" in str(memory)
    (disk,) = refusals(need, orin, Host(6 * GB, GB))
    assert "2000 MB of disk" in str(disk)
    (device,) = refusals(replace(need, device_bytes=8 * GB), orin, Host(6 * GB, 3 * GB))
    assert isinstance(device, ProfileError)
    assert "7200 MB" in str(device)


def test_this_hosts_memory_and_disk_are_seen(tmp_path: Path) -> None:
    host = look_at_host(tmp_path)
    assert host.memory is not None
    assert host.disk is not None
    assert host.memory > 1 << 20
    assert host.disk > 1 << 20


def test_eta_starts_at_the_estimate_and_ends_at_zero() -> None:
    phases = Phases(100.0, started=0.0)
    assert phases.remaining(now=0.0) == pytest.approx(100.0)
    phases.start("all", None, 2)
    phases.start("half", "all", 10)
    for step in range(10):
        assert phases.step("half", step)
    assert phases.share() == pytest.approx(0.5)
    phases.finish("half")
    phases.step("all", 0)
    assert phases.remaining(now=30.0) == pytest.approx(0.5 * 30 + 0.5 * 70)
    phases.step("all", 1)
    assert phases.share() == 1.0
    assert phases.remaining(now=60.0) == 0.0
    phases.stopped = True
    assert not phases.step("all", 1)


NAMES = st.sampled_from(["a", "b", "c", "d"])
EVENTS = st.one_of(
    st.tuples(st.just("start"), NAMES, st.none() | NAMES, st.integers(-1, 5)),
    st.tuples(st.just("step"), NAMES, st.integers(-1, 9)),
    st.tuples(st.just("finish"), NAMES),
)


@given(st.lists(EVENTS, max_size=30))
def test_any_order_of_phases_gives_a_share_and_an_eta(events: list[tuple[str, ...]]) -> None:
    phases = Phases(10.0, started=0.0)
    for kind, *values in events:
        getattr(phases, kind)(*values)
        assert 0.0 <= phases.share() <= 1.0
        assert phases.remaining(now=5.0) >= 0.0


def test_the_log_gives_memory_errors_and_warnings() -> None:
    log = BuildLog()
    for size in (10, 30, 20):
        log.add("INFO", f"Total Activation Memory: {size} bytes")
    log.add("VERBOSE", "Total Weights Memory: 5 bytes")
    log.add("WARNING", "Make sure input input_ids has Int64 binding.")
    for _ in range(2):
        log.add("WARNING", "slow")
    log.add("ERROR", "first")
    assert log.memory() == {"weights_bytes": None, "activation_bytes": 30, "scratch_bytes": None}
    assert log.warnings() == ["slow"]
    assert log.errors() == ["first"]


WORKSHOP = ("torch", "transformers", "pydantic", "safetensors", "onnxscript", "optimum")
DRY_RUN = """
from planish.__main__ import main
sys.exit(main(['build', sys.argv[1], '--profile', sys.argv[2], '--dry-run', '--json']))
"""


def test_a_device_without_torch_gets_the_dry_run(tmp_path: Path) -> None:
    bundle, profile = make_bundle(tmp_path / "bundle", "decoder"), make_profile(tmp_path, engine="tensorrt", sm="8.7")
    done = run_without(WORKSHOP, DRY_RUN, bundle, profile)
    told = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == told["exit_code"] == 4, done.stderr
    assert "8.7" in told["refused"][0]["expected"] + told["refused"][0]["got"]
    assert [item["name"] for item in told["profiles"]] == ["prefill", "decode"]
    assert told["estimate"]["weights_bytes"] > 50_000
    assert told["engine"] is None
    assert not (bundle / "engines").exists()
