"""Commands that look and change nothing: verify, inspect, profiles, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from planish import say
from planish.errors import InputError
from planish.options import json_option

__all__ = ["doctor", "inspect", "profiles", "verify"]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@json_option
def verify(bundle: Path, as_json: bool) -> None:
    """Check every file of BUNDLE against its manifest."""
    from planish import runtime

    manifest = runtime.verify(bundle)
    total = sum(entry.size for entry in manifest.files.values())
    say.answer(
        {"bundle": str(bundle), "digest": manifest.digest, "files": len(manifest.files), "bytes": total},
        as_json=as_json,
        lines=[
            f"{bundle}: {len(manifest.files)} files, {say.megabytes(total)}, all as the manifest says",
            manifest.digest,
        ],
    )


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--lint", is_flag=True, help="Judge the qdq graph of a bundle, or an .onnx file, as TensorRT will.")
@click.option("--profile", help="With --lint: the device to judge for; default: the bundle's, if it has a GPU.")
@json_option
def inspect(path: Path, lint: bool, profile: str | None, as_json: bool) -> int:
    """Say what PATH, a bundle or a checkpoint, is made of.

    With --lint: what would keep TensorRT from building its graph or make the engine wrong (exit code 1) or slow, and
    how much of the work is done in which precision.
    """
    if lint:
        return lint_of(path, profile, as_json)
    if profile is not None:
        raise InputError("--profile with --lint", "--profile alone", f"type: planish inspect {path} --lint")
    from planish.describe import describe

    facts = describe(path)
    say.answer({"path": str(path), **facts}, as_json=as_json, lines=list(lines_of(facts)))
    return 0


def lint_of(path: Path, profile: str | None, as_json: bool) -> int:
    """Lint a bundle's graph or a file, and say it; 1 if a rule of severity error is broken."""
    from planish.export.lint import lint_bundle, lint_model
    from planish.profiles import load

    device = load(profile) if profile is not None else None
    report = lint_model(path, device) if path.is_file() else lint_bundle(path, device)
    code = 0 if report.ok else 1
    say.answer({"lint": report.to_json(), "exit_code": code}, as_json=as_json, lines=report.lines())
    return code


def lines_of(facts: dict[str, Any], indent: str = "") -> list[str]:
    """Nested facts as indented ``key: value`` lines; long lists are counted, ``--json`` has them whole."""
    lines = []
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}:", *lines_of(value, indent + "  ")]
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            lines.append(f"{indent}{key}:")
            for item in value:
                first, *rest = lines_of(item, indent + "    ")
                lines += [f"{indent}  - {first.lstrip()}", *rest]
        else:
            lines.append(f"{indent}{key}: {shown(value)}")
    return lines


def shown(value: Any) -> str:
    """A scalar or a flat list in a line."""
    if value is None or value in ([], {}):
        return "none"
    if isinstance(value, list):
        return f"{len(value)} values (--json lists them)" if len(value) > 24 else ", ".join(map(str, value))
    return str(value)


@click.group()
def profiles() -> None:
    """Device profiles: what a device is, each figure with its source."""


@profiles.command("list")
@json_option
def profiles_list(as_json: bool) -> None:
    """The shipped profiles, a line each."""
    from planish import profiles as shelf

    found = {name: shelf.load(name).description for name in shelf.names()}
    width = max(map(len, found))
    say.answer({"profiles": found}, as_json=as_json, lines=[f"{name:<{width}}  {text}" for name, text in found.items()])


@profiles.command("show")
@click.argument("name")
@json_option
def profiles_show(name: str, as_json: bool) -> None:
    """All of the profile NAME (a shipped name or a YAML file), and the commands to type for its device."""
    from planish import profiles as shelf

    profile = shelf.load(name)
    facts, ways = (
        profile.to_json(),
        [way.to_json() for way in shelf.journeys(profile, None if name in shelf.names() else name)],
    )
    notes = [f"note: {note}" for note in profile.notes]  # sentences, so not in one line
    told = {key: value for key, value in facts.items() if key != "notes"}
    lines = [*lines_of(told), *notes, *(line for way in ways for line in journey_lines(way))]
    say.answer({"profile": facts, "journeys": ways}, as_json=as_json, lines=lines)


def journey_lines(journey: dict[str, Any]) -> list[str]:
    """Commands with comments between them, so that a part can be pasted into a shell."""
    release = " ".join(journey["release"].split())  # a comment must not end early
    lines = ["", f"# {release or 'from a checkpoint to answers'}"]
    for step in journey["steps"]:
        note = f": {step['note']}" if step["note"] else ""
        lines += [f"# {step['where']}, {step['title']}{note}", *step["commands"]]
    return lines


@profiles.command("detect")
@json_option
def profiles_detect(as_json: bool) -> None:
    """What this host is, which profile fits it, and what could not be seen."""
    from planish import profiles as shelf

    facts = shelf.detect().to_json()
    say.answer({"detection": facts}, as_json=as_json, lines=lines_of(facts))


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what this host can do, what it lacks, and what to type to mend it."""
    from planish.doctor import diagnose

    facts = diagnose()
    say.answer({"doctor": facts}, as_json=as_json, lines=lines_of(facts))
