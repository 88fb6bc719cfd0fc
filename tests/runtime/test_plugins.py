"""Providers that come as packages: found by name without an import, chosen by a device's word, honest when absent."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from planish.errors import HostError, RequestError
from planish.runtime import installed_plugins, load, plugins
from planish.runtime.placement import Device, parse_device, place_on

SOURCE = """
LOADED = []
def get_library_path():
    return {path!r}
def get_ep_names():
    return {names!r}
"""


@pytest.fixture(scope="module")
def embedder(tiny: Callable[..., Any]) -> Any:
    return tiny("feature-extraction", 6, pooling={"mode": "mean", "normalize": True})


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Installs a plugin package ``onnxruntime_ep_<word>``."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(word: str, names: list[str], source: str = SOURCE, path: str = "missing.so") -> str:
        module = f"onnxruntime_ep_{word}"
        (tmp_path / module).mkdir()
        (tmp_path / module / "__init__.py").write_text(source.format(names=names, path=str(tmp_path / path)))
        monkeypatch.delitem(sys.modules, module, raising=False)
        return module

    return make


def test_packages_are_found_and_not_imported(package: Callable[..., str]) -> None:
    package("some_chip", ["SomeChipExecutionProvider"], "raise SystemExit")
    assert installed_plugins()["some-chip"].module == "onnxruntime_ep_some_chip"
    assert "onnxruntime_ep_some_chip" not in sys.modules
    assert parse_device("some-chip:1") == Device("some-chip", 1)


def test_a_plugin_runs_a_model(package: Callable[..., str], embedder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one plugin device every ONNX Runtime has is its own CPU: no library has to be registered for it."""
    module = package("own_cpu", ["CPUExecutionProvider"])
    monkeypatch.setattr(plugins, "_registered", {module})
    inputs = {"input_ids": np.array([[2, 7, 3]]), "attention_mask": np.ones((1, 3), np.int64)}
    with load(embedder.path, "own-cpu") as model, load(embedder.path, "cpu") as plain:
        assert model.device == "CPUExecutionProvider"
        got, wanted = model.run(inputs), plain.run(inputs)
        np.testing.assert_array_equal(got["last_hidden_state"], wanted["last_hidden_state"])
    placement = place_on(onnxruntime, Device("own-cpu", 0), None, None, {"some_option": 1})
    assert placement.ep_devices[0].ep_name == "CPUExecutionProvider"
    assert placement.options == ({"some_option": 1},)
    with pytest.raises(HostError, match="device 1 of own-cpu, got only 0 to 0"):
        load(embedder.path, "own-cpu:1")


def test_a_provider_by_its_name(package: Callable[..., str], embedder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = package("some_chip", ["SomeChipExecutionProvider"])
    monkeypatch.setattr(plugins, "_registered", {module})
    with pytest.raises(HostError, match="a device for SomeChipExecutionProvider, got none: onnxruntime_ep_some_chip"):
        load(embedder.path, providers=["SomeChipExecutionProvider"])
    with pytest.raises(HostError, match="the provider OtherExecutionProvider, got only"):
        load(embedder.path, providers=["OtherExecutionProvider"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (SOURCE, "a library of onnxruntime_ep_some_chip that this onnxruntime loads"),
        ("x = 1", "get_library_path and get_ep_names in onnxruntime_ep_some_chip, got none of them"),
        ("import no_such_module_anywhere", "got No module named 'no_such_module_anywhere'; pip install"),
    ],
)
def test_packages_that_do_not_work(package: Callable[..., str], embedder: Any, source: str, message: str) -> None:
    package("some_chip", ["SomeChipExecutionProvider"], source)
    with pytest.raises(HostError, match=message):
        load(embedder.path, "some-chip")


def test_plugins_that_are_not_there(embedder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "installed_plugins", dict)
    message = "OpenVINOExecutionProvider, got only .*CPUExecutionProvider; pip install onnxruntime-ep-openvino"
    if "OpenVINOExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(HostError, match=message):
            load(embedder.path, "openvino")
    for asked, meant in (("openvin", "openvino"), ("gpu", "cuda"), ("trt:1", "tensorrt"), ("tensorr", "tensorrt")):
        with pytest.raises(RequestError, match=f"did you mean '{meant}'"):
            load(embedder.path, asked)


def test_a_provider_inside_onnxruntime_needs_no_package() -> None:
    class Library:
        @staticmethod
        def get_available_providers() -> list[str]:
            return ["OpenVINOExecutionProvider", "CPUExecutionProvider"]

    placement = place_on(Library, Device("openvino"), None)  # type: ignore[arg-type]
    assert placement.providers == ("OpenVINOExecutionProvider", "CPUExecutionProvider")
    assert not placement.ep_devices
