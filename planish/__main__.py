"""``python -m planish`` and the ``planish`` script: run a command, turn errors into one line and an exit code."""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import sys
import traceback
from collections.abc import Sequence

from planish.errors import HostError, InputError, PlanishError

__all__ = ["main"]

INTERRUPTED = 130  # 128 + SIGINT, what shells report for Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (see ``planish.errors`` for the codes)."""
    import click

    from planish.cli import as_input_error, planish
    from planish.interrupts import interruptible

    argv = list(sys.argv[1:] if arguments is None else arguments)
    json_wanted = "--json" in (argv[: argv.index("--")] if "--" in argv else argv)
    escape_what_cannot_be_written()
    if "_PLANISH_COMPLETE" in os.environ:
        planish.main(prog_name="planish")  # the shell asks for completions; this does not return
    try:
        # Not planish.main(): it turns Ctrl-C into an exception without words, and a broken pipe into exit code 1.
        with interruptible(), planish.make_context("planish", argv) as context:
            result = planish.invoke(context)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as wrong:
        if type(wrong).__name__ == "NoArgsIsHelpError":  # click 8.1 has none and prints the help itself
            wrong.show()
            return 2
        return report(as_input_error(wrong), json_wanted=json_wanted)
    except (KeyboardInterrupt, click.Abort) as stop:
        # A pass that can be resumed says where it stopped.
        told = f"interrupted; {str(stop) or 'nothing half-written was left'}"
        print(f"\nplanish: {told}", file=sys.stderr)
        if json_wanted:
            say_failed(INTERRUPTED, "KeyboardInterrupt", told)
        # An interrupt that came out of an exec() of a string (imports do such) makes `python -m` end by the signal in
        # place of our exit code, unless another exec() ends well.
        exec("")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader went away: nothing to say to it
        return 0
    except Exception as error:
        return report(as_ours(error, argv[0] if argv else ""), json_wanted=json_wanted)
    return int(result or 0)


def escape_what_cannot_be_written() -> None:
    """Let stdout write what its encoding lacks as an escaped code point, which is also how JSON spells it."""
    codecs.register_error("planish.escape", escaped)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="planish.escape")


def escaped(error: UnicodeError) -> tuple[str, int]:
    """The error handler for characters that an encoding lacks.

    >>> escaped(UnicodeEncodeError("ascii", "a\u20ac", 1, 2, "no"))
    ('\\\\u20ac', 2)
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def as_ours(error: Exception, command: str) -> Exception:
    """The planish error an operating system or import error of ``command`` stands for; others as they are."""
    if isinstance(error, PlanishError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return HostError(
            "room on the disk", f"{error.strerror}: {error.filename or 'output'}", "free space and run again"
        )
    if isinstance(error, FileNotFoundError):
        return InputError("an existing file", f"nothing at {error.filename}", "check the path")
    if isinstance(error, PermissionError):
        return InputError(
            "a path we may use", f"no permission for {error.filename}", "check the owner or choose another"
        )
    if isinstance(error, ModuleNotFoundError) and error.name:
        from planish.extras import extra_for

        top = error.name.split(".")[0]
        if extra := extra_for(top, command):
            return HostError(
                f"package {top!r} for this command", "it is not installed", f"pip install 'planish[{extra}]'"
            )
    if isinstance(error, MemoryError):
        return HostError("enough memory", "none left", "close other programs or take a smaller batch")
    return error


def report(error: Exception, *, json_wanted: bool) -> int:
    """Say ``error`` on stderr (and as JSON on stdout if wanted); return the exit code."""
    ours = isinstance(error, PlanishError) and type(error) is not PlanishError
    code = error.exit_code if isinstance(error, PlanishError) else PlanishError.exit_code
    if not ours:
        traceback.print_exception(error, file=sys.stderr)
        print("planish: this is a bug of ours; please report it with the lines above", file=sys.stderr)
    else:
        print(f"planish: {error}", file=sys.stderr)
    if json_wanted:
        say_failed(code, type(error).__name__, str(error))
    return code


def say_failed(code: int, error: str, message: str) -> None:
    """The JSON object of a command that did not end well."""
    print(json.dumps({"ok": False, "exit_code": code, "error": error, "message": message}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
