"""The checks: keys, types, engines that fit the GPU, and a source for each figure."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from planish.errors import ProfileError
from planish.profiles import load
from planish.profiles.parsing import parse


def told(name: str = "jetson-orin-nano-8gb") -> dict[str, Any]:
    return deepcopy(load(name).to_json())


def refused(value: object) -> ProfileError:
    with pytest.raises(ProfileError) as caught:
        parse(value, "x.yaml")
    assert "x.yaml" in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("place", "key", "fix"),
    [
        ((), "engine", "did you mean 'engines'?"),
        (("gpu",), "smm", "did you mean 'sm'?"),
        (("memory",), "byte", "did you mean 'bytes'?"),
        (("engines", 0), "precision", "did you mean 'precisions'?"),
        (("power_modes", 1), "wats", "did you mean 'watts'?"),
        (("software", 0), "jetpak", "did you mean 'jetpack'?"),
        (("shapes",), "zzz", "known: batch, past, sequence"),
    ],
)
def test_an_unknown_key_names_the_nearest(place: tuple[str | int, ...], key: str, fix: str) -> None:
    value = told()
    spot: Any = value
    for step in place:
        spot = spot[step]
    spot[key] = 1
    error = refused(value)
    assert error.got == f"the key '{key}'"
    assert error.fix == fix


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"schema": 2}, "schema 1"),
        ({"schema": True}, "a whole number"),
        ({"name": 7}, "a text at `name`"),
        ({"name": " "}, "a text at `name`"),
        ({"arch": "x86_64"}, "a known word at `arch`"),
        ({"threads": 0}, "a whole number from 1 on at `threads`"),
        ({"threads": 1.5}, "a whole number"),
        ({"gpu": "T4"}, "a mapping at `gpu`"),
        ({"engines": {"name": "tensorrt"}}, "a list of mappings at `engines`"),
        ({"engines": ["tensorrt"]}, "a mapping at `engines[0]`"),
        ({"engines": []}, "at least one engine"),
        ({"dialects": ["ort", "ort"]}, "each word once at `dialects`"),
        ({"dialects": "ort"}, "a list of texts at `dialects`"),
        ({"dialects": ["onnx"]}, "known words at `dialects`"),
        ({"dialects": ["ort"]}, "the dialect of `tensorrt`"),
        ({"notes": [1]}, "a list of texts at `notes`"),
        ({"shapes": {"batch": [1, 8, 4], "sequence": [1, 2, 3]}}, "three rising numbers"),
        ({"shapes": {"batch": [1, 8], "sequence": [1, 2, 3]}}, "three rising numbers"),
        ({"shapes": {"batch": [1, 8, True], "sequence": [1, 2, 3]}}, "three rising numbers"),
        ({"shapes": {"sequence": [1, 2, 3]}}, "three numbers at `shapes.batch`"),
        ({"budgets": {"latency_ms": -1}}, "a number above 0 at `budgets.latency_ms`"),
        ({"budgets": {"latency_ms": float("nan")}}, "a number above 0"),
        ({"budgets": {"latency_ms": 10**400}}, "a number a float can hold"),
        ({"budgets": {"size_bytes": "24 MB"}}, "a whole number from 1 on at `budgets.size_bytes`"),
        ({"sources": ["a document"]}, "a mapping at `sources`"),
        ({"sources": {1: "a document"}}, "a known key at `sources`"),
        ({"gpu": None}, "the GPU of `tensorrt`"),
    ],
)
def test_a_wrong_value_says_what_was_expected(change: dict[str, Any], expected: str) -> None:
    assert expected in refused({**told(), **change}).expected


@pytest.mark.parametrize("sm", ["8", "8.", ".7", "8.7a", "sm_87", "²2.2", "8.7.1"])
def test_a_compute_capability_is_two_numbers(sm: str) -> None:
    value = told()
    value["gpu"]["sm"] = sm
    assert "a compute capability" in refused(value).expected


@pytest.mark.parametrize(
    ("name", "engine", "precision", "expected"),
    [
        ("jetson-orin-nano-8gb", 0, "fp8", "compute capability 8.9 or above for fp8"),
        ("t4", 0, "bf16", "compute capability 8.0 or above for bf16"),
        ("t4", 0, "int4-weight", "compute capability 8.0 or above for int4-weight"),
        ("h100", 0, "fp4", "compute capability 10.0 or above for fp4"),
    ],
)
def test_a_precision_the_gpu_lacks_is_refused(name: str, engine: int, precision: str, expected: str) -> None:
    value = told(name)
    value["engines"][engine]["precisions"].append(precision)
    assert expected in refused(value).expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"recipes": ["int8", "fp8"]}, "fp8 among the precisions, as recipe fp8 needs of `tensorrt`"),
        ({"recipes": ["int4"]}, "known words at `engines[0].recipes`"),
        ({"build_memory": 0}, "a number above 0 at `engines[0].build_memory`"),
        ({"install": "tensorrt"}, "a list of texts at `engines[0].install`"),
    ],
)
def test_what_a_build_takes_fits_the_engine(change: dict[str, Any], expected: str) -> None:
    value = told("jetson-orin-nano-8gb")
    value["engines"][0].update(change)
    assert expected in refused(value).expected


def test_packages_of_the_system_are_a_list() -> None:
    value = told("jetson-orin-nano-8gb")
    value["software"][0]["apt"] = "python3-libnvinfer"
    assert "a list of texts at `software[0].apt`" in refused(value).expected


def test_an_engine_twice_or_without_precision_is_refused() -> None:
    value = told()
    value["engines"].append(value["engines"][0])
    assert "each once" in refused(value).expected
    value = told()
    value["engines"][0]["precisions"] = []
    assert "at least one precision" in refused(value).expected


def test_every_figure_of_every_section_needs_a_source() -> None:
    full = told()
    for figure in load("jetson-orin-nano-8gb").figures():
        value = deepcopy(full)
        for source in [key for key in value["sources"] if figure == key or figure.startswith(f"{key}.")]:
            del value["sources"][source]
        assert "a source for `" in refused(value).expected


def test_a_source_for_nothing_names_the_nearest_figure() -> None:
    value = told()
    value["sources"]["gpu.dense_int8_top"] = "a document"
    error = refused(value)
    assert error.got == "`gpu.dense_int8_top`, which is not there"
    assert error.fix == "did you mean 'gpu.dense_int8_tops'?"


def test_a_section_s_source_covers_its_figures_and_no_namesake() -> None:
    value = told()
    value["sources"]["cpu"] = "a document"
    del value["sources"]["cpu.cores"], value["sources"]["cpu.features"]
    assert parse(value).cpu.cores == 6
    value["sources"]["c"] = value["sources"].pop("cpu")
    assert "a source for `cpu." in refused(value).expected


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_a_file_that_is_no_mapping(value: object) -> None:
    assert "a mapping" in refused(value).expected


def test_a_huge_value_makes_a_short_message() -> None:
    assert len(str(refused({**told(), "name": list(range(100_000))}))) < 300
