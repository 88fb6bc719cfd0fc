"""What is not installed is named with the extra that brings it for the command at hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planish import extras
from planish.cli import COMMANDS
from planish.extras import NEEDED, extra_for, find_extras, flat, module_of, requirements
from tests.blocked import run_without
from tests.export.engine_bundles import make_bundle, make_profile

COMMANDS_OF = """
import json
from planish.__main__ import main
print(json.dumps([main(arguments) for arguments in {commands}]))
"""


def say_without(blocked: list[str], commands: list[list[str]]) -> tuple[list[int], list[str]]:
    """Exit codes and lines of stderr of commands, where modules are not installed."""
    done = run_without(blocked, COMMANDS_OF.format(commands=commands))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr.splitlines()


def test_on_a_base_install_every_command_names_the_extra_that_suffices_for_it(tmp_path: Path) -> None:
    checkpoint, output = tmp_path / "checkpoint", str(tmp_path / "out")
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    (tmp_path / "model.onnx").write_bytes(b"")
    everything = sorted({module_of(name) for extra in ("export", "build") for name in flat(extra, requirements())})
    commands = {
        "compress": ["compress", str(checkpoint), "-r", "int8", "-o", output],
        "export": ["export", str(checkpoint), "-o", output],
        "ship": ["ship", str(checkpoint), "-r", "int8", "-o", output],
        "build": ["build", str(make_bundle(tmp_path / "bundle")), "--profile", str(make_profile(tmp_path))],
        "inspect": ["inspect", str(tmp_path / "model.onnx"), "--lint"],
    }
    codes, said = say_without([*everything, "ml_dtypes"], list(commands.values()))
    assert codes == [4] * len(commands), said
    for (command, _), line in zip(commands.items(), said, strict=True):
        assert line.endswith(f"pip install 'planish[{NEEDED[command]}]'"), line
    assert not Path(output).exists()


def test_commands_and_extras_are_those_there_are() -> None:
    assert set(NEEDED) <= set(COMMANDS)
    assert set(NEEDED.values()) <= set(requirements())


@pytest.mark.parametrize(
    ("module", "command", "extra"),
    [
        ("onnx", "build", "build"),
        ("onnx_ir", "inspect", "build"),
        ("onnx", "export", "export"),
        ("torch", "ship", "export"),
        ("torch", "compress", "compress"),
        ("safetensors", "inspect", "compress"),  # not in its own extra: the smallest that has it
        ("onnx_ir", "verify", "build"),
        ("compressed_tensors", "bench", "compress"),
        ("no_such_module", "export", None),  # all of the extra is here, so that it would not help: a bug of ours
        ("no_such_module", "verify", None),
    ],
)
def test_which_extra_brings_a_module(module: str, command: str, extra: str | None) -> None:
    assert extra_for(module, command) == extra


def test_missing_extras_name_what_is_missing_and_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    real = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name in ("torch", "onnx_ir") else real(name))
    found = find_extras()
    assert not found["compress"]["ready"]
    assert "torch" in found["compress"]["missing"]
    assert {"torch", "onnx-ir"} <= set(found["export"]["missing"])
    assert found["export"]["install"] == "pip install 'planish[export]'"
    assert found["gate"]["ready"] is True
    assert extra_for("what_torch_needs", "compress") == "compress"
