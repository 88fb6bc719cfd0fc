"""The command line: a table of commands, each imported when it is called.

Importing a command's module is left until it is called, so that ``planish run`` on a device never imports torch.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

import click

from planish import __version__
from planish.errors import InputError, nearest

__all__ = ["COMMANDS", "as_input_error", "planish"]

# command -> (module, function, what the list of commands says)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "compress": ("planish.commands_make", "compress", "Shrink a checkpoint as a recipe says."),
    "explain": ("planish.commands_shrink", "explain", "Say what each pass cost and brought."),
    "latency": ("planish.commands_shrink", "latency", "Measure a device's latency table, to prune to milliseconds."),
    "export": ("planish.commands_make", "export", "Turn a checkpoint into a verified bundle."),
    "ship": ("planish.commands_make", "ship", "compress, export and gate in one."),
    "build": ("planish.commands_build", "build", "Build a TensorRT engine of a bundle, on the device or ahead for it."),
    "run": ("planish.commands_use", "run", "Answer texts with a bundle."),
    "bench": ("planish.commands_use", "bench", "Measure bundles, side by side."),
    "baseline": ("planish.commands_gate", "baseline", "Keep what a bundle says in a file, for later gates."),
    "gate": ("planish.commands_use", "gate", "Compare a bundle with a baseline: pass, regress or inconclusive."),
    "verify": ("planish.commands_look", "verify", "Check every file of a bundle against its manifest."),
    "inspect": ("planish.commands_look", "inspect", "Say what a bundle or checkpoint is made of."),
    "profiles": ("planish.commands_look", "profiles", "List, show or detect device profiles."),
    "doctor": ("planish.commands_look", "doctor", "Say what this host can do, and what it lacks."),
    "demo": ("planish.commands_make", "demo", "Ship MiniLM and SmolLM2 and print one table; no network."),
}


class Table(click.Group):
    """A group whose commands are the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, function, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), function)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            raise InputError("a command of planish", repr(args[0]), nearest(args[0], COMMANDS))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, says) for name, (_, _, says) in COMMANDS.items()])


@click.group(cls=Table, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="planish")
def planish() -> None:
    """Make trained BERT- and GPT-family models small and fast, and prove they still work.

    Exit codes: 0 done or pass; 1 gate regressed or parity failed; 2 bad input; 3 inconclusive; 4 this host cannot;
    70 our bug.
    """


def as_input_error(wrong: click.ClickException) -> InputError:
    """What click says in several lines, as one error of ours."""
    context = getattr(wrong, "ctx", None)
    command = context.command_path if context else "planish"
    fix = f"type: {command} --help"
    said = " ".join(wrong.format_message().split()).rstrip(".")
    if isinstance(wrong, click.NoSuchOption):
        known = (
            [name for option in context.command.params for name in option.opts if name.startswith("-")]
            if context
            else []
        )
        return InputError(f"an option of {command}", wrong.option_name, nearest(wrong.option_name, [*known, "--help"]))
    unknown = re.fullmatch(r"No such command '(.*?)'\.?.*", said)
    if unknown and context and isinstance(context.command, click.Group):
        return InputError(f"a command of {command}", unknown[1], nearest(unknown[1], context.command.commands))
    if isinstance(wrong, click.BadParameter) and wrong.param is not None:
        name = wrong.param.get_error_hint(context).replace("'", "")
        if isinstance(wrong, click.MissingParameter):
            return InputError(f"{name} for {command}", "none", fix)
        given = re.fullmatch(r"(.*) is not .*", " ".join(wrong.message.split()))
        return InputError(f"{name} as {kind_of(wrong.param.type)}", given[1] if given else wrong.message, fix)
    if isinstance(wrong, click.BadOptionUsage) and "requires an argument" in said:
        return InputError(f"a value after {wrong.option_name}", "none", fix)
    return InputError(f"arguments that {command} takes", said.removeprefix("Got "), fix)


def kind_of(kind: click.ParamType[Any]) -> str:
    """What values a parameter takes.

    >>> kind_of(click.IntRange(1, 9)), kind_of(click.Choice(["mean", "max"])), kind_of(click.INT)
    ('an integer from 1 to 9', 'one of mean, max', 'an integer')
    """
    if isinstance(kind, click.Choice):
        return f"one of {', '.join(map(str, kind.choices))}"
    if isinstance(kind, click.IntRange):
        return f"an integer from {kind.min} to {kind.max}"
    return {"integer": "an integer", "float": "a number", "integer range": "an integer"}.get(kind.name, kind.name)
