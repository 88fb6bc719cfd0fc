"""The error tree. Every error a user can cause is one of these, and says one line.

::

    PlanishError                 70  our bug if raised bare
    ├── InputError                2  what the user gave is not usable
    │   ├── RecipeError              a recipe: unknown key, impossible value
    │   ├── ProfileError             a profile: unknown name or key
    │   ├── CheckpointError          a checkpoint: missing, truncated, unknown architecture
    │   ├── DataError                a text or JSONL file: missing, bad line
    │   ├── BundleError              a bundle: changed, missing, extra or linked file
    │   └── RequestError             a call of the runtime: ids, lengths, masks, prompts, options
    ├── ParityError               1  the exported graph does not compute what the checkpoint computes
    ├── InconclusiveError         3  could not be measured
    └── HostError                 4  this host cannot: no engine, no memory, no disk, no extra installed

A message always has three parts: what was expected, what came, and what to type next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BundleError",
    "CheckpointError",
    "DataError",
    "HostError",
    "InconclusiveError",
    "InputError",
    "ParityError",
    "PlanishError",
    "ProfileError",
    "RecipeError",
    "RequestError",
    "nearest",
]


class PlanishError(Exception):
    """Base of all errors; ``exit_code`` is what the command line returns.

    >>> str(InputError("a file", "a directory: /etc", "name the file itself"))
    'expected a file, got a directory: /etc; name the file itself'
    """

    exit_code = 70

    def __init__(self, expected: str, got: str, fix: str) -> None:
        super().__init__(expected, got, fix)
        self.expected = expected
        self.got = got
        self.fix = fix

    def __str__(self) -> str:
        return f"expected {self.expected}, got {self.got}; {self.fix}"


class InputError(PlanishError):
    """What the user gave is not usable."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe cannot be read."""


class ProfileError(InputError):
    """A profile is unknown or cannot be read."""


class CheckpointError(InputError):
    """A checkpoint is missing, damaged, or of an architecture we do not know."""


class DataError(InputError):
    """A text or JSONL file is missing or has a bad line."""


class BundleError(InputError):
    """A bundle is not what its manifest says."""


class RequestError(InputError):
    """A call of the runtime asks for what the model cannot take."""


class ParityError(PlanishError):
    """The exported graph does not compute what the checkpoint computes."""

    exit_code = 1


class InconclusiveError(PlanishError):
    """The question could not be decided by measurement."""

    exit_code = 3


class HostError(PlanishError):
    """This host cannot: no engine, memory, disk or installed extra."""

    exit_code = 4


def nearest(word: str, known: Iterable[str]) -> str:
    """Words for a fix line: the known key nearest to ``word``, else the list of all.

    >>> nearest("group_sise", ["group_size", "bits"])
    "did you mean 'group_size'?"
    >>> nearest("zzz", ["group_size", "bits"])
    'known: bits, group_size'
    """
    names = sorted(known)
    match = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean '{match[0]}'?" if match else f"known: {', '.join(names)}"
