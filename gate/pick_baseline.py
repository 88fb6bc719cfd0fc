"""Which baseline file: the one named, or the one of a directory that holds for this device and task."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from planish.errors import InputError
from planish.gate.baseline_file import BaselineFile, read_baseline
from planish.gate.fingerprint import Fingerprint
from planish.runtime.manifest import MANIFEST

__all__ = ["baseline_name", "is_recorded", "pick_baseline"]

NAMED = re.compile(r".+\.[0-9a-f]{8}\.json")
FLAG = "--across-devices"
RECORD = "record one here: planish baseline BUNDLE -o DIRECTORY"
LISTED = 8


def baseline_name(bundle: str, here: Fingerprint) -> str:
    """The name of a file for a bundle of this name."""
    return f"{bundle}.{here.digest}.json"


def is_recorded(baseline: str | Path) -> bool:
    """Whether a baseline is a file or a directory of files, and no bundle. What is not there counts as a bundle."""
    path = Path(baseline)
    try:
        return path.is_file() or (path.is_dir() and not (path / MANIFEST).exists())
    except OSError:  # whoever opens it says what is wrong
        return False


def pick_baseline(
    baseline: str | Path, task: str, here: Fingerprint, *, across_devices: bool = False
) -> tuple[Path, BaselineFile]:
    """The file to compare with: of a directory the only one for this fingerprint and task.

    With ``across_devices`` a directory without such a file may have one for the task and another fingerprint.

    Raises:
        InputError: several files fit, or none; a file that is none, or (unless told) of another fingerprint.
    """
    path = Path(baseline)
    if path.is_dir():
        found = files_in(path)
        there = [(name, file) for name, file in found if file.task == task]
        fit = [pair for pair in there if not pair[1].fingerprint.differences(here)]
        fit = there if across_devices and not fit else fit
        if len(fit) != 1:
            got = f"{'several' if fit else 'none'}: {listed(found, here)}"
            fix = "name the file itself" if fit else RECORD if not there else f"{RECORD}; or pass {FLAG}"
            raise InputError(f"one baseline for {task} on this device in {path}", got, fix)
        return fit[0]
    file = read_baseline(path)
    if not across_devices:
        refuse_other_device(path, file, here)
    return path, file


def files_in(folder: Path) -> list[tuple[Path, BaselineFile]]:
    """All baseline files, by name. Raises InputError where one is damaged: it may be the one that is meant."""
    try:
        names = sorted(path for path in folder.iterdir() if NAMED.fullmatch(path.name) and path.is_file())
    except OSError as error:
        raise InputError(f"a readable directory {folder}", error.strerror or str(error), "check the path") from None
    if not names:
        raise InputError(f"a bundle or baseline files in {folder}", f"neither {MANIFEST} nor *.json of such", RECORD)
    return [(path, read_baseline(path)) for path in names]


def listed(found: Sequence[tuple[Path, BaselineFile]], here: Fingerprint) -> str:
    """What is there, and in which fields each differs from here."""
    words = []
    for path, file in found[:LISTED]:
        fields = ", ".join(name for name, _, _ in file.fingerprint.differences(here))
        words.append(f"{path.name} ({file.task}, {f'another {fields}' if fields else 'this device'})")
    more = len(found) - len(words)
    return ", ".join([*words, *([f"and {more} more"] if more else [])])


def refuse_other_device(path: Path, file: BaselineFile, here: Fingerprint) -> None:
    """Raises InputError that names every field that differs."""
    apart = file.fingerprint.differences(here)
    if apart:
        expected = ", ".join(f"{name} {theirs}" for name, theirs, _ in apart)
        got = ", ".join(f"{name} {ours}" for name, _, ours in apart)
        fix = f"{RECORD}; or pass {FLAG}, and the report says so"
        raise InputError(f"the device of {path.name}: {expected}", got, fix)
