"""The commands `profiles show` prints: our own parser takes them, they are whole, and they follow the profile."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from planish import recipes
from planish.cli import planish as cli
from planish.export.build_estimate import BUILD_FACTOR
from planish.export.tensorrt_module import ENGINES
from planish.profiles import Journey, journeys, load, names
from planish.profiles.parsing import parse
from planish.profiles.schema import RECIPES

ROOT = Path(__file__).resolve().parents[2]
JOURNEYS = [(name, journey) for name in names() for journey in journeys(load(name))]
WITH_ENGINES = [name for name in names() if any(engine.build != "nothing" for engine in load(name).engines)]


def every(*names: str) -> list[str]:
    """All commands of some profiles, each once."""
    return sorted({line for name in names for journey in journeys(load(name)) for line in journey.commands})


@pytest.mark.parametrize("line", [line for line in every(*names()) if line.startswith("planish ")])
def test_our_own_parser_takes_every_command(line: str) -> None:
    _, command, *words = shlex.split(line)
    with click.Context(cli) as parent:
        found = cli.get_command(parent, command)
        assert found is not None
        context = found.make_context(command, words, parent=parent)
    wanted = {"profile", "recipe", "device", "baseline", "shapes"} & set(context.params)
    assert all(context.params[name] for name in wanted if f"--{name.rstrip('s')}" in line)


def test_the_parser_refuses_what_no_command_takes() -> None:
    with click.Context(cli) as parent:
        found = cli.get_command(parent, "build")
        assert found is not None
        with pytest.raises(click.UsageError):
            found.make_context("build", ["model.bundle", "--no-such-option"], parent=parent)


@pytest.mark.parametrize("line", every(*names()))
def test_a_shell_and_python_read_every_command(line: str) -> None:
    subprocess.run(["bash", "-n", "-c", line], check=True, capture_output=True)
    words = shlex.split(line)
    if words[:2] == ["python", "-c"]:
        compile(words[2], "command", "exec")
    if words[:2] == ["pip", "install"]:
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        for found in re.findall(r"planish\[([\w,]+)\]", line):
            assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in found.split(","))


@pytest.mark.parametrize(("name", "journey"), JOURNEYS)
def test_a_journey_is_whole(name: str, journey: Journey) -> None:
    """Install, copy, gate, measure and serve on the device; bundles are made before they are used."""
    on_device = "\n".join(line for step in journey.steps if step.where == "device" for line in step.commands)
    for wanted in ("pip install", "planish verify", "planish gate", "planish bench", "planish run"):
        assert wanted in on_device
    order = [journey.commands.index(line) for line in journey.commands if "ship" in line or "rsync" in line]
    assert order == sorted(order)
    assert f"--profile {name} " in journey.commands[1]
    assert not any("server" in line for line in journey.commands)


@pytest.mark.parametrize("name", WITH_ENGINES)
def test_an_engine_is_built_where_the_profile_says(name: str) -> None:
    engine = next(engine for engine in load(name).engines if engine.build != "nothing")
    for journey in journeys(load(name)):
        places = {step.where for step in journey.steps for line in step.commands if line.startswith("planish build")}
        assert places == {"host" if engine.build == "anywhere" else "device"}
        gates = [line for line in journey.commands if line.startswith("planish gate")]
        assert gates == ["planish gate model.bundle --baseline parent.bundle --device tensorrt"]


def test_jetsons_have_a_journey_for_each_jetpack() -> None:
    six, seven = journeys(load("jetson-orin-nano-8gb"))
    assert six.release == "JetPack 6.2: TensorRT 10.3, CUDA 12.6, Python 3.10"
    assert seven.release == "JetPack 7.2: TensorRT 10.16.2, CUDA 13.2, Python 3.12"
    for journey in (six, seven):
        assert "python3 -m venv --system-site-packages env" in journey.commands
        assert any("python3-libnvinfer" in line for line in journey.commands)
    assert "pip install 'planish[build]' onnxruntime==1.23.2" in six.commands
    on_host, first, second, third = [line for line in seven.commands if line.startswith("pip ")]
    assert on_host == "pip install 'planish[all]'"
    assert first == "pip install 'planish[build]'"
    assert second == "pip uninstall -y onnxruntime"
    assert third == "pip install onnxruntime-gpu==1.31.1"


def test_the_module_an_engine_is_built_with_is_the_one_installed_to_run_it() -> None:
    (journey,) = journeys(load("rtx-4090"))
    pinned = [line for line in journey.commands if " tensorrt_rtx_cu12==1.7.1.116" in line]
    assert len(pinned) == 2
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert "tensorrt_rtx_cu12==1.7.1.116" in pyproject  # what the tests build with


def test_memory_of_a_build_is_what_the_estimate_takes() -> None:
    modules = {engine: module for module, engine in ENGINES.items()}
    for name in WITH_ENGINES:
        for engine in load(name).engines:
            if engine.name in modules:
                assert engine.build_memory == BUILD_FACTOR[modules[engine.name]]


def test_recipes_are_shipped_and_fit_the_device() -> None:
    assert set(RECIPES) <= set(recipes.names())
    fits = {name: engine.recipes for name in WITH_ENGINES if (engine := load(name).engine("tensorrt"))}
    assert fits["t4"] == ("int8",)
    assert "fp8" in fits["l4"]
    assert "fp8" in fits["h200"]
    assert "fp8" in fits["jetson-agx-thor"]
    assert not any("fp8" in fits[name] for name in ("a10", "a100-80gb", "jetson-orin-nano-8gb", "jetson-agx-orin-64gb"))


@pytest.mark.parametrize("name", ["jetson-orin-nano-8gb", "rtx-4090", "cpu-arm64"])
def test_show_prints_the_commands_and_lists_them(name: str) -> None:
    show = [sys.executable, "-m", "planish", "profiles", "show", name]
    told = subprocess.run(show, check=True, capture_output=True, text=True).stdout
    listed = json.loads(subprocess.run([*show, "--json"], check=True, capture_output=True, text=True).stdout)
    for journey in journeys(load(name)):
        assert all(f"\n{line}\n" in told for line in journey.commands)
    assert [one["release"] for one in listed["journeys"]] == [one.release for one in journeys(load(name))]
    assert listed["profile"] == load(name).to_json()


@pytest.mark.parametrize("name", ["jetson-orin-nano-8gb", "rtx-4090"])
def test_a_profile_of_your_own_is_named_by_its_path_and_travels(name: str, tmp_path: Path) -> None:
    """A bundle names its profile, and only shipped ones are found by name: on the device the file has to be named."""
    path = tmp_path / "my board.yaml"
    path.write_text(yaml.safe_dump({**load(name).to_json(), "name": "mine"}), encoding="utf-8")
    show = [sys.executable, "-m", "planish", "profiles", "show", str(path), "--json"]
    listed = json.loads(subprocess.run(show, check=True, capture_output=True, text=True).stdout)
    for journey in listed["journeys"]:
        for step in journey["steps"]:
            for words in map(shlex.split, step["commands"]):
                if words[:2] in (
                    ["planish", "ship"],
                    ["planish", "export"],
                    ["planish", "build"],
                    ["planish", "inspect"],
                ):
                    wanted = str(path) if step["where"] == "host" else path.name
                    assert words[words.index("--profile") + 1] == wanted
                if words[0] == "rsync":
                    assert str(path) in words


def test_a_profile_cannot_slip_a_command_in() -> None:
    told = load("jetson-orin-nano-8gb").to_json()
    told["name"] = told["software"][0]["apt"][0] = told["software"][0]["onnxruntime"] = "x; touch y"
    for line in journeys(parse(told))[0].commands:
        assert "touch" not in shlex.split(line)
        assert ";" not in re.sub(r"'[^']*'", "", line.partition("python -c")[0])


def test_the_pages_show_these_very_commands() -> None:
    for page, devices in {"jetson.md": ["jetson-orin-nano-8gb"], "datacenter.md": ["h100", "rtx-4090"]}.items():
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        for device in devices:
            for journey in journeys(load(device)):
                missing = [line for line in journey.commands if f"\n{line}\n" not in text]
                assert not missing, f"{page} lacks what `planish profiles show {device}` says"
