"""A command whose first argument may be a word that means another command: ``planish gate selftest BUNDLE``.

The command takes a bundle as its first argument. The word in that place is always the other command; a bundle in a
directory of that name is spelled ``./WORD``, and who has one is told so.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import click

__all__ = ["with_subcommand"]


def with_subcommand(word: str, module: str) -> type[click.Command]:
    """A class for a command that has the subcommand ``word``, the function of that name in ``module``.

    The module is imported when the word comes.
    """

    class WithSubcommand(click.Command):
        def make_context(
            self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
        ) -> click.Context:
            if args[:1] != [word]:
                return super().make_context(info_name, args, parent, **extra)
            if Path(word).exists() and not extra.get("resilient_parsing"):  # a shell that completes wants no words
                print(f"planish: {word} is the command; the bundle of that name here is ./{word}", file=sys.stderr)
            command: click.Command = getattr(importlib.import_module(module), word)
            return command.make_context(f"{info_name} {word}", args[1:], parent, **extra)

    return WithSubcommand
