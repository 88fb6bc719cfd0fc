"""What cannot be built is refused before it is tried, in words, and nothing is left behind."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tensorrt_rtx", reason="NVIDIA publishes it for Linux on x86-64 only")

from planish import export, runtime
from planish.errors import BundleError, HostError, InputError, ProfileError
from planish.export.build_bundle import prepare
from planish.export.lint import lint_model
from planish.export.tensorrt_module import choose
from planish.profiles import load
from planish.runtime import BuiltOn
from tests.export.engine_bundles import make_bundle, make_profile, write_small_manifest


def left(bundle: Path) -> list[str]:
    """Anything a refused build left."""
    return sorted(path.name for path in bundle.glob("engines/*"))


@pytest.mark.parametrize("sm", ["8.7", "9.0", "10.0", "10.3", "11.0"])
def test_devices_rtx_cannot_target_are_refused_with_the_command_to_type_there(tmp_path: Path, sm: str) -> None:
    bundle, profile = make_bundle(tmp_path / "bundle"), make_profile(tmp_path, sm=sm)
    with pytest.raises(HostError, match=f"compute capability {sm}") as caught:
        export.build(bundle, profile=str(profile), module="tensorrt_rtx")
    assert "7.5, 8.0, 8.6, 8.9, 12.0" in caught.value.got
    assert "planish build BUNDLE --profile small --module tensorrt" in caught.value.fix
    assert left(bundle) == []


@pytest.mark.parametrize("name", ["jetson-orin-nano-8gb", "h100", "jetson-agx-thor"])
def test_shipped_profiles_of_such_devices_are_refused_too(name: str) -> None:
    with pytest.raises(HostError, match="compute capability") as caught:
        choose(load(name), None)
    assert "on that device" in caught.value.fix


@pytest.mark.parametrize(("sm", "linear"), [("8.6", "fp8"), ("7.5", "int4-weight")])
def test_precisions_the_gpu_has_not_break_a_rule(tmp_path: Path, sm: str, linear: str) -> None:
    bundle = make_bundle(tmp_path / "bundle", linear=linear)
    with pytest.raises(BundleError, match=f"rule {linear.split('-')[0]}-compute-capability") as caught:
        export.build(bundle, profile=str(make_profile(tmp_path, sm=sm)))
    assert "INT8" in caught.value.fix
    assert left(bundle) == []


@pytest.mark.parametrize("name", ["l4", "t4", "a100-80gb"])
@pytest.mark.parametrize("module", [None, "tensorrt_rtx"])
def test_what_rtx_could_build_and_the_profile_does_not_list(name: str, module: str | None) -> None:
    with pytest.raises(HostError, match=rf"profile {name} lists \(tensorrt\), got tensorrt_rtx") as caught:
        choose(load(name), None, module)
    assert f"planish build BUNDLE --profile {name} --module tensorrt" in caught.value.fix


def test_module_and_profile_are_named_right(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    with pytest.raises(InputError, match="--module tensorrt or tensorrt_rtx"):
        export.build(bundle, module="onnxruntime")
    with pytest.raises(ProfileError, match="a TensorRT engine"):
        export.build(bundle, profile="cpu-x86-avx2")
    with pytest.raises(ProfileError, match="shipped profile"):
        export.build(bundle, profile="rtx-4091")


def test_full_tensorrt_that_is_not_installed_is_named_with_its_installation() -> None:
    if "tensorrt" in sys.modules:
        pytest.skip("needs a host without the module tensorrt, and it is imported here")
    with pytest.raises(HostError, match="the module tensorrt, got none") as caught:
        choose(load("rtx-4090"), BuiltOn("A card", "8.9"), "tensorrt")
    assert "python3-libnvinfer" in caught.value.fix


def test_a_bundle_without_the_dialect(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    manifest = runtime.read_manifest(bundle).to_json()
    fields = {key: value for key, value in manifest.items() if key not in ("digest", "files")}
    fields["dialects"] = {"ort": fields["dialects"]["ort"]}
    runtime.write_manifest(bundle, fields)
    with pytest.raises(BundleError, match="a qdq graph"):
        export.build(bundle)


def test_a_changed_graph_is_refused_before_anything_reads_it(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    graph = bundle / "onnx" / "qdq" / "model.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    with pytest.raises(BundleError, match="sha256"):
        export.build(bundle, profile=str(make_profile(tmp_path)))


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_graph_that_the_manifest_vouches_for(tmp_path: Path, keep: float) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    graph = bundle / "onnx" / "qdq" / "model.onnx"
    manifest = runtime.read_manifest(bundle).to_json()
    graph.write_bytes(graph.read_bytes()[: int(graph.stat().st_size * keep)])
    runtime.write_manifest(bundle, {key: manifest[key] for key in manifest if key not in ("digest", "files")})
    with pytest.raises(BundleError, match="onnx"):
        export.build(bundle, profile=str(make_profile(tmp_path)))
    assert left(bundle) == []
    runtime.verify(bundle)


def test_external_data_that_is_missing_is_said(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", external=True)
    (bundle / "onnx" / "qdq" / "model.onnx.data").unlink()
    write_small_manifest(bundle, "encoder")
    with pytest.raises(InputError, match=r"model\.onnx"):
        export.build(bundle, profile=str(make_profile(tmp_path)))
    assert left(bundle) == []


def test_shapes_the_device_has_no_memory_for(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", "decoder")
    profile = make_profile(tmp_path, batch=[1, 2, 400_000])
    with pytest.raises(ProfileError, match=r"within 7200 MB, which small has for it, got about \d{5,} MB"):
        export.build(bundle, profile=str(profile))
    assert left(bundle) == []


def test_shapes_the_model_does_not_take(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    profile = make_profile(tmp_path, sequence=[64, 128, 512])
    with pytest.raises(ProfileError, match="at most 48"):
        export.build(bundle, profile=str(profile))


def test_one_build_at_a_time(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    handle = os.open(bundle, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with pytest.raises(HostError, match="no other build"):
            export.build(bundle, profile=str(make_profile(tmp_path)))
    finally:
        os.close(handle)
    export.build(bundle, profile=str(make_profile(tmp_path)))


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    bundle, profile = make_bundle(tmp_path / "bundle"), make_profile(tmp_path)
    code = (
        "import resource, signal, sys\n"
        "from planish.__main__ import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))\n"
        "sys.exit(main(['build', *sys.argv[1:]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, bundle, "--profile", profile], capture_output=True, text=True, check=False
    )
    assert done.returncode == 4, done.stderr
    assert "free some space" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (bundle / "engines").exists()
    runtime.verify(bundle)


def test_what_stands_in_the_way_is_listed_without_being_raised(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    ready = prepare(bundle, profile=str(make_profile(tmp_path, sm="8.7", memory=100_000)))
    assert [type(error) for error in ready.refused] == [HostError, ProfileError]
    assert ready.engine_id is None
    assert left(bundle) == []


def test_rules_are_held_to_the_module_at_hand_and_not_to_the_releases_of_the_profile(tmp_path: Path) -> None:
    """INT8 in blocks is beyond TensorRT 10.3, which the profile names; TensorRT-RTX, which builds here, takes it."""
    bundle, path = make_bundle(tmp_path / "bundle", linear="int8-blocks"), make_profile(tmp_path)
    software = 'software:\n  - cuda: "12.6"\n    tensorrt: "10.3"\n'
    text = path.read_text().replace("sources:", f'{software}sources:\n  software: "none: a test"')
    path.write_text(text, encoding="utf-8")
    graph = bundle / "onnx" / "qdq" / "model.onnx"
    assert "int8-block-version" in lint_model(graph, load(str(path))).broken
    ready = prepare(bundle, profile=str(path))
    assert ready.refused == ()
    assert "int8-block-version" not in ready.lint.broken
    assert ready.lint.not_checked == ()  # the rules about the build itself were asked too


def test_a_profile_with_full_tensorrt_alone_says_so() -> None:
    with pytest.raises(HostError) as caught:
        choose(load("h100"), BuiltOn("NVIDIA GeForce RTX 4090", "8.9"))
    assert "9.0" in str(caught.value)
